"""A worker on a machine of a Ray cluster: it gets a job with its files, and sends back the results.

The process keeps its model between two jobs. It shares no disk with the server: a job runs in a
folder of its own, which looks like that of the server and is removed at the end. Learned motions
and checkpoints stay in the motion store of the machine (`MotionCache.default`). This module owns
what a worker sends. It refuses to know the queue, and how the server calls it (`ray_runner.py`).
"""

import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recast.errors import RunFailed
from recast.events import Checkpoint, Event, Preview
from recast.media.atomic_files import scratch_folder
from recast.media.file_parts import FilePart, append, checked_name, parts_of
from recast.pipeline.manifest import installed_version
from recast.pipeline.motion_cache import MotionCache
from recast.web.limits import Limits
from recast.web.previews import Picture, with_pictures
from recast.web.server_folder import AUTOSAVE_SECONDS, RESULT, ServerFolder
from recast.web.work import LoadedModel, work_of

_JOBS = "jobs"
"""The folder in the motion store of a machine in which its jobs run."""
_SECONDS = 0.1
"""Shortest time between two messages with events."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """The job runs."""

    root: str
    """The folder of the job on the worker's machine, which its messages may name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Events:
    """The next events of the job, without tensors."""

    events: Sequence[Event]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The job has ended, and all of its files were sent."""

    result: Mapping[str, Any]


Message = Begun | Events | FilePart | Finished


class RayActor:
    """The worker. Ray runs `run` and `stop` in two threads."""

    def __init__(self, limits: Limits, version: str) -> None:
        self._limits, self._version = limits, version
        self._model = LoadedModel()
        self._stopped = threading.Event()

    def run(
        self, kind: str, id: str, request: Mapping[str, Any], files: Sequence[FilePart]
    ) -> Iterator[Message]:
        """Run a job, and send its events, the files of its result, and the result.

        `files` are those that the request names. A job that is stopped sends no `Finished`. Raises
        the `RecastError` of the job, and `RunFailed` if the server has another version of Recast.
        """
        self._stopped.clear()
        self._check_version()
        jobs = MotionCache.default().folder / _JOBS
        jobs.mkdir(parents=True, exist_ok=True)
        with scratch_folder(jobs) as root:
            yield Begun(root=str(root))
            folder = _NodeFolder(root, self._limits)
            for part in files:
                append(root / checked_name(part.name), part.data)
            work = with_pictures(work_of(kind, id, request, folder, self._model), self._model)
            try:
                yield from self._events(work)
            finally:
                work.close()
            if not self._stopped.is_set():
                for path in (folder.job(id) / RESULT, folder.motion(id)):
                    yield from parts_of(root, path)
                yield Finished(result=work.result)

    def stop(self) -> None:
        """Stop the job at its next event."""
        self._stopped.set()

    def _events(self, work: Iterator[Event]) -> Iterator[Events]:
        """The events in messages, until the end or until the job is stopped."""
        waiting: list[Event] = []
        sent = time.monotonic()
        try:
            for event in work:
                if not isinstance(event, Checkpoint):
                    waiting.append(_without_tensors(event))
                if self._stopped.is_set():
                    return
                if time.monotonic() - sent > _SECONDS:
                    yield Events(events=waiting)
                    waiting, sent = [], time.monotonic()
        except Exception:
            yield Events(events=waiting)  # such as the notes before an error
            raise
        yield Events(events=waiting)

    def _check_version(self) -> None:
        own = installed_version("recast")
        if own != self._version:
            raise RunFailed(
                f"{platform.node()} has Recast {own}, and the server has {self._version}; install "
                "the same version on every machine of the Ray cluster"
            )


class _NodeFolder(ServerFolder):
    """The folder of one job, with the motion store of this machine."""

    __slots__ = ()

    def motion_cache(self) -> MotionCache:
        cache = MotionCache.default()
        cache.autosave_seconds = AUTOSAVE_SECONDS
        return cache


def _without_tensors(event: Event) -> Event:
    if isinstance(event, Preview) and not isinstance(event, Picture):
        return Preview(stage=event.stage, index=event.index, latents=None)
    return event
