"""The work of a benchmark on Ray: one task for each clip, whose rows arrive as they are made.

A task whose process is lost is started again; rows that it had delivered are not delivered twice.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from recast.bench import work as here
from recast.bench.work import BenchResult, Task
from recast.errors import BadCall, RecastError, missing_extra
from recast.events import Note

LOCAL = "local"
RETRIES = 3


def work(tasks: Sequence[Task], address: str) -> Iterator[BenchResult | Note]:
    """The results of `recast.bench.work.work` for all tasks, in the order in which they are made; a
    note for a task that was lost for good. Raises `BadCall` where Ray is not available, and the
    Recast errors that `work` raises."""
    ray = _connected(address)
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
                # Ray's own text begins with a long traceback.
                raised = isinstance(error, ray.exceptions.RayTaskError)
                cause = error.cause if raised else error
                if isinstance(cause, RecastError):
                    raise cause from error
                reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
                yield Note(text=f"the work on {task.cases[0].clip} was lost ({reason})")
    finally:
        ray.shutdown()


def _connected(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # By default Ray's workers have a lower priority than every other process.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with missing_extra("ray"):
        import ray
    options: dict[str, Any] = {"address": address}
    if address == LOCAL:  # a new cluster, even if one is running here already
        options["include_dashboard"] = False
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadCall(f"`ray` is {address}, and no cluster answers there ({reason})") from error
    return ray
