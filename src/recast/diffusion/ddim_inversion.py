"""DDIM inversion: from a clip to the noise from which DDIM sampling returns to it.

Owns the walk up the sampler's levels (Song et al. 2021, section 4.3). Knows no model and no prompt.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from recast.diffusion.noise_schedule import Denoiser, Schedule
from recast.diffusion.sampling import Level, check_finite, ddim


def invert(denoise: Denoiser, schedule: Schedule, grid: Tensor, x0: Tensor) -> Iterator[Level]:
    """Walk a grid (N + 1,), noisiest first, clean last, upward from x0 (1, C, F, H, W).

    Each step is the sampler's step with s noisier than t. The denoiser is called with x_t of every
    level but the noisiest, so a wrapper of the denoiser can record at these levels. The last
    `Level.x` is x_T. Raises `NotFinite`, which names the step.
    """
    up, x = grid.flip(0), x0
    for index, (t, s) in enumerate(pairwise(up)):
        with torch.no_grad():
            out = denoise(x, t)
            x = ddim(schedule, out, s)
        check_finite(x, f"inversion step {index + 1} of {len(grid) - 1} (t = {float(t):g})")
        yield Level(index, t, s, x, out.x0)
