"""The same work on Ray: one task for each clip, rows as they are made.

A task whose process is lost is begun again; what it had handed over is not handed over twice.
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
    """What `recast.bench.work.work` gives for all tasks, in the order in which it is made; a note
    for a task that was lost for good. Raises `BadCall` where there is no Ray, and what `work`
    raises of Recast's own."""
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
                # Its own text begins with a page of where it was raised.
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
    # Ray's workers yield to every other process unless told not to.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with missing_extra("ray"):
        import ray
    options: dict[str, Any] = {"address": address}
    if address == LOCAL:  # which Ray takes for a cluster of one's own, whatever runs here already
        options["include_dashboard"] = False
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadCall(f"--ray {address}: no cluster answers there ({reason})") from error
    return ray
