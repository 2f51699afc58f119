"""Short runs of a method on a tiny model, from a clip to latents."""

from typing import Any

from torch import Tensor

from recast.backbones.base import Backbone
from recast.motions.method import MotionMethod, Sampling
from recast.motions.motion import Motion

from .inputs import square_clip

SAMPLING = Sampling(steps=4, guidance_scale=3.0, seed=5)
TWO_STEPS = Sampling(steps=2, guidance_scale=3.0, seed=5)


def learn(
    method: MotionMethod[Any],
    backbone: Backbone,
    prompt: str = "a square",
    sampling: Sampling = SAMPLING,
) -> Motion:
    """The motion of a moving square."""
    return method.learn(backbone, square_clip(backbone), prompt, sampling).run()


def transfer(
    method: MotionMethod[Any], backbone: Backbone, motion: Motion, sampling: Sampling = SAMPLING
) -> Tensor:
    """The latents of a new clip with this motion."""
    return method.transfer(backbone, motion, "a cat", sampling).run()
