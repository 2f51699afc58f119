"""A worker: a process that takes jobs from the queue and runs them, one after the other.

    python -m recast.web.worker FOLDER DEVICE

The server starts one worker for each device and holds its standard input. When that closes, because
the server ended or was killed, the worker stops its job, which saves a checkpoint, and ends. A job
that was cancelled stops at its next event; the server kills a worker that takes longer. This module
owns the loop, the previews, and how an exception becomes the error of a job. It refuses to know
what a job does (`work.py`).
"""

import argparse
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recast.errors import RecastError
from recast.events import Event, Preview
from recast.events import Job as Work
from recast.media.atomic_files import atomic
from recast.web.job_store import Job, JobStore
from recast.web.limits import Limits
from recast.web.progress import Progress
from recast.web.requests import EVALUATE, EvaluateRequest, TransferRequest, from_json
from recast.web.server_folder import PREVIEW, ServerFolder
from recast.web.work import LoadedModel, evaluate, transfer

_POLL_SECONDS = 0.15
_REPORT_SECONDS = 0.25
"""Shortest time between two reports of progress."""
_PREVIEW_SHARE = 0.1
"""Largest share of the time that previews may take."""
_PREVIEW_SECONDS = 1.0
"""Shortest time between two previews."""
_PREVIEW_SIDE = 256
_END_SECONDS = 5.0
"""How long a job may take to stop when the server has ended."""
_DEFECT = (
    "Recast made a mistake that is not yours ({kind}: {text}). The log of the server has the "
    "details; please report it."
)


class Worker:
    """The loop of a worker."""

    def __init__(self, folder: ServerFolder, name: str) -> None:
        self._folder, self._name = folder, name
        self._store = JobStore(folder.database)
        self._model = LoadedModel()
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

    def do(self, job: Job) -> None:
        """Run a job that was taken from the queue, and end it there whatever happens."""
        try:
            result = self._follow(job, self._work(job))
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

    def _work(self, job: Job) -> Work[dict[str, Any]]:
        if job.kind == EVALUATE:
            return evaluate(from_json(EvaluateRequest, job.request), self._folder)
        request = from_json(TransferRequest, job.request)
        return transfer(request, job.id, self._folder, self._model)

    def _follow(self, job: Job, work: Work[dict[str, Any]]) -> dict[str, Any] | None:
        """Run a job and report its progress; None if it had to stop."""
        progress, previews = Progress(), _Previews(self._folder.job(job.id) / PREVIEW)
        reported = 0.0
        try:
            for event in work:
                progress.add(event)
                if isinstance(event, Preview) and previews.write(event, self._model):
                    progress.previews += 1
                if self.stopped.is_set() or not self._store.may_go_on(job):
                    return None
                if time.monotonic() - reported > _REPORT_SECONDS:
                    self._store.report(job, progress.as_json())
                    reported = time.monotonic()
        finally:
            work.close()
            self._store.report(job, progress.as_json())
        return work.result


class _Previews:
    """Writes the current estimate as a small animation, as often as its cost allows."""

    def __init__(self, path: Path) -> None:
        self._path, self._due = path, 0.0

    def write(self, event: Event, model: LoadedModel) -> bool:
        """Decode and write the estimate of an event; returns whether it was due."""
        begin = time.monotonic()
        if begin < self._due or model.backbone is None or not isinstance(event, Preview):
            return False
        from recast.pipeline import source_clip

        backbone = model.backbone
        clip = source_clip.to_video(backbone.decode(event.latents), backbone.defaults.fps)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(self._path) as temporary:
            write_animation(clip.frames, clip.fps, temporary)
        end = time.monotonic()
        self._due = end + max(_PREVIEW_SECONDS, (end - begin) / _PREVIEW_SHARE)
        return True


def write_animation(frames: Any, fps: float, path: Path) -> None:
    """Write frames (F, H, W, 3) as an animated WebP of at most 256 pixels per side."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    for image in images:
        image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    duration = round(1000 / fps)
    first, *rest = images
    first.save(
        path, "WEBP", save_all=True, append_images=rest, duration=duration, loop=0, quality=70
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker until its standard input closes."""
    parser = argparse.ArgumentParser(prog="recast.web.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("device")
    parser.add_argument("--limits", default="{}")
    call = parser.parse_args(argv)
    if call.device.startswith("cuda:"):
        os.environ["CUDA_VISIBLE_DEVICES"] = call.device.partition(":")[2]
    limits = Limits(**json.loads(call.limits))
    worker = Worker(ServerFolder(call.folder, limits), f"{call.device}-{os.getpid()}")
    threading.Thread(target=_end_with_server, args=(worker,), daemon=True).start()
    worker.run()
    return 0


def _end_with_server(worker: Worker) -> None:
    """Wait until the server ends, then stop the worker, at last by force."""
    sys.stdin.buffer.read()
    worker.stopped.set()
    time.sleep(_END_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
