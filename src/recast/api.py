"""Recast from Python: load or wrap a model, learn a motion, transfer it, mix it with others.

Each runs to its end; `on_event` sees every event on the way, and raising in it stops the work.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from recast.backbones.base import Backbone, Settings
from recast.errors import BadCall
from recast.events import Event, Job
from recast.media.video import Video
from recast.motions.method import Sampling
from recast.motions.motion import Motion
from recast.pipeline import default_method, edit_mask, model_loading, source_clip
from recast.pipeline.config import check_prompt, check_steps
from recast.pipeline.model_loading import load, presets, wrap
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.run import stretched, with_clip_metadata
from recast.pipeline.run_log import RunLog, learn_or_load, memory_errors
from recast.pipeline.source_clip import Source

__all__ = ["learn", "load", "mix", "presets", "transfer", "wrap"]

T = TypeVar("T")
Watch = Callable[[Event], object]


def learn(
    backbone: Backbone,
    clip: Video | Sequence[Video],
    *,
    method: str = default_method.AUTO,
    config: Any = None,
    steps: int | None = None,
    source: Source | None = None,
    store: MotionCache | None = None,
    on_event: Watch | None = None,
) -> Motion:
    """The motion of a clip, or of several that share it, from the store if it was learned before.

    The clip is cut and fitted as `source` says, by default to what the model was made for.
    The method "auto" is that of the `config`, or without one what did best where it was measured.
    `config` is the method's own, by default its first preset; `steps` are the sampling steps that
    the motion will be used with. Raises `RecastError`.
    """
    check_steps(steps)
    method = (
        default_method.for_backbone(backbone, config) if method == default_method.AUTO else method
    )
    source, config = source or Source(), model_loading.preset(method) if config is None else config
    made = model_loading.configured(method, config)
    given = [clip] if isinstance(clip, Video) else list(clip)
    model_loading.check_clips(made, len(given))
    fitted = [source_clip.suit(one, source, backbone) for one in given]
    sampling = _sampling(backbone, steps, None, "", 0)
    log = RunLog()
    if source.source_prompt:
        backbone.check_prompt(source.source_prompt)
    with memory_errors(log, Settings()):
        events = learn_or_load(
            log,
            backbone,
            made,
            fitted,
            source.source_prompt,
            sampling,
            store or MotionCache.default(),
        )
        motion = Job(events).run(on_event)
    return with_clip_metadata(motion, given[0], fitted[0], "clip in memory", source, config)


def transfer(
    backbone: Backbone,
    motion: Motion,
    prompt: str,
    *,
    config: Any = None,
    negative_prompt: str = "",
    seed: int = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    mask: NDArray[np.bool_] | str | None = None,
    frames: int | None = None,
    on_event: Watch | None = None,
) -> Video:
    """A new clip with the motion. Its `notes` say what the user should know.

    By default `config` and `steps` are those the motion was learned with. A `mask` says where the
    result may differ from the source, for methods that take one: (F, H, W) in pixels of the fitted
    clip, or what `recast transfer --mask` takes. Other `frames` than the motion's own are for
    methods that can stretch it. Raises `RecastError`.
    """
    check_prompt(prompt)
    check_steps(steps)
    motion.check_compatible(backbone, motion.method)
    made = model_loading.configured(motion.method, config_of(motion) if config is None else config)
    if frames is not None:
        motion = stretched(motion, made, frames)
    model_loading.check_windows(made, backbone, motion.size)
    own = int(motion.metadata.get("steps", backbone.defaults.steps))
    sampling = _sampling(backbone, steps or own, guidance_scale, negative_prompt, seed)
    texts = [text for text in made.format_prompts(prompt, negative_prompt) if text]
    log = RunLog(notes=[note for text in texts for note in backbone.check_prompt(text)])
    facts: Mapping[str, Any] = motion.metadata.get("clip", {})
    with memory_errors(log, Settings()):
        if isinstance(mask, str):
            edit_mask.check(mask, made, motion.source_prompt)
            mask = edit_mask.made(mask, backbone, motion, prompt, seed)
        if mask is not None:
            motion = edit_mask.applied(mask, made, motion)
        with log.timed("sample"):
            events = log.record(made.transfer(backbone, motion, prompt, sampling))
            latents = Job(events).run(on_event)
        with log.timed("decode"):
            events = log.record(backbone.finish(latents, prompt, seed))
            pixels = Job(events).run(on_event)
    fps = float(facts.get("fps", backbone.defaults.fps)) * backbone.frame_multiplier
    video = source_clip.to_video(pixels, fps)
    return Video(video.frames, video.fps, tuple(dict.fromkeys(log.notes)))


def mix(motions: Sequence[Motion], weights: Sequence[float]) -> Motion:
    """The weighted sum of motions of one method on the same weights. Raises `BadCall`."""
    if not motions or len(motions) != len(weights):
        raise BadCall(
            f"{len(motions)} motions and {len(weights)} weights; give each motion one weight"
        )
    if not all(math.isfinite(weight) for weight in weights) or not any(weights):
        raise BadCall(f"weights {list(weights)}; they must be numbers, and not all be 0")
    method = model_loading.configured(motions[0].method, config_of(motions[0]))
    return method.mix(motions, weights)


def config_of(motion: Motion) -> Any:
    """The method's config that a motion was learned with, or the method's default."""
    told = motion.metadata.get("config")
    if not isinstance(told, Mapping):
        return model_loading.preset(motion.method)
    kind = model_loading.method_module(motion.method).Config
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in told.items()})
    except TypeError as error:
        raise BadCall(
            f"the motion holds settings that {motion.method} does not have ({error}); "
            "learn it again with this version"
        ) from error


def _sampling(
    backbone: Backbone, steps: int | None, scale: float | None, negative: str, seed: int
) -> Sampling:
    own = backbone.defaults
    return Sampling(
        steps=own.steps if steps is None else steps,
        guidance_scale=own.guidance_scale if scale is None else scale,
        negative_prompt=negative,
        seed=seed,
    )
