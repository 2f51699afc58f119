"""How long work reports its progress: as a `Job`, which yields events and ends with a result.

    job = run.transfer(config)  # from recast.pipeline import run
    for event in job:
        show(event)
    print(job.result.folder)

Everything in Recast that takes longer than a moment is a job: learning a motion, sampling a clip, a
whole run, a benchmark, a training. Every caller receives the same events. The decorator `job` turns
a generator function into one that returns a job. This module refuses to know how events are
displayed.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec, TypeVar, final

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The end of one step of a stage: step `index` of `total`, counted from 1."""

    stage: str
    index: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers about the step, such as its loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """The current estimate of the result, as latents (1, C, F, H, W) that are not decoded yet."""

    stage: str
    index: int
    """The step of the stage, counted from 1."""
    latents: Any
    memory: Mapping[str, Any] = field(default_factory=dict)
    """Tensors that an interrupted transfer needs besides the latents to resume at this step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The work can resume from now on, if it is interrupted."""

    index: int
    """The step of the work, counted from 1."""
    state: Callable[[], Any]
    """Copies what the work needs to resume from the last step that it has finished at the time of
    the call; for learning it is a `Motion`. It may also be called after the work was stopped. None
    if the work was stopped in the middle of a change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """A sentence that the user should know, for example what was fitted, cut or ignored."""

    text: str


Event = Step | Preview | Checkpoint | Note


@final
class Job(Generator[Event, None, T]):
    """Work in progress: iterate over it to receive its events, then read `result`.

    Inside another job, `result = yield from job` passes the events on. The work begins with the
    first event. Closing the job stops the work, which then leaves no partial file behind.
    """

    def __init__(self, events: Generator[Event, None, T]) -> None:
        self._events = events
        self._outcome: list[T] = []

    @classmethod
    def finished(cls, result: T) -> "Job[T]":
        """A job without events that has this result."""

        def nothing() -> Generator[Event, None, T]:
            yield from ()
            return result

        return cls(nothing())

    @property
    def result(self) -> T:
        """The result of the work. Raises `RuntimeError` before the end of the work."""
        if not self._outcome:
            raise RuntimeError("the job has not ended; iterate over it to its end, or call run()")
        return self._outcome[0]

    def run(self, on_event: Callable[[Event], object] | None = None) -> T:
        """Do the work to its end, call `on_event` with each event, and return the result.

        An exception in `on_event` stops the work and is raised.
        """
        try:
            for event in self:
                if on_event is not None:
                    on_event(event)
        finally:
            self.close()
        return self.result

    def send(self, value: None) -> Event:
        """Advance to the next event, as `Generator.send` does."""
        return self._advance(lambda: self._events.send(value))

    def throw(self, typ: Any, val: Any = None, tb: Any = None, /) -> Event:
        """Raise an exception inside the work, as `Generator.throw` does."""
        error = typ if val is None else val
        return self._advance(lambda: self._events.throw(error))

    def _advance(self, step: Callable[[], Event]) -> Event:
        try:
            return step()
        except StopIteration as end:
            if not self._outcome:
                self._outcome.append(end.value)
            raise StopIteration(self._outcome[0]) from None

    def close(self) -> None:
        """Stop the work."""
        self._events.close()


def job(work: Callable[P, Generator[Event, None, T]]) -> Callable[P, Job[T]]:
    """Decorator for a generator function that yields events: it returns a `Job` instead."""

    @wraps(work)
    def create(*args: P.args, **kwargs: P.kwargs) -> Job[T]:
        return Job(work(*args, **kwargs))

    return create
