"""Learning a motion through the motion cache: found there, resumed, or learned anew and kept.

Learning that is interrupted leaves a checkpoint in the cache, from which the same call resumes. A
cache that cannot be read or written costs time, never the run.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.errors import BadMotion, RecastError
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
    """What a method learns from, in the order in which `MotionMethod.learn` takes it."""

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
    """The motion of fitted clips: from the cache, else learned and kept there.

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
        given = LearningInput(backbone, video, source_prompt, sampling)
        with log.counted("learn", backbone):
            motion = yield from _learn_or_resume(log, method, given, cache, f"{key}-begun")
        log.origin = "clip"
        problem = _keep(cache, key, motion)
        cache.drop(f"{key}-begun")
        if problem:
            yield log.note(problem)
        return motion


def _learn_or_resume(
    log: RunLog, method: MotionMethod[Any], given: LearningInput, cache: MotionCache, key: str
) -> Generator[Event, None, Motion]:
    """What a method learns, from the checkpoint under `key` if the cache has one."""
    checkpoint, problem = _cached(cache, key)
    if problem:
        yield log.note(problem)
    if checkpoint is not None:
        yield log.note("resuming interrupted learning")
        cost = _CostMeter(given.backbone, checkpoint.metadata.get("cost", _NO_COST))
        try:
            work = method.resume_learning(checkpoint, *given)
            return (yield from _with_checkpoints(log, work, cost, cache, key))
        except BadMotion as error:
            cache.drop(key)
            yield log.note(f"the checkpoint cannot be used, so learning starts anew: {error}")
    cost = _CostMeter(given.backbone, _NO_COST)
    return (yield from _with_checkpoints(log, method.learn(*given), cost, cache, key))


class _CostMeter:
    """What work has cost since the meter was made, added to what was spent before."""

    def __init__(self, backbone: Backbone, spent: Cost) -> None:
        self._backbone, self._spent = backbone, spent
        self._nfe, self._start = backbone.nfe, time.monotonic()

    def read(self) -> Cost:
        """Network calls and seconds."""
        seconds = self._spent["seconds"] + time.monotonic() - self._start
        return {
            "network_calls": self._spent["network_calls"] + self._backbone.nfe - self._nfe,
            "seconds": round(seconds, 3),
        }


def _with_checkpoints(
    log: RunLog, work: Job[Motion], cost: _CostMeter, cache: MotionCache, key: str
) -> Generator[Event, None, Motion]:
    """The motion that learning ends in, while its checkpoints are kept in the cache. Both hold what
    they cost."""
    costs: dict[int, Cost] = {}

    @job
    def priced() -> Generator[Event, None, Motion]:
        with closing(work):
            for event in work:
                if isinstance(event, Checkpoint):
                    costs[event.index] = cost.read()
                yield event
        return work.result

    def keep(checkpoint: Checkpoint) -> str:
        state = _with_cost(checkpoint.state, costs[checkpoint.index])
        problem = _keep(cache, key, state, sole=True)
        return f"learning that is interrupted will start anew: {problem}" if problem else ""

    motion = yield from log.record(autosave(priced(), Checkpoint, keep, cache.autosave_seconds))
    return _with_cost(motion, cost.read())


def _with_cost(motion: Motion, cost: Cost) -> Motion:
    return replace(motion, metadata={**motion.metadata, "cost": cost})


@job
def autosave(
    work: Job[T], kind: type[E], keep: Callable[[E], str | None], every: float
) -> Generator[Event, None, T]:
    """The same job, whose newest event of a kind is kept every so many seconds, and when the work
    is interrupted. A problem that `keep` returns is noted, once."""
    newest: E | None = None
    noted: set[str] = set()
    last = time.monotonic()
    try:
        for event in work:
            if isinstance(event, kind):
                newest = event
            yield event
            if newest is not None and time.monotonic() - last > every:
                problem = keep(newest)
                newest, last = None, time.monotonic()
                if problem and problem not in noted:
                    noted.add(problem)
                    yield Note(text=problem)
        newest = None
        return work.result
    finally:
        work.close()
        if newest is not None:
            keep(newest)


def _cached(cache: MotionCache, key: str) -> tuple[Motion | None, str]:
    """The entry, or what the user should know about why there is none."""
    try:
        return cache.get(key), ""
    except BadMotion:
        return None, "the stored motion of this clip was damaged and is learned again"
    except OSError as error:
        return None, f"the motion store {cache.folder} cannot be read ({error.strerror})"


def _keep(cache: MotionCache, key: str, motion: Motion, *, sole: bool = False) -> str:
    """What the user should know about why the motion is not kept; empty where it is."""
    try:
        is_kept = cache.put(key, motion, sole=sole)
    except (OSError, RecastError) as error:
        return f"the motion could not be kept in the store {cache.folder}: {error}"
    if is_kept or not cache.cap:
        return ""
    size, cap = (f"{count / 1e6:,.1f} MB" for count in (size_of(motion), cache.cap))
    return (
        f"the motion takes {size}, more than the whole motion store may take ({cap}, set by "
        "RECAST_STORE_CAP), so it is not kept"
    )
