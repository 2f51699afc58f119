"""The terminal: a progress bar for each stage, notes and errors on stderr, results on stdout.

This module owns how events and messages are displayed. The library names fields in backticks, such
as `frames` or `offload=networks`, and this module turns them into flags. It refuses to know what
the events mean.
"""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from recast.events import Event, Job, Note, Step

T = TypeVar("T")


def asks_help(argv: Sequence[str]) -> bool:
    """Whether the command line asks for help."""
    return bool({"-h", "--help"} & set(argv))


def say(text: str) -> None:
    """Write one line or more to stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write a text to stderr as one line, with flags in place of fields."""
    sys.stderr.write(f"recast: {' '.join(with_flags(text).split())}\n")


def with_flags(text: str) -> str:
    """The text with each field in backticks as its flag: `window` becomes --window,
    `offload=networks` becomes --offload networks, and `vae_tiling=True` becomes --vae-tiling."""

    def flag(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), match[2]
        return f"--{name}" if value in (None, "True") else f"--{name} {value}"

    return re.sub(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`", flag, text)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """On a terminal, show a spinner with a text while the body runs."""
    with Console(stderr=True).status(text):
        yield


def show(work: Job[T]) -> T:
    """Run a job to its end, display its events, and return its result. An exception or Ctrl-C stops
    the job."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _Bars(console) as bars:

        def draw(event: Event) -> None:
            match event:
                case Step():
                    bars.step(event)
                case Note():
                    console.print(f"note: {with_flags(event.text)}", markup=False)

        return work.run(draw)


class _Bars:
    """On a terminal, a progress bar for each stage; elsewhere, a line at the end of each stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[extra]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
        )
        # For work that reports only its end, such as loading a model or decoding a clip.
        self._between = self._progress.add_task("working", total=None, extra="")
        self._tasks: dict[str, TaskID] = {}
        self._start = time.monotonic()

    def __enter__(self) -> "_Bars":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.update(self._between, visible=False)
        self._progress.stop()

    def step(self, event: Step) -> None:
        """Advance the bar of the event's stage."""
        loss = event.metrics.get("loss")
        extra = "" if loss is None else f"loss {loss:.4g}"
        finished = event.index == event.total
        if not self._live:
            if finished:
                self._line(event, extra)
            return
        if event.stage not in self._tasks or event.index == 1:
            self._tasks[event.stage] = self._progress.add_task(event.stage, total=None, extra="")
        task = self._tasks[event.stage]
        self._progress.update(task, completed=event.index, total=event.total)
        if extra:  # a level without guidance reports no loss; the last loss stays visible
            self._progress.update(task, extra=extra)
        self._progress.reset(self._between, visible=finished, extra="")

    def _line(self, event: Step, extra: str) -> None:
        seconds = time.monotonic() - self._start
        parts = [f"{event.stage} {event.index}/{event.total}", f"{seconds:.1f} s", extra]
        self._console.print(", ".join(part for part in parts if part), markup=False)
