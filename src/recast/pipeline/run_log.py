"""The log of a run: its notes, seconds by stage, losses and network calls, for the manifest.

This module also owns the message about a device that runs out of memory: whatever an allocator
raises becomes `OutOfMemory`, which names the settings that lower the need. It refuses to know which
stages a run has.
"""

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from recast.backbones.base import Backbone, Settings
from recast.errors import OutOfMemory
from recast.events import Event, Job, Note, Step
from recast.networks.devices import is_out_of_memory
from recast.pipeline import memory_estimate

T = TypeVar("T")


@dataclass(slots=True)
class RunLog:
    """The log of one run, which the stages of the run fill in."""

    notes: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by stage."""
    losses: list[dict[str, float]] = field(default_factory=list)
    """The metrics that the method reported at each step of a transfer, with the step's index."""
    network_calls: dict[str, int] = field(default_factory=lambda: {"learn": 0})
    """Network function evaluations (NFE) by stage: the number of clips that passed through the
    network."""
    origin: str = "file"
    """The origin of the motion: "file", "store" (loaded from the motion store) or "clip" (learned
    in this run)."""
    stage: str = "load"
    """The current stage, or the last one."""
    size: tuple[int, int, int] | None = None
    """Frames, height and width of the clip; None until they are known."""

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Record the seconds of the body under the name of a stage."""
        self.stage, start = stage, time.monotonic()
        yield
        self.timings[stage] = round(time.monotonic() - start, 3)

    @contextmanager
    def counted(self, stage: str, backbone: Backbone) -> Iterator[None]:
        """Record the network calls of the body under the name of a stage."""
        before = backbone.nfe
        yield
        self.network_calls[stage] = backbone.nfe - before

    def note(self, text: str) -> Note:
        """Record a note, and return the event that reports it."""
        self.notes.append(text)
        return Note(text=text)

    def note_each(self, texts: Iterable[str]) -> Iterator[Event]:
        """Record each text as a note, and report it; a repeated text only once."""
        for text in dict.fromkeys(texts):
            yield self.note(text)

    def load(
        self, name: str, settings: Settings, loaded: Backbone | None
    ) -> Generator[Event, None, Backbone]:
        """The model of a run: `loaded` if it is given, otherwise the named one, which is loaded.

        Raises the errors of `memory_estimate.load`.
        """
        if loaded is not None:
            return loaded
        with self.timed("load"):
            backbone = memory_estimate.load(name, settings)
        yield Step(stage="load", index=1, total=1)
        return backbone

    def record(self, work: Job[T]) -> Generator[Event, None, T]:
        """Pass on the events of a job, record its notes and losses, and return its result."""
        with closing(work):
            for event in work:
                if isinstance(event, Note):
                    self.notes.append(event.text)
                if isinstance(event, Step) and self.stage == "sample" and event.metrics:
                    self.losses.append({"step": event.index, **event.metrics})
                yield event
        return work.result


@contextmanager
def explain_memory_errors(log: RunLog, settings: Settings) -> Iterator[None]:
    """Turn the out-of-memory error of any allocator into `OutOfMemory`, which says what helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(_advice(log, settings)) from error


def _advice(log: RunLog, settings: Settings) -> str:
    remedies = []
    if log.size:
        frames, height, width = log.size
        remedies.append(
            f"`frames` below {frames}, or `width` and `height` below {width}x{height} (activations "
            "are proportional to frames x height x width)"
        )
    if not settings.gradient_checkpointing:
        remedies.append("`gradient_checkpointing=True` (guided steps take less than half)")
    if settings.dtype in ("auto", "float32"):
        remedies.append("`dtype=float16`, or bfloat16 on a CPU (half of float32)")
    full_and_whole = settings.weights == "full" and settings.offload != "blocks"
    if full_and_whole:
        remedies.append("`weights=int8` (linear layers in 8 bits)")
    if not settings.vae_slicing:
        remedies.append("`vae_slicing=True` (decodes one frame at a time)")
    if not settings.vae_tiling:
        remedies.append("`vae_tiling=True` (decodes large frames in tiles)")
    if settings.offload == "none":
        remedies.append("`offload=networks` (only the active network stays on the device)")
    if full_and_whole:
        remedies.append(
            "`offload=blocks` (only the active block stays on the device; this is slow)"
        )
    return (
        f"the device ran out of memory in the stage {log.stage!r}; what helps: "
        f"{'; '.join(remedies)}"
    )
