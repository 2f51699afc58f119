"""How long work reports: as a `Job`, which yields events and ends in a result.

    job = pipeline.transfer(config)
    for event in job:
        show(event)
    print(job.result.folder)

Everything in Recast that takes longer than a moment is such a job: learning a motion, drawing a
clip, a whole run, a benchmark, a training. The command line, the web page and a stranger's loop
watch the same events. A function with `yield` becomes a job by the decorator `job`.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec, TypeVar, final

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One unit of work is done: `index` of `total` (from 1) of the named stage."""

    stage: str
    index: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """The clean estimate so far, as latents (1, C, F, H, W). Whoever shows it decodes it."""

    stage: str
    index: int
    latents: Any
    memory: Mapping[str, Any] = field(default_factory=dict)
    """Tensors that an interrupted transfer needs besides the latents, where it can resume here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A point from which interrupted work can resume: `state` is what it needs for that."""

    index: int
    state: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """Something the user should know: what was fitted, cut, ignored or recovered."""

    text: str


Event = Step | Preview | Checkpoint | Note


@final
class Job(Generator[Event, None, T]):
    """Work under way: iterate over it for its events, then read `result`.

    Inside another job, `result = yield from job` passes the events on. Closing a job stops the
    work; a job that is stopped leaves no file behind.
    """

    def __init__(self, events: Generator[Event, None, T]) -> None:
        self._events = events
        self._outcome: list[T] = []

    @classmethod
    def finished(cls, result: T) -> "Job[T]":
        """A job that has nothing to report."""

        def nothing() -> Generator[Event, None, T]:
            yield from ()
            return result

        return cls(nothing())

    @property
    def result(self) -> T:
        """What the work made. Raises `RuntimeError` before its end."""
        if not self._outcome:
            raise RuntimeError("the job has not ended; iterate over it to its end, or call run()")
        return self._outcome[0]

    def run(self, on_event: Callable[[Event], object] | None = None) -> T:
        """Work to the end, show every event to `on_event`, and return the result. An exception
        in `on_event` stops the work."""
        try:
            for event in self:
                if on_event is not None:
                    on_event(event)
        finally:
            self.close()
        return self.result

    def send(self, value: None) -> Event:
        """The next event, as a generator gives it."""
        return self._advance(lambda: self._events.send(value))

    def throw(self, typ: Any, val: Any = None, tb: Any = None, /) -> Event:
        """Raise an exception inside the work, as in a generator."""
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
    """Decorator: calling the generator function makes a `Job`, which has not begun yet."""

    @wraps(work)
    def begin(*args: P.args, **kwargs: P.kwargs) -> Job[T]:
        return Job(work(*args, **kwargs))

    return begin
