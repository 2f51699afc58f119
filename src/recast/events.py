"""What a running job tells its watcher: CLI, web page and benchmark draw the same events.

A job is a generator of these. Closing the generator cancels the job.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One unit of work is done: `index` of `total` (from 1) of the named stage."""

    stage: str
    index: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """The clean estimate so far, as latents (1, C, F, H, W); decoding it is up to the watcher."""

    stage: str
    index: int
    latents: Any
    memory: Mapping[str, Any] = field(default_factory=dict)
    """Tensors that a broken-off transfer needs beside them, where it can go on from here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """How far a job is that can go on from there: `state` is what it would need."""

    index: int
    state: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """Something the user should know: what was fitted, cut, ignored or recovered."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """The last event of every job, with what it made."""

    result: Any


Event = Step | Preview | Checkpoint | Note | Done
