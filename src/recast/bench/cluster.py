"""The work of a benchmark on Ray: one task for each clip, whose rows arrive when they are computed.

A machine of the cluster needs no disk of the others: the files that a task reads travel with it.
This module owns where a task runs, and starts it again if its process is lost. Rows that the task
had already delivered are not delivered again. It refuses to know what a task computes (`work.py`).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from recast.bench import work as here
from recast.bench.work import BenchResult, Task
from recast.errors import RecastError, reason_of
from recast.events import Note
from recast.media.atomic_files import scratch_folder
from recast.media.file_parts import FilePart, append, parts_of
from recast.pipeline.motion_cache import MotionCache
from recast.ray_cluster import cause_of, connected

RETRIES = 3
"""How many times a task is started again after its process was lost."""
_FILES = "bench"
"""The folder in the motion store of a machine where the files of its tasks are."""
Sent = Mapping[Path, Sequence[FilePart]]
"""File or folder that a task names -> its parts."""


def work(tasks: Sequence[Task], address: str) -> Iterator[BenchResult | Note]:
    """The results of `recast.bench.work.work` for all tasks, in the order in which they arrive.

    `address` is "local" or the address of a cluster. A task that is lost after all retries becomes
    a note. Raises `BadCall` if Ray or the cluster is not available, and the `RecastError`s of
    `work`.
    """
    ray = connected(address)
    try:
        remote = ray.remote(num_returns="streaming", max_retries=RETRIES)(work_elsewhere)
        gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
        running = {}
        for task in tasks:
            wants_gpu = gpus and task.settings.device in ("auto", "cuda")
            placed = remote.options(num_cpus=task.threads, num_gpus=int(wants_gpu))
            running[placed.remote(task, _parts(task))] = task
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


def _parts(task: Task) -> Sent:
    """The files that a task reads."""
    sent = {}
    for path, files in here.files_of(task).items():
        root = _absolute(path).parent
        sent[path] = [part for file in files for part in parts_of(root, _absolute(file))]
    return sent


def _absolute(path: Path) -> Path:
    """The path without ".." in it; the name of a link stays."""
    return Path(os.path.abspath(path))


def work_elsewhere(task: Task, sent: Sent) -> Iterator[BenchResult]:
    """`work` on a machine that has none of the files of the task."""
    folder = MotionCache.default().folder / _FILES
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as scratch:
        moved = {}
        for number, (path, parts) in enumerate(sent.items()):
            root = scratch / str(number)
            for part in parts:
                append(root / part.name, part.data)
            if parts:  # an error about a missing file names the file as the task does
                moved[path] = root / _absolute(path).name
        yield from here.work(replace(task, moved=moved))
