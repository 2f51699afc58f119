"""Recast as a Hugging Face Space: the page of `recast serve`, on CPU or ZeroGPU hardware.

On ZeroGPU a GPU is lent to one call of a decorated function, which runs in a process of its own.
Here that call is one job: it reads the job from the queue and writes its progress and its results
there, as a worker of `recast serve` does. Elsewhere the decorator changes nothing.
"""

import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from recast.web.app import create_app
from recast.web.config import ServeConfig
from recast.web.job_store import JobStore, State
from recast.web.limits import Limits
from recast.web.samples import write_samples
from recast.web.server_folder import ServerFolder
from recast.web.worker import Worker

F = TypeVar("F", bound=Callable[..., Any])
FOLDER = Path(os.environ.get("RECAST_FOLDER", "recast-server"))
GPU_SECONDS = int(os.environ.get("RECAST_GPU_SECONDS", "120"))
LIMITS = Limits(
    upload_mb=50, clip_seconds=30, jobs_per_client=3, jobs=40, keep_days=1, keep_gb=10, free_gb=0.5
)
NAME = "space"
_POLL_SECONDS = 0.2


def lends_gpu(function: F) -> F:
    """The function, which holds a GPU while it runs if this Space has ZeroGPU hardware."""
    try:
        import spaces
    except ImportError:
        return function
    decorated: F = spaces.GPU(duration=GPU_SECONDS)(function)
    return decorated


def announce() -> None:
    """Tell ZeroGPU which functions are decorated. Gradio's `launch` does so in other Spaces; this
    one is run by uvicorn, and without the announcement ZeroGPU stops it."""
    zero = sys.modules.get("spaces.zero")
    if zero is not None and hasattr(zero, "startup"):  # it exists on ZeroGPU hardware alone
        zero.startup()


@lends_gpu
def work(job_id: str) -> None:
    """Run one job that this Space has taken."""
    folder = ServerFolder(FOLDER, LIMITS)
    Worker(folder, NAME).do(JobStore(folder.database).get(job_id))


class Workers:
    """One job after the other, each in a call of `work`. It has the interface of `Supervisor`."""

    def __init__(self) -> None:
        self._folder = ServerFolder(FOLDER, LIMITS)
        self._store = JobStore(self._folder.database)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def alive(self) -> int:
        """The number of workers that run."""
        return int(self._thread.is_alive())

    def start(self) -> None:
        """Mark what was left running as interrupted, and begin."""
        self._store.interrupt()
        self._thread.start()

    def stop(self) -> None:
        """Take no further job."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            job = self._store.claim(NAME)
            if job is None:
                continue
            try:
                work(job.id)
            except Exception as error:  # such as: no GPU was free
                traceback.print_exc()
                state: State = "failed" if self._store.may_go_on(job) else "cancelled"
                self._store.finish(job, state, error=f"the Space did not run this job: {error}")
            finally:  # a GPU call that was ended from outside leaves its job running
                self._store.interrupt(NAME)
                self._folder.prune(self._store)


def application() -> Any:
    """The application of the Space."""
    config = ServeConfig(
        host="0.0.0.0",
        folder=FOLDER,
        no_token=True,
        private=True,
        models=tuple(os.environ.get("RECAST_MODELS", "").split()),
        limits=LIMITS,
    )
    write_samples(FOLDER / "samples")
    announce()
    return create_app(config, workers=Workers(), embedded=True)


if __name__ == "__main__":
    uvicorn.run(application(), host="0.0.0.0", port=int(os.environ.get("PORT", "7860")))
