"""DDIM inversion: from a clip to the noise it would have come from, on the sampler's levels."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from recast.diffusion.noise_schedule import Denoiser, Schedule
from recast.diffusion.sampling import Level, check_finite, ddim


def invert(denoise: Denoiser, schedule: Schedule, grid: Tensor, x0: Tensor) -> Iterator[Level]:
    """Walk a grid (noisiest first, clean last) upward from x0 (1, C, F, H, W).

    The sampler's step with s noisier than t. The denoiser sees every level but the noisiest, and
    sees the very x_t of that level: who wants to record something there wraps it. The last
    `Level.x` is x_T.
    """
    up, x = grid.flip(0), x0
    for index, (t, s) in enumerate(pairwise(up)):
        with torch.no_grad():
            out = denoise(x, t)
            x = ddim(schedule, out, s)
        check_finite(x, f"inversion step {index + 1} of {len(grid) - 1} (t = {float(t):g})")
        yield Level(index, t, s, x, out.x0)
