"""DDIM inversion: from a clip to the noise from which DDIM sampling returns to it.

Owns the loop over the sampler's levels from clean to noisy (Song et al. 2021, section 4.3). Knows
no model and no prompt.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from recast.diffusion.noise_schedule import Denoiser, Schedule
from recast.diffusion.sampling import Level, check_finite, ddim


def invert(denoise: Denoiser, schedule: Schedule, grid: Tensor, x0: Tensor) -> Iterator[Level]:
    """Invert x0 (1, C, F, H, W). Yields the state after every step; the last `Level.x` is x_T.

    `grid` (N + 1,) holds the times of a sampler, the noisiest first and the clean level last. Each
    step is the sampler's step, from t to a noisier s. The denoiser is called at every level except
    the noisiest, so a wrapper of the denoiser can record features there. Raises `NotFinite`, which
    names the step.
    """
    x = x0
    for index, (t, s) in enumerate(pairwise(grid.flip(0))):
        with torch.no_grad():
            out = denoise(x, t)
            x = ddim(schedule, out, s)
        check_finite(x, f"inversion step {index + 1} of {len(grid) - 1} (t = {float(t):g})")
        yield Level(index, t, s, x, out.x0)
