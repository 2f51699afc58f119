"""Which noise levels of a sampler are guided, and the source at one noise level.

Owns the conversion from fractions to numbers of steps and to times. Knows no network and no method.
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
"""`time_of_level` rounds a fraction of the schedule to one of this number of levels."""


def count_steps(fraction: float, sampling: Sampling) -> int:
    """The number of sampling steps for a fraction of all steps, rounded."""
    return round(fraction * sampling.steps)


def guided_times(
    backbone: Backbone, shape: Sequence[int], sampling: Sampling, guided_steps: int
) -> list[float]:
    """The times of the noisiest `guided_steps` levels, for latents of shape (…, F, H, W)."""
    return backbone.schedule.sized(shape).grid(sampling.steps)[:guided_steps].tolist()


def time_of_level(schedule: Schedule, noise_fraction: float) -> Tensor:
    """The scalar time at a fraction of the schedule: 0 is the clean level, 1 the noisiest."""
    return schedule.grid(_LEVELS)[round((1 - noise_fraction) * _LEVELS)]


def noised_source(backbone: Backbone, x0: Tensor, t: Tensor) -> Tensor:
    """x_t of the source x0 (1, C, F, H, W). The noise is always the same, because a motion must not
    depend on the seed."""
    noise = randn(tuple(x0.shape), torch.Generator().manual_seed(0), x0.device)
    return backbone.schedule.noised(x0, noise, t)
