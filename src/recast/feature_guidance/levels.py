"""Which noise levels of a sampling are guided, and the source at one noise level.

Owns the conversion from fractions to numbers of steps and to times. Knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Schedule
from recast.diffusion.sampling import randn
from recast.motions.method import Sampling

_LEVELS = 100
"""Number of noise levels among which a fraction of the noise is rounded."""


def count_steps(fraction: float, sampling: Sampling) -> int:
    """The number of sampling steps that are a fraction of all steps, such as the guidance
    fraction."""
    return round(fraction * sampling.steps)


def guided_times(
    backbone: Backbone, shape: Sequence[int], sampling: Sampling, guided_steps: int
) -> list[float]:
    """The times of the noisiest levels of a sampling, for latents of the shape (…, F, H, W)."""
    return backbone.schedule.sized(shape).grid(sampling.steps)[:guided_steps].tolist()


def time_of_level(schedule: Schedule, noise_fraction: float) -> Tensor:
    """The time at a fraction of the schedule: 0 is clean, 1 is the noisiest level."""
    return schedule.grid(_LEVELS)[round((1 - noise_fraction) * _LEVELS)]


def noised_source(backbone: Backbone, x0: Tensor, t: Tensor) -> Tensor:
    """The source x0 (1, C, F, H, W) at time t. The noise is always the same, because a motion does
    not depend on a seed."""
    noise = randn(tuple(x0.shape), torch.Generator().manual_seed(0), x0.device)
    return backbone.schedule.noised(x0, noise, t)
