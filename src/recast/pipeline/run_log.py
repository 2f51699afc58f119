"""The account of a run: notes, seconds by stage, losses and network calls, for the manifest.

Also turns the complaints of all memory allocators into one error that says what helps.
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
    """The account of one run while it goes on."""

    notes: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by stage."""
    losses: list[dict[str, float]] = field(default_factory=list)
    """What the method reported at each step of a transfer."""
    network_calls: dict[str, int] = field(default_factory=lambda: {"learn": 0})
    """Network function evaluations by stage: clips that went through the network."""
    origin: str = "file"
    """Where the motion came from: "file", "store" or "clip"."""
    stage: str = "load"
    size: tuple[int, int, int] | None = None
    """Frames, height and width of the clip, once they are known."""

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the seconds of the body as this stage's."""
        self.stage, start = stage, time.monotonic()
        yield
        self.timings[stage] = round(time.monotonic() - start, 3)

    @contextmanager
    def counted(self, stage: str, backbone: Backbone) -> Iterator[None]:
        """Count the network calls of the body as this stage's."""
        before = backbone.nfe
        yield
        self.network_calls[stage] = backbone.nfe - before

    def note(self, text: str) -> Note:
        """Keep a note, and make the event that reports it."""
        self.notes.append(text)
        return Note(text=text)

    def note_each(self, texts: Iterable[str]) -> Iterator[Event]:
        """Note every text once."""
        for text in dict.fromkeys(texts):
            yield self.note(text)

    def load(
        self, name: str, settings: Settings, loaded: Backbone | None
    ) -> Generator[Event, None, Backbone]:
        """The backbone that is `loaded` already, or the named one, loaded as a stage of the run.
        Raises `OutOfMemory` before it reads weights that the device cannot hold."""
        if loaded is not None:
            return loaded
        with self.timed("load"):
            backbone = memory_estimate.load(name, settings)
        yield Step(stage="load", index=1, total=1)
        return backbone

    def record(self, work: Job[T]) -> Generator[Event, None, T]:
        """Pass the events of a job on, keep their notes and losses, and return its result."""
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
    """Turn every allocator's complaint into `OutOfMemory`, which says what would help."""
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
            "grow with frames x height x width: half of one is half the memory)"
        )
    if not settings.gradient_checkpointing:
        remedies.append("`gradient_checkpointing=True` (less than half the memory of guided steps)")
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
        remedies.append("`offload=blocks` (only the active block stays there: slow)")
    return (
        f"the device ran out of memory in the stage {log.stage!r}; what helps: "
        f"{'; '.join(remedies)}"
    )
