"""A worker: a process that takes jobs from the queue and runs them, one after the other.

    python -m recast.web.worker FOLDER DEVICE

The server starts one worker for each device and holds its standard input. When that closes, because
the server ended or was killed, the worker stops its job, which saves a checkpoint, and ends. A job
that was cancelled stops at its next event; the server kills a worker that takes longer. With
`--ray`, the job runs on a Ray cluster (`ray_runner.py`), and this process follows it. This module
owns the loop, and how an exception becomes the error of a job. It refuses to know what a job does
(`work.py`).
"""

import argparse
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from recast.errors import RecastError, WorkerLost
from recast.events import Job as Work
from recast.media.atomic_files import atomic
from recast.ray_cluster import connected
from recast.web.job_store import Job, JobStore, State
from recast.web.limits import Limits
from recast.web.previews import Picture, with_pictures
from recast.web.progress import Progress
from recast.web.server_folder import PREVIEW, ServerFolder
from recast.web.work import LoadedModel, work_of

_POLL_SECONDS = 0.15
_REPORT_SECONDS = 0.25
"""Shortest time between two reports of progress."""
_END_SECONDS = 5.0
"""How long a job may take to stop when the server has ended."""
_DEFECT = (
    "Recast made a mistake that is not yours ({kind}: {text}). The log of the server has the "
    "details; please report it."
)


class Runner(Protocol):
    """What runs the jobs of a worker."""

    def run(self, job: Job, may_go_on: Callable[[], bool]) -> Work[Any]:
        """Run a job. The result is that of `work_of`. A runner that waits for another process asks
        `may_go_on` meanwhile, and has the result None if the answer is no."""

    def close(self) -> None:
        """End what the runner has started."""


class LocalRunner:
    """Runs jobs in this process, and keeps the model of the last one."""

    def __init__(self, folder: ServerFolder) -> None:
        self._folder, self._model = folder, LoadedModel()

    def run(self, job: Job, may_go_on: Callable[[], bool]) -> Work[Any]:
        """Run a job. Raises `RecastError`."""
        work = work_of(job.kind, job.id, job.request, self._folder, self._model)
        return with_pictures(work, self._model)

    def close(self) -> None:
        """There is nothing to end."""


class Worker:
    """The loop of a worker. By default its jobs run in this process."""

    def __init__(self, folder: ServerFolder, name: str) -> None:
        self._folder, self._name = folder, name
        self._store = JobStore(folder.database)
        self.runner: Runner = LocalRunner(folder)
        self.stopped = threading.Event()
        """Set when the server has ended."""

    def run(self) -> None:
        """Take jobs until the server ends."""
        while not self.stopped.is_set():
            job = self._store.claim(self._name)
            if job is None:
                self.stopped.wait(_POLL_SECONDS)
            else:
                self.do(job)
        self.runner.close()

    def do(self, job: Job) -> None:
        """Run a job that was taken from the queue, and end it there whatever happens."""
        try:
            result = self._follow(job)
        except WorkerLost as error:
            traceback.print_exc()
            state: State = "interrupted" if self._store.may_go_on(job) else "cancelled"
            self._store.finish(job, state, error=str(error))
        except RecastError as error:
            self._store.finish(job, "failed", error=str(error))
        except Exception as error:
            traceback.print_exc()
            text = _DEFECT.format(kind=type(error).__name__, text=str(error)[:200])
            self._store.finish(job, "failed", error=text)
        else:
            if result is not None:
                self._store.finish(job, "done", result=result)
            elif self.stopped.is_set():
                self._store.finish(job, "interrupted")
            else:
                self._store.finish(job, "cancelled")
        self._folder.remove_unfinished_files(job)

    def _follow(self, job: Job) -> dict[str, Any] | None:
        """Run a job and report its progress; None if it had to stop."""

        def may_go_on() -> bool:
            return not self.stopped.is_set() and self._store.may_go_on(job)

        progress, preview = Progress(), self._folder.job(job.id) / PREVIEW
        work, reported = self.runner.run(job, may_go_on), 0.0
        try:
            for event in work:
                progress.add(event)
                if isinstance(event, Picture):
                    with atomic(preview) as temporary:
                        temporary.write_bytes(event.webp)
                    progress.previews += 1
                if not may_go_on():
                    return None
                if time.monotonic() - reported > _REPORT_SECONDS:
                    self._store.report(job, progress.as_json())
                    reported = time.monotonic()
        finally:
            work.close()
            self._store.report(job, progress.as_json())
        return work.result


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker until its standard input closes."""
    parser = argparse.ArgumentParser(prog="recast.web.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("device")
    parser.add_argument("--limits", default="{}")
    parser.add_argument("--ray", nargs=3, metavar=("ADDRESS", "CPUS", "GPUS"))
    call = parser.parse_args(argv)
    if call.device.startswith("cuda:"):
        os.environ["CUDA_VISIBLE_DEVICES"] = call.device.partition(":")[2]
    folder = ServerFolder(call.folder, Limits(**json.loads(call.limits)))
    worker = Worker(folder, f"{call.device}-{os.getpid()}")
    threading.Thread(target=_end_with_server, args=(worker,), daemon=True).start()
    if call.ray is not None:
        try:
            worker.runner = _ray_runner(call.ray, folder, worker.stopped)
        except RecastError as error:
            sys.stderr.write(f"recast: {error}\n")
            return error.exit_code
    worker.run()
    return 0


def _ray_runner(words: Sequence[str], folder: ServerFolder, stopped: threading.Event) -> Runner:
    """The runner of `--ray`. Raises `BadCall` if no cluster answers."""
    from recast.web.ray_runner import RayRunner, Share  # here, because few servers use Ray

    address, cpus, gpus = words
    return RayRunner(connected(address), Share(int(cpus), int(gpus)), folder, stopped)


def _end_with_server(worker: Worker) -> None:
    """Wait until the server ends, then stop the worker, at last by force."""
    sys.stdin.buffer.read()
    worker.stopped.set()
    time.sleep(_END_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
