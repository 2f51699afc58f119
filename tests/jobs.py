"""What tests of methods share: a small clip, and running a method from clip to latents."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.events import Job
from recast.motions.method import MotionMethod, Sampling
from recast.motions.motion import Motion

T = TypeVar("T")
SAMPLING = Sampling(steps=4, guidance_scale=3.0, seed=5)


def clip(backbone: Backbone) -> Tensor:
    """A bright square that walks to the right."""
    size = backbone.defaults
    video = torch.full((1, 3, size.frames, size.height, size.width), -0.8)
    for frame in range(size.frames):
        video[..., frame, 4:10, 2 * frame : 2 * frame + 6] = 0.8
    return video


def result(job: Job[T]) -> T:
    """What the job made."""
    return job.run()


def learn(method: MotionMethod[Any], backbone: Backbone, prompt: str = "a square") -> Motion:
    made: Motion = result(method.learn(backbone, clip(backbone), prompt, SAMPLING))
    return made


def transfer(
    method: MotionMethod[Any], backbone: Backbone, motion: Motion, sampling: Sampling = SAMPLING
) -> Tensor:
    latents: Tensor = result(method.transfer(backbone, motion, "a cat", sampling))
    return latents


def hooks(backbone: Backbone) -> int:
    return sum(len(module._forward_hooks) for module in backbone.network.modules())
