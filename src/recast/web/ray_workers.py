"""The workers of a server whose jobs run on a Ray cluster: how many, and what each takes.

Each worker process follows one job at a time, which an actor on the cluster runs. This module owns
the number of workers, and the cluster on this machine if the server starts one. It refuses to know
what a worker sends (`ray_runner.py`).
"""

from collections.abc import Mapping, Sequence

from recast.errors import BadCall
from recast.ray_cluster import LOCAL, connected
from recast.web.job_store import JobStore
from recast.web.ray_runner import Share
from recast.web.server_folder import ServerFolder
from recast.web.supervisor import Supervisor

_CPUS = 4
"""CPUs of a job on a cluster without GPUs, if a machine has as many."""


class RayWorkers(Supervisor):
    """The worker processes of a server with a Ray cluster, `jobs` in number.

    `address` is "local" or the address of a cluster. The processes are this server's, so a cluster
    that is lost does not end the page. Raises `BadCall` if Ray or the cluster is not available.
    """

    def __init__(
        self, folder: ServerFolder, store: JobStore, address: str, jobs: int | None = None
    ) -> None:
        self._ray, self._is_own = connected(address), address == LOCAL
        try:
            found = self._ray.get_runtime_context().gcs_address
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            jobs, share = divide(nodes, jobs)
        except BaseException:
            self._ray.shutdown()
            raise
        if not self._is_own:
            self._ray.shutdown()
        flags = ["--ray", found, *map(str, share)]
        super().__init__(folder, store, ["ray"] * jobs, flags)

    def stop(self) -> None:
        """Stop the workers, and the cluster if it is the server's own."""
        super().stop()
        if self._is_own:
            self._ray.shutdown()


def divide(nodes: Sequence[Mapping[str, float]], jobs: int | None = None) -> tuple[int, Share]:
    """How many jobs run at once, and what each takes, from the resources of each machine.

    `jobs` replaces the number. If a machine has GPUs, each job takes one, with its part of the
    CPUs. Raises `BadCall` for a cluster without CPUs.
    """
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    if any(gpus):
        each = min(cpu // gpu for cpu, gpu in zip(cpus, gpus, strict=True) if gpu)
        return jobs or sum(gpus), Share(max(1, each), 1)
    most = max(cpus, default=0)
    if not most:
        raise BadCall("the cluster of `ray` has no CPUs; add a machine to it")
    if jobs is None:
        each = min(_CPUS, most)
        return sum(cpu // each for cpu in cpus), Share(each, 0)
    shares = [each for each in range(1, most + 1) if sum(cpu // each for cpu in cpus) >= jobs]
    return jobs, Share(max(shares, default=1), 0)
