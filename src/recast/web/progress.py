"""The progress of a job as JSON, from the events of its work.

This module owns what a page can know about a running job: stage, step, seconds left in the stage,
losses and notes. It refuses to know where that is kept.
"""

import time
from collections.abc import Callable
from typing import Any

from recast.events import Event, Note, Preview, Step

_MAX_LOSSES = 400
"""Largest number of losses that are kept; above it, every second one is left out."""
_MAX_NOTES = 40


class Progress:
    """The progress so far, which `add` updates with each event."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._stage_began = self._last = clock()
        self._stage, self._index, self._total = "start", 0, 0
        self._first = 0
        self._stride, self._steps_with_loss = 1, 0
        self._losses: list[tuple[int, float]] = []
        self._notes: list[str] = []
        self.previews = 0
        """The number of previews that were written."""

    def add(self, event: Event) -> None:
        """Take an event into account."""
        match event:
            case Step():
                self._step(event)
            case Note() if event.text not in self._notes and len(self._notes) < _MAX_NOTES:
                self._notes.append(event.text)
            case Preview():
                self._last = self._clock()

    def as_json(self) -> dict[str, Any]:
        """The progress as JSON types."""
        return {
            "stage": self._stage,
            "index": self._index,
            "total": self._total,
            "seconds": round(self._clock() - self._began, 1),
            "seconds_left": self._seconds_left(),
            "losses": list(self._losses),
            "notes": list(self._notes),
            "previews": self.previews,
        }

    def _step(self, event: Step) -> None:
        now = self._clock()
        if event.stage != self._stage or event.index <= self._index:
            self._stage, self._stage_began = event.stage, self._last
            self._first = event.index - 1  # a resumed stage does not begin at its first step
        self._index, self._total, self._last = event.index, event.total, now
        if "loss" in event.metrics:
            self._add_loss(float(event.metrics["loss"]))

    def _add_loss(self, loss: float) -> None:
        if self._steps_with_loss % self._stride == 0 and abs(loss) < float("inf"):
            self._losses.append((self._steps_with_loss, loss))
        self._steps_with_loss += 1
        if len(self._losses) > _MAX_LOSSES:
            self._losses, self._stride = self._losses[::2], 2 * self._stride

    def _seconds_left(self) -> float | None:
        """Seconds until the end of the stage at the mean pace of its steps; None before the first
        one."""
        done = self._index - self._first
        if done < 1 or not self._total:
            return None
        pace = (self._last - self._stage_began) / done
        waited = self._clock() - self._last
        return round(max(0.0, pace * (self._total - self._index) - waited), 1)
