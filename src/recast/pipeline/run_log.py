"""What `run` and the Python functions share: loading, learning through the store, and the account
of a job (notes, timings, losses) that ends up in the manifest.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from recast.backbones.base import Backbone, Settings
from recast.errors import BadMotion, OutOfMemory, RecastError
from recast.events import Checkpoint, Event, Job, Note, Step, job
from recast.media.video import Video
from recast.motions.method import MotionMethod, Sampling
from recast.motions.motion import Motion
from recast.pipeline import memory_estimate, model_loading, source_clip
from recast.pipeline.motion_cache import MotionCache, motion_key, size_of

E = TypeVar("E")
T = TypeVar("T")
Cost = Mapping[str, Any]
_NOTHING: Cost = MappingProxyType({"network_calls": 0, "seconds": 0.0})
"""What learning has cost at its start."""
_KEPT_EVERY = 60.0
"""Seconds between two states that a long job keeps of itself."""


@dataclass(slots=True)
class RunLog:
    """The account of one job while it runs."""

    notes: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by stage."""
    losses: list[dict[str, float]] = field(default_factory=list)
    """What the method reported at each step of a transfer."""
    nfe: int = 0
    """Clips that went through the network while learning."""
    origin: str = "file"
    """Where the motion came from: "file", "store" or "clip"."""
    stage: str = "load"
    size: tuple[int, int, int] | None = None
    """Frames, height and width, once they are known."""

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the body's time as this stage's."""
        self.stage, began = stage, time.monotonic()
        yield
        self.timings[stage] = round(time.monotonic() - began, 3)

    def note(self, text: str) -> Note:
        """Keep a note and make the event that tells it."""
        self.notes.append(text)
        return Note(text=text)

    def load(self, name: str, settings: Settings) -> Generator[Event, None, Backbone]:
        """Load a backbone as a stage. Raises `OutOfMemory` before it reads weights that the device
        cannot hold."""
        with self.timed("load"):
            backbone = memory_estimate.load(name, settings)
        yield Step(stage="load", index=1, total=1)
        return backbone

    def record(self, work: Job[T]) -> Generator[Event, None, T]:
        """Pass a job's events on, keep account of them, and return its result."""
        with closing(work):
            for event in work:
                if isinstance(event, Note):
                    self.notes.append(event.text)
                if isinstance(event, Step) and self.stage == "sample" and event.metrics:
                    self.losses.append({"step": event.index, **event.metrics})
                yield event
        return work.result


def learn_or_load(
    log: RunLog,
    backbone: Backbone,
    method: MotionMethod[Any],
    fitted: Sequence[Video],
    prompt: str,
    sampling: Sampling,
    store: MotionCache,
) -> Generator[Event, None, Motion]:
    """The motion of a fitted clip, or of several: from the store, else learned and kept there.
    Learning that was broken off goes on."""
    model_loading.check_runs(method, backbone)
    model_loading.check_described(method, prompt)
    first, *others = fitted
    log.size = (len(first), first.height, first.width)
    model_loading.check_windows(method, backbone, log.size)
    frames = np.stack([clip.frames for clip in fitted]) if others else first.frames
    key = motion_key(frames, backbone, method, prompt, sampling.steps)
    with log.timed("learn"):
        motion, trouble = _stored(store, key)
        if trouble:
            yield log.note(trouble)
        if motion is not None:
            log.origin = "store"
            return motion
        before = backbone.nfe
        video = torch.cat([source_clip.to_tensor(clip) for clip in fitted])
        asked = (backbone, video, prompt, sampling)
        motion = yield from _taught(log, method, asked, store, f"{key}-begun")
        log.nfe, log.origin = backbone.nfe - before, "clip"
        trouble = _keep(store, key, motion)
        store.drop(f"{key}-begun")
        if trouble:
            yield log.note(trouble)
        return motion


def _taught(
    log: RunLog,
    method: MotionMethod[Any],
    asked: tuple[Backbone, Tensor, str, Sampling],
    store: MotionCache,
    key: str,
) -> Generator[Event, None, Motion]:
    """What a method learns, from where it was broken off if that is in the store under `key`."""

    def followed(work: Job[Motion], spent: Cost) -> Generator[Event, None, Motion]:
        return (yield from _with_checkpoints(log, work, _meter(asked[0], spent), store, key))

    begun, trouble = _stored(store, key)
    if trouble:
        yield log.note(trouble)
    if begun is not None:
        yield log.note("goes on with learning that was broken off")
        try:
            spent = begun.metadata.get("cost", _NOTHING)
            return (yield from followed(method.resume_learning(begun, *asked), spent))
        except BadMotion as error:
            store.drop(key)
            yield log.note(f"that cannot be taken up, and begins anew: {error}")
    return (yield from followed(method.learn(*asked), _NOTHING))


def _with_checkpoints(
    log: RunLog, work: Job[Motion], meter: Callable[[], Cost], store: MotionCache, key: str
) -> Generator[Event, None, Motion]:
    """The motion that learning ends in; how far it is, is kept in the store. Both know their
    cost."""
    costs: dict[int, Cost] = {}

    @job
    def priced() -> Generator[Event, None, Motion]:
        with closing(work):
            for event in work:
                if isinstance(event, Checkpoint):
                    costs[event.index] = meter()
                yield event
        return work.result

    def keep(reached: Checkpoint) -> str:
        state = _priced(reached.state, costs[reached.index])
        trouble = _keep(store, key, state, sole=True)
        return f"learning that is broken off will begin anew: {trouble}" if trouble else ""

    motion = yield from log.record(autosave(priced(), Checkpoint, keep))
    return _priced(motion, meter())


def _meter(backbone: Backbone, spent: Cost) -> Callable[[], Cost]:
    """Tells what work from now on has cost, on top of what was spent before."""
    before, began = backbone.nfe, time.monotonic()
    return lambda: {
        "network_calls": spent["network_calls"] + backbone.nfe - before,
        "seconds": round(spent["seconds"] + time.monotonic() - began, 3),
    }


def _priced(motion: Motion, cost: Cost) -> Motion:
    return replace(motion, metadata={**motion.metadata, "cost": cost})


@job
def autosave(
    work: Job[T], kind: type[E], keep: Callable[[E], str | None]
) -> Generator[Event, None, T]:
    """The same job; its newest event of a kind is kept once a minute, and when the work is
    interrupted. What `keep` says went wrong is told, once."""
    newest: E | None = None
    told: set[str] = set()
    last = time.monotonic()
    try:
        for event in work:
            if isinstance(event, kind):
                newest = event
            yield event
            if newest is not None and time.monotonic() - last > _KEPT_EVERY:
                trouble = keep(newest)
                newest, last = None, time.monotonic()
                if trouble and trouble not in told:
                    told.add(trouble)
                    yield Note(text=trouble)
        newest = None
        return work.result
    finally:
        work.close()
        if newest is not None:
            keep(newest)


def _stored(store: MotionCache, key: str) -> tuple[Motion | None, str]:
    """The entry, or what the user should know about why there is none."""
    try:
        return store.get(key), ""
    except BadMotion:
        return None, "the stored motion of this clip was damaged and is learned again"
    except OSError as error:
        return None, f"the motion store {store.folder} cannot be read ({error.strerror})"


def _keep(store: MotionCache, key: str, motion: Motion, *, sole: bool = False) -> str:
    """What the user should know about why it is not kept; empty where it is."""
    try:
        kept = store.put(key, motion, sole=sole)
    except (OSError, RecastError) as error:
        return f"the motion could not be kept in the store {store.folder}: {error}"
    if kept or not store.cap:
        return ""
    taken, room = (f"{size / 1e6:,.1f} MB" for size in (size_of(motion), store.cap))
    return (
        f"with {taken} the motion is larger than the whole store may be ({room}, "
        "RECAST_STORE_CAP), so it is not kept"
    )


@contextmanager
def memory_errors(log: RunLog, settings: Settings) -> Iterator[None]:
    """Turn every allocator's complaint into `OutOfMemory`, which says what would help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_memory(error):
            raise
        raise OutOfMemory(_advice(log, settings)) from error


def _is_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # PyTorch has no class of its own for the CPU's and Apple's allocators.
    words = ("DefaultCPUAllocator", "not enough memory", "MPS backend out of memory")
    return any(word in str(error) for word in words)


def _advice(log: RunLog, settings: Settings) -> str:
    ways = []
    if log.size:
        frames, height, width = log.size
        ways.append(
            f"fewer than {frames} --frames or less than {width}x{height} by --width and --height "
            "(activations grow with frames x height x width: half of one is half the memory)"
        )
    if not settings.gradient_checkpointing:
        ways.append("--gradient-checkpointing (more than halves what guided steps need)")
    if settings.dtype in ("auto", "float32"):
        ways.append("--dtype float16, or bfloat16 on a CPU (half of float32)")
    if settings.weights == "full" and settings.offload != "blocks":
        ways.append("--weights int8 (linear layers in 8 bits)")
    if not settings.vae_slicing:
        ways.append("--vae-slicing (decodes one frame at a time)")
    if not settings.vae_tiling:
        ways.append("--vae-tiling (decodes large frames piece by piece)")
    if settings.offload == "none":
        ways.append("--offload networks (only the network at work stays on the device)")
    if settings.weights == "full" and settings.offload != "blocks":
        ways.append("--offload blocks (only its block at work does: slow)")
    return f"the memory did not suffice (stage: {log.stage}); what helps: {'; '.join(ways)}"
