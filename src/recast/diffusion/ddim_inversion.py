"""Inversion: from a clip to the noise from which DDIM sampling returns to it.

Owns the loop over the sampler's levels from clean to noisy (Song et al. 2021, section 4.3), its
second-order form, and the level at which a noised clip starts. Knows no model and no prompt.

A clean clip has no noise from which a network could predict the noise of the next level. The first
step of a flow model therefore adds almost none, and the inverted noise is too weak. `Kind` names
the two ways to invert a clip:
- ddim: steps of DDIM (Euler's for flow models) from the clean clip;
- noised: a little noise is added to the clip first, and second-order steps follow.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from recast.diffusion.noise_schedule import Denoised, Denoiser, Schedule, per_sample
from recast.diffusion.sampling import Level, check_finite, ddim

Kind = Literal["ddim", "noised"]


def inversion_grid(schedule: Schedule, grid: Tensor, steps: int, kind: Kind) -> Tensor:
    """The times of an inversion in approximately `steps` steps, the noisiest first.

    They contain every time of the sampler's `grid` (N + 1,) except the clean level. The last time
    is that level or, if the clip is noised, the level at which it starts: the middle of the
    sampler's last step (docs/log/inversion.md).
    """
    if kind == "ddim":
        return schedule.refine(grid, steps)
    start = schedule.refine(grid[-2:], 2)[-2:-1]
    return schedule.refine(torch.unique(torch.cat([grid[:-1], start])).flip(0), steps)


def invert(
    denoise: Denoiser, schedule: Schedule, grid: Tensor, x: Tensor, kind: Kind = "ddim"
) -> Iterator[Level]:
    """Invert x (1, C, F, H, W), the clip at time grid[-1]. Yields the state after every step; the
    last `Level.x` is x_T.

    `grid` (N + 1,) holds the times, the noisiest first. The denoiser is called once at every level
    except the noisiest, with the x_t of that level, so a wrapper of the denoiser can record
    features there. Steps of the kind `noised` are second-order Adams-Bashforth steps, which need no
    further calls. Raises `NotFinite`, which names the step.
    """
    previous: tuple[Tensor, Denoised] | None = None
    for index, (t, s) in enumerate(pairwise(grid.flip(0))):
        with torch.no_grad():
            out = denoise(x, t)
            if kind == "ddim" or previous is None:
                x = ddim(schedule, out, s)
            else:
                x = _second_order(schedule, x, (t, out), previous, s)
        check_finite(x, f"inversion step {index + 1} of {len(grid) - 1} (t = {float(t):g})")
        previous = (t, out)
        yield Level(index, t, s, x, out.x0)


def _second_order(
    schedule: Schedule,
    x: Tensor,
    current: tuple[Tensor, Denoised],
    previous: tuple[Tensor, Denoised],
    s: Tensor,
) -> Tensor:
    """x_s (B, C, F, H, W) from x_t and the estimates at t and at the time before t.

    The trajectory solves dx = x0·dα + eps·dσ. Both estimates are extrapolated linearly to the
    middle of t and s, as in the Adams-Bashforth method with variable steps.
    """
    (t, out), (before, older) = current, previous
    ratio = float((s - t) / (2 * (t - before)))
    x0, eps = (new + ratio * (new - old) for new, old in zip(out, older, strict=True))
    change_alpha, change_sigma = (
        per_sample(level(s) - level(t), x) for level in (schedule.alpha, schedule.sigma)
    )
    return x + change_alpha * x0 + change_sigma * eps
