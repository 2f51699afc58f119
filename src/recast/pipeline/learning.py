"""Learning a motion with the motion store: it is loaded from there, or learned and saved there.

This module owns the checkpoints of interrupted learning, from which the same call resumes, and the
cost of learning. A store that cannot be read or written never stops a run: a note says so, and the
motion is learned. It refuses to know what a method learns, and where the store is.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.errors import BadMotion, RecastError, reason_of
from recast.events import Checkpoint, Event, Job, Note, job
from recast.media.video import Video
from recast.motions.method import MotionMethod, Sampling
from recast.motions.motion import Motion
from recast.pipeline import requirements, source_clip
from recast.pipeline.motion_cache import MotionCache, motion_key, size_of
from recast.pipeline.run_log import RunLog

E = TypeVar("E")
T = TypeVar("T")
Cost = Mapping[str, Any]
_NO_COST: Cost = MappingProxyType({"network_calls": 0, "seconds": 0.0})


class LearningInput(NamedTuple):
    """The arguments of `MotionMethod.learn`, in its order."""

    backbone: Backbone
    video: Tensor
    """(N, 3, F, H, W) in [-1, 1], one for each clip."""
    source_prompt: str
    sampling: Sampling


def learn_or_load(
    log: RunLog,
    backbone: Backbone,
    method: MotionMethod[Any],
    clips: Sequence[Video],
    source_prompt: str,
    sampling: Sampling,
    cache: MotionCache,
) -> Generator[Event, None, Motion]:
    """The motion of fitted clips: from the motion store, or else learned and saved there.

    Raises `BadCall` for a method that cannot run on this model or clip.
    """
    first, *others = clips
    log.size = (len(first), first.height, first.width)
    requirements.check_model(method, backbone)
    requirements.check_source_prompt(method, source_prompt)
    requirements.check_windows(method, backbone, log.size)
    frames = np.stack([clip.frames for clip in clips]) if others else first.frames
    key = motion_key(frames, backbone, method, source_prompt, sampling.steps)
    with log.timed("learn"):
        motion, problem = _cached(cache, key)
        if problem:
            yield log.note(problem)
        if motion is not None:
            log.origin = "store"
            return motion
        video = torch.cat([source_clip.to_tensor(clip) for clip in clips])
        inputs = LearningInput(backbone, video, source_prompt, sampling)
        checkpoint_key = f"{key}-begun"
        with log.counted("learn", backbone):
            motion = yield from _learn_or_resume(log, method, inputs, cache, checkpoint_key)
        log.origin = "clip"
        problem = _save(cache, key, motion)
        cache.drop(checkpoint_key)
        if problem:
            yield log.note(problem)
        return motion


def _learn_or_resume(
    log: RunLog, method: MotionMethod[Any], inputs: LearningInput, cache: MotionCache, key: str
) -> Generator[Event, None, Motion]:
    """Learn a motion, beginning with the checkpoint under `key` if the store has one."""
    checkpoint, problem = _cached(cache, key)
    if problem:
        yield log.note(problem)
    if checkpoint is not None:
        yield log.note("resuming interrupted learning")
        cost = _CostMeter(inputs.backbone, checkpoint.metadata.get("cost", _NO_COST))
        try:
            work = method.resume_learning(checkpoint, *inputs)
            return (yield from _with_checkpoints(log, work, cost, cache, key))
        except BadMotion as error:
            cache.drop(key)
            yield log.note(f"the checkpoint cannot be used, so learning begins again: {error}")
    cost = _CostMeter(inputs.backbone, _NO_COST)
    return (yield from _with_checkpoints(log, method.learn(*inputs), cost, cache, key))


class _CostMeter:
    """The cost of learning: what an interrupted run has spent before, plus the cost since the meter
    was created."""

    def __init__(self, backbone: Backbone, previous: Cost) -> None:
        self._backbone, self._previous = backbone, previous
        self._nfe, self._start = backbone.nfe, time.monotonic()

    def read(self) -> Cost:
        """Network calls and seconds so far."""
        seconds = self._previous["seconds"] + time.monotonic() - self._start
        return {
            "network_calls": self._previous["network_calls"] + self._backbone.nfe - self._nfe,
            "seconds": round(seconds, 3),
        }


def _with_checkpoints(
    log: RunLog, work: Job[Motion], cost: _CostMeter, cache: MotionCache, key: str
) -> Generator[Event, None, Motion]:
    """Run `work` to its motion and save its checkpoints in the store. Motion and checkpoints hold
    their cost."""

    def save(checkpoint: Checkpoint) -> str:
        try:
            state = checkpoint.state()
        except RuntimeError as error:  # of a device that has failed
            return f"the state of the learning cannot be read: {reason_of(error)}"
        problem = _save(cache, key, _with_cost(state, cost.read()), sole=True) if state else ""
        return f"if learning is interrupted, it begins again: {problem}" if problem else ""

    motion = yield from log.record(autosave(work, Checkpoint, save, cache.autosave_seconds))
    return _with_cost(motion, cost.read())


def _with_cost(motion: Motion, cost: Cost) -> Motion:
    return replace(motion, metadata={**motion.metadata, "cost": cost})


@job
def autosave(
    work: Job[T], kind: type[E], save: Callable[[E], str | None], every: float
) -> Generator[Event, None, T]:
    """The same job, with its newest event of a kind saved every `every` seconds and when the work
    is interrupted. A problem that `save` returns becomes a note, once."""
    newest: E | None = None
    noted: set[str] = set()
    last = time.monotonic()
    try:
        for event in work:
            if isinstance(event, kind):
                newest = event
            yield event
            if newest is not None and time.monotonic() - last > every:
                problem = save(newest)
                newest, last = None, time.monotonic()
                if problem and problem not in noted:
                    noted.add(problem)
                    yield Note(text=problem)
        newest = None
        return work.result
    finally:
        work.close()
        if newest is not None:
            save(newest)


def _cached(cache: MotionCache, key: str) -> tuple[Motion | None, str]:
    """The entry of a key, or None; and a problem for the user, empty if there is none."""
    try:
        return cache.get(key), ""
    except BadMotion:
        return None, "the stored motion of this clip was damaged, so it is learned again"
    except OSError as error:
        return None, f"the motion store {cache.folder} cannot be read ({error.strerror})"


def _save(cache: MotionCache, key: str, motion: Motion, *, sole: bool = False) -> str:
    """Save a motion in the store; returns a problem for the user, empty if there is none."""
    try:
        is_saved = cache.put(key, motion, sole=sole)
    except (OSError, RecastError) as error:
        return f"the motion could not be saved in the motion store {cache.folder}: {error}"
    if is_saved or not cache.cap:
        return ""
    size, cap = (f"{count / 1e6:,.1f} MB" for count in (size_of(motion), cache.cap))
    return (
        f"the motion takes {size}, more than the whole motion store may take ({cap}, set by "
        "RECAST_STORE_CAP), so it is not saved there"
    )
