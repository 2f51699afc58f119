"""What the terminal shows: a bar for each stage, notes and errors on stderr, answers on stdout.

Draws events and decides nothing. The library names fields in backticks, such as `frames` or
`offload=networks`; here they become the flags that set them.
"""

import re
import sys
import time
from collections.abc import Iterator
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


def say(text: str) -> None:
    """One answer on stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """One line on stderr, whatever line breaks the text has."""
    sys.stderr.write(f"recast: {' '.join(with_flags(text).split())}\n")


def with_flags(text: str) -> str:
    """The text, with every field in backticks written as its flag: `window` as --window,
    `offload=networks` as --offload networks, `vae_tiling=True` as --vae-tiling."""

    def flag(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), match[2]
        return f"--{name}" if value in (None, "True") else f"--{name} {value}"

    return re.sub(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`", flag, text)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """On a terminal, show that work goes on whose end is not known."""
    with Console(stderr=True).status(text):
        yield


def show(work: Job[T]) -> T:
    """Draw a job to its end and return its result. Leaving early stops the job."""
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
    """One bar for each stage on a terminal; elsewhere one line when a stage is done."""

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
        # Shown between the stages: loading a model or decoding a clip reports only its end.
        self._between = self._progress.add_task("working", total=None, extra="")
        self._tasks: dict[str, TaskID] = {}
        self._began = time.monotonic()

    def __enter__(self) -> "_Bars":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.update(self._between, visible=False)
        self._progress.stop()

    def step(self, event: Step) -> None:
        """Move the bar of the event's stage."""
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
        if extra:  # levels without guidance report none; the last loss stays
            self._progress.update(task, extra=extra)
        self._progress.reset(self._between, visible=finished, extra="")

    def _line(self, event: Step, extra: str) -> None:
        seconds = time.monotonic() - self._began
        parts = [f"{event.stage} {event.index}/{event.total}", f"{seconds:.1f} s", extra]
        self._console.print(", ".join(part for part in parts if part), markup=False)
