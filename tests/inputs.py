"""Seeded inputs of a model: noise, clips, latents and noise levels."""

from collections.abc import Callable

import torch
from torch import Tensor

from recast.backbones.base import Backbone


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Pixels between -1 and 1, the same for the same seed."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_clip(backbone: Backbone, frames: int | None = None, seed: int = 0) -> Tensor:
    """Random pixels of the model's own size, (1, 3, F, H, W)."""
    size = backbone.defaults
    return uniform(1, 3, frames or size.frames, size.height, size.width, seed=seed)


def square_clip(backbone: Backbone) -> Tensor:
    """A bright square that moves to the right, of the model's own size, (1, 3, F, H, W)."""
    size = backbone.defaults
    video = torch.full((1, 3, size.frames, size.height, size.width), -0.8)
    for frame in range(size.frames):
        video[..., frame, 4:10, 2 * frame : 2 * frame + 6] = 0.8
    return video


def random_latents(backbone: Backbone, batch: int = 1) -> Tensor:
    """Noise of the model's own size, (B, C, F, H, W)."""
    size = backbone.defaults
    _, *shape = backbone.latent_shape(size.frames, size.height, size.width)
    return noise(batch, *shape)


def noise_levels(backbone: Backbone) -> list[Tensor]:
    """The noisiest time of a grid, and an almost clean one."""
    grid = backbone.schedule.sized((3, 4, 6)).grid(10)
    return [grid[0], grid[-2]]


def through_half(weight: float) -> Callable[[Tensor], Tensor]:
    """A loss whose gradient, the weight, passes through a network in float16."""
    return lambda x: (weight * x.half().float()).sum()
