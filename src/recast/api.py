"""Recast from Python: load or wrap a model, learn a motion, transfer it, mix it with others.

These functions return when their work is done. They call `on_event` with each event of the work,
and an exception in it stops the work. `recast.pipeline.stages` has the same work as jobs, to
iterate over. This module refuses to know the order of a run.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recast.backbones.base import Backbone
from recast.errors import BadCall
from recast.events import Event
from recast.media.video import Video
from recast.motions.motion import Motion
from recast.pipeline import stages
from recast.pipeline.config import Draw
from recast.pipeline.defaults import AUTO, default_method
from recast.pipeline.method_presets import (
    config_of_motion,
    configure,
    default_config,
    method_of_config,
    presets,
)
from recast.pipeline.model_loading import load, wrap
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.source_clip import Source

__all__ = ["learn", "load", "mix", "presets", "transfer", "wrap"]

OnEvent = Callable[[Event], object]


def learn(
    backbone: Backbone,
    clip: Video | Sequence[Video],
    *,
    method: str = AUTO,
    config: Any = None,
    steps: int | None = None,
    source: Source | None = None,
    store: MotionCache | None = None,
    on_event: OnEvent | None = None,
) -> Motion:
    """Learn the motion of a clip, or of several clips that show the same motion.

    A motion that was learned before is loaded from the motion store; `store` replaces the default
    one. The clip is cut and fitted as `source` says, by default to the length, rate and size on
    which the model was trained. `config` is the config of the method, by default that of the preset
    which was measured on the model, or else the published numbers; a note says which preset it is.
    The method "auto" is the one to which `config` belongs, or without a config the default for the
    model. `steps` is the number of sampling steps of the transfers that will use the motion. Raises
    `RecastError`.
    """
    if method == AUTO:
        method = default_method(backbone.name) if config is None else method_of_config(config)
    named = config is not None
    config = config if named else default_config(method, backbone.name)
    clips = [clip] if isinstance(clip, Video) else list(clip)
    work = stages.learn_motion(
        backbone,
        configure(method, config),
        clips,
        source or Source(),
        steps=steps,
        cache=store,
        preset_named=named,
    )
    return work.run(on_event)


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
    on_event: OnEvent | None = None,
) -> Video:
    """Make a new clip with a motion. The `notes` of the clip say what the user should know.

    By default, `config` and `steps` are those with which the motion was learned, and
    `guidance_scale` is that of the config if it names one, or else that of the model. `mask` is for
    methods that take one: it is true where the result may differ from the source, (F, H, W) in
    pixels of the fitted clip; or it is a text as for `recast transfer --mask`. `frames` is a number
    of frames other than that of the motion, for methods that can stretch it. Raises `RecastError`.
    """
    draw = Draw(
        seed=seed, steps=steps, guidance_scale=guidance_scale, negative_prompt=negative_prompt
    )
    work = stages.transfer_motion(
        backbone, motion, prompt, config=config, draw=draw, mask=mask, frames=frames
    )
    return work.run(on_event)


def mix(motions: Sequence[Motion], weights: Sequence[float]) -> Motion:
    """The weighted sum of motions, which one method learned on the same weights of a model.

    Raises `BadCall` for other motions, and for weights that do not match the motions.
    """
    if not motions or len(motions) != len(weights):
        raise BadCall(
            "a mix needs at least one motion and one weight for each motion, got "
            f"{len(motions)} motions and {len(weights)} weights"
        )
    if not all(math.isfinite(weight) for weight in weights) or not any(weights):
        raise BadCall(f"`weights` must be finite numbers that are not all 0, got {list(weights)}")
    first = motions[0]
    return configure(first.method, config_of_motion(first)).mix(motions, weights)
