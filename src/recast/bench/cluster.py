"""The work of a benchmark on Ray: one task for each clip, whose rows arrive when they are computed.

This module owns where a task runs, and starts it again if its process is lost. Rows that the task
had already delivered are not delivered again. It refuses to know what a task computes (`work.py`).
"""

from collections.abc import Iterator, Sequence

from recast.bench import work as here
from recast.bench.work import BenchResult, Task
from recast.errors import RecastError, reason_of
from recast.events import Note
from recast.ray_cluster import cause_of, connected

RETRIES = 3
"""How many times a task is started again after its process was lost."""


def work(tasks: Sequence[Task], address: str) -> Iterator[BenchResult | Note]:
    """The results of `recast.bench.work.work` for all tasks, in the order in which they arrive.

    `address` is "local" or the address of a cluster. A task that is lost after all retries becomes
    a note. Raises `BadCall` if Ray or the cluster is not available, and the `RecastError`s of
    `work`.
    """
    ray = connected(address)
    try:
        remote = ray.remote(num_returns="streaming", max_retries=RETRIES)(here.work)
        gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
        running = {}
        for task in tasks:
            wants_gpu = gpus and task.settings.device in ("auto", "cuda")
            placed = remote.options(num_cpus=task.threads, num_gpus=int(wants_gpu))
            running[placed.remote(task)] = task
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1, fetch_local=False)
            try:
                yield ray.get(next(ready))
            except StopIteration:
                del running[ready]
            except ray.exceptions.RayError as error:
                task = running.pop(ready)
                cause = cause_of(ray, error)
                if isinstance(cause, RecastError):
                    raise cause from error
                reason = f"{type(cause).__name__}: {reason_of(cause)}"
                yield Note(text=f"the work on {task.cases[0].clip} was lost ({reason})")
    finally:
        ray.shutdown()
