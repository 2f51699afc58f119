"""Runs the jobs of one worker process on a Ray cluster, each by an actor on one of its machines.

The actor starts with the first job and keeps its model. It ends with this process, because Ray ends
the actors of a process that has ended. This module owns what travels: the job and the files that
it names to the actor, and events and results back, which it writes where a local worker would. It
refuses to know the queue and what a job does.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from recast.errors import BadCall, RecastError, RunFailed, WorkerLost, reason_of
from recast.events import Event, Note, job
from recast.media.atomic_files import atomic, atomic_folder
from recast.media.file_parts import FilePart, append, checked_name, parts_of
from recast.pipeline.manifest import installed_version
from recast.ray_cluster import cause_of
from recast.web.job_store import Job
from recast.web.ray_actor import Begun, Events, Finished, Message, RayActor
from recast.web.requests import DRAWN, clip_path
from recast.web.server_folder import MASK, RESULT, ServerFolder

_TICK_SECONDS = 0.1
"""How often a job looks whether it may go on, while the actor sends nothing."""
_PATIENCE_SECONDS = 5.0
"""Time after which the page says that the job waits for an actor."""
_CANCEL_SECONDS = 0.6
"""How long an actor may take to stop a job that was cancelled."""
_END_SECONDS = 3.0
"""How long an actor may take to stop a job, and to save its checkpoint, when the server ends."""
_WAITING = "the Ray cluster did not start a worker for this job at once"


class Share(NamedTuple):
    """What an actor takes of the cluster."""

    cpus: int
    gpus: int


class RayRunner:
    """Runs jobs on the cluster to which the module `ray` is connected, one after the other.

    `stopped` is set when the server has ended.
    """

    def __init__(
        self, ray: Any, share: Share, folder: ServerFolder, stopped: threading.Event
    ) -> None:
        self._ray, self._share, self._folder, self._stopped = ray, share, folder, stopped
        self._actor: Any = None
        self._is_idle = False
        """Whether the actor has sent nothing since its last job."""

    @job
    def run(
        self, job: Job, may_go_on: Callable[[], bool]
    ) -> Generator[Event, None, dict[str, Any] | None]:
        """Run a job. The result is None if `may_go_on`, which is asked all the time, said no.

        Raises the errors of the job, and `WorkerLost` if the actor or its machine was lost.
        """
        self._folder.check_space()
        arrival = _Arrival(self._folder, job.id)
        messages = self._messages(job, may_go_on)
        try:
            with arrival, self._explained(arrival):
                for message in messages:
                    yield from arrival.events(message)
        except _Stopped:
            return None
        finally:
            messages.close()
        return arrival.result

    def close(self) -> None:
        """End the actor."""
        if self._actor is not None:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(self._actor)
            self._actor = None

    def _messages(self, job: Job, may_go_on: Callable[[], bool]) -> Generator[Message, None, None]:
        """What the actor sends, or a new one if it was lost since its last job. Raises `_Stopped`,
        and the exceptions of Ray."""
        self._is_idle = self._actor is not None
        try:
            yield from self._follow(job, may_go_on)
        except self._ray.exceptions.RayActorError:
            if not self._is_idle:
                raise
            self.close()
            yield from self._follow(job, may_go_on)

    def _follow(self, job: Job, may_go_on: Callable[[], bool]) -> Generator[Message, None, None]:
        stream, begin = self._start(job), time.monotonic()
        patience, has_ended = _PATIENCE_SECONDS, False
        try:
            while may_go_on():
                ready, _ = self._ray.wait([stream], timeout=_TICK_SECONDS, fetch_local=False)
                if ready:
                    patience = math.inf
                    try:
                        message = self._ray.get(next(stream))
                    except StopIteration:
                        has_ended = True
                        return
                    self._is_idle = False
                    yield message
                elif time.monotonic() - begin > patience:
                    patience = math.inf
                    yield Events(events=[Note(text=_WAITING)])
            raise _Stopped
        except self._ray.exceptions.RayError:  # the last message
            has_ended = True
            raise
        finally:
            if not has_ended:
                self._stop(stream)

    def _start(self, job: Job) -> Any:
        """The messages of the actor as a stream of Ray. The actor is started if there is none."""
        if self._actor is None:
            placed = self._ray.remote(max_concurrency=2)(RayActor).options(
                num_cpus=self._share.cpus, num_gpus=self._share.gpus
            )
            self._actor = placed.remote(self._folder.limits, installed_version("recast"))
        run = self._actor.run.options(num_returns="streaming")
        return run.remote(job.kind, job.id, job.request, [*_files_of(job, self._folder)])

    def _stop(self, stream: Any) -> None:
        """Stop the job of the actor; an actor that takes too long is ended."""
        seconds = _END_SECONDS if self._stopped.is_set() else _CANCEL_SECONDS
        end = time.monotonic() + seconds
        waiting = [self._actor.stop.remote(), stream]
        while waiting:
            left = max(0.0, end - time.monotonic())
            ready, _ = self._ray.wait(waiting, timeout=left, fetch_local=False)
            if not ready or not left:
                self.close()
                return
            try:
                if ready[0] is not stream:
                    raise StopIteration
                next(stream)
            except (StopIteration, self._ray.exceptions.RayError):
                waiting.remove(ready[0])

    @contextmanager
    def _explained(self, arrival: "_Arrival") -> Iterator[None]:
        """In the body, an exception of Ray becomes that of the job, or `WorkerLost`."""
        try:
            yield
        except self._ray.exceptions.RayError as error:
            cause = cause_of(self._ray, error)
            if isinstance(cause, RecastError):
                raise RunFailed(arrival.translate(str(cause))) from error
            if cause is not error:
                raise cause from error
            self.close()
            if arrival.node is None:
                reason = reason_of(Exception(str(error).strip().rpartition("\n")[2]))
                raise RunFailed(
                    f"the Ray cluster could not start a worker ({reason}); each of its machines "
                    "needs Recast in the version of the server"
                ) from error
            raise WorkerLost(
                "the worker of the Ray cluster that ran this job was lost, with its process or its "
                f"machine ({type(error).__name__})"
            ) from error


class _Stopped(Exception):
    """The job must not go on."""


class _Arrival(AbstractContextManager["_Arrival"]):
    """What arrives of a job. At the end of the context the files have their names in the server's
    folder; after an exception they are removed."""

    def __init__(self, folder: ServerFolder, id: str) -> None:
        self._folder, self._id = folder, id
        self._files = ExitStack()
        self._opened: dict[Path, Path] = {}
        self.node: str | None = None
        """The folder of the job on the machine of the actor, once the job runs there."""
        self.result: dict[str, Any] | None = None

    def __exit__(self, *error: Any) -> bool | None:
        return self._files.__exit__(*error)

    def events(self, message: Message) -> Iterator[Event]:
        """The events of a message. Raises `BadCall` for a file that is no result of the job."""
        match message:
            case Begun():
                self.node = message.root
            case Events():
                for event in message.events:
                    if isinstance(event, Note):
                        yield Note(text=self.translate(event.text))
                    else:
                        yield event
            case FilePart():
                append(self._place(message.name), message.data)
            case Finished():
                self.result = self.translate(message.result)

    def translate(self, value: Any) -> Any:
        """JSON types, with paths in the folder of the server for those in the folder of the job."""
        match value:
            case str() if self.node is not None:
                return value.replace(self.node, str(self._folder.root))
            case list():
                return [self.translate(item) for item in value]
            case dict():
                return {name: self.translate(item) for name, item in value.items()}
        return value

    def _place(self, name: str) -> Path:
        """Where a file of the actor's folder is written until the end of the context."""
        path = self._folder.root / checked_name(name)
        result, motion = self._folder.job(self._id) / RESULT, self._folder.motion(self._id)
        if path == motion:
            return self._open(motion, atomic)
        if result in path.parents:
            return self._open(result, atomic_folder) / path.relative_to(result)
        raise BadCall(f"a worker sent {name}, which is no result of its job")

    def _open(self, path: Path, kind: Callable[[Path], AbstractContextManager[Path]]) -> Path:
        if path not in self._opened:
            self._opened[path] = self._files.enter_context(kind(path))
        return self._opened[path]


def _files_of(job: Job, folder: ServerFolder) -> Iterator[FilePart]:
    """The files that a job names. Raises `BadCall` for one that does not exist any more."""
    for field in ("clip", "result"):
        if field in job.request:
            yield from parts_of(folder.root, clip_path(folder, job.request[field]))
    mask = folder.job(job.id) / MASK
    if job.request.get("mask") == DRAWN and mask.is_file():
        yield from parts_of(folder.root, mask)
