"""Recast from Python: load or wrap a model, learn a motion, transfer it, mix it with others.

These functions wait for their result. `on_event` sees every event on the way, and raising an
exception in it stops the work. `recast.pipeline` has the same work as jobs to iterate over.
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
from recast.pipeline.default_method import AUTO, default_method
from recast.pipeline.method_presets import config_of_motion, configure, method_of_config, presets
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
    """Learn the motion of a clip, or of several clips that share it.

    A motion that was learned before comes from the motion store. The clip is cut and fitted as
    `source` says, by default to what the model was trained on. The method "auto" is that of the
    `config`, or without one the default for this model. `config` is the method's own config, by
    default its first preset; `steps` is the number of sampling steps that the motion will be used
    with. Raises `RecastError`.
    """
    if method == AUTO:
        method = default_method(backbone.name) if config is None else method_of_config(config)
    clips = [clip] if isinstance(clip, Video) else list(clip)
    work = stages.learn_motion(
        backbone, configure(method, config), clips, source or Source(), steps=steps, cache=store
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
    """Draw a new clip with the motion. Its `notes` say what the user should know.

    By default `config` and `steps` are those that the motion was learned with. A `mask` says where
    the result may differ from the source, for methods that take one: (F, H, W) in pixels of the
    fitted clip, or what `recast transfer --mask` takes. A number of `frames` other than the
    motion's own is for methods that can stretch it. Raises `RecastError`.
    """
    draw = Draw(
        seed=seed, steps=steps, guidance_scale=guidance_scale, negative_prompt=negative_prompt
    )
    work = stages.transfer_motion(
        backbone, motion, prompt, config=config, draw=draw, mask=mask, frames=frames
    )
    return work.run(on_event)


def mix(motions: Sequence[Motion], weights: Sequence[float]) -> Motion:
    """The weighted sum of motions of one method on the same weights. Raises `BadCall`."""
    if not motions or len(motions) != len(weights):
        raise BadCall(
            f"there are {len(motions)} motions and {len(weights)} weights; give each motion one "
            "weight"
        )
    if not all(math.isfinite(weight) for weight in weights) or not any(weights):
        raise BadCall(f"`weights` are {list(weights)}; they must be numbers, and not all be 0")
    first = motions[0]
    return configure(first.method, config_of_motion(first)).mix(motions, weights)
