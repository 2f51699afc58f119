"""The work of a benchmark on Ray: one task for each clip, whose rows arrive when they are computed.

This module owns the cluster: it starts or joins one, and starts a task again if its process is
lost. Rows that the task had already delivered are not delivered again. It refuses to know what a
task computes (`work.py`).
"""

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from recast.bench import work as here
from recast.bench.work import BenchResult, Task
from recast.errors import BadCall, RecastError, missing_extra, reason_of
from recast.events import Note

LOCAL = "local"
RETRIES = 3
"""How many times a task is started again after its process was lost."""


def work(tasks: Sequence[Task], address: str) -> Iterator[BenchResult | Note]:
    """The results of `recast.bench.work.work` for all tasks, in the order in which they arrive.

    `address` is "local" or the address of a cluster. A task that is lost after all retries becomes
    a note. Raises `BadCall` if Ray or the cluster is not available, and the `RecastError`s of
    `work`.
    """
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
                # The cause is quoted, because the text of a RayTaskError begins with a traceback.
                is_task_error = isinstance(error, ray.exceptions.RayTaskError)
                cause = error.cause if is_task_error else error
                if isinstance(cause, RecastError):
                    raise cause from error
                reason = f"{type(cause).__name__}: {reason_of(cause)}"
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
    if address == LOCAL:  # starts a new cluster, even if one is running on this machine
        options["include_dashboard"] = False
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BadCall(
            f"`ray` is {address}, and no cluster answers there ({reason_of(error)}); give the "
            "address of a cluster, or local"
        ) from error
    return ray
