"""The sampler: one step formula, Restart, and one loop with an optional edit before each step.

Owns the plain functions of a denoiser that make a sample. Knows no model, no prompt and no method.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from recast.diffusion.noise_schedule import Denoised, Denoiser, Schedule, per_sample
from recast.errors import NotFinite

# (x_t, t, index of the level) -> the edited x_t
Edit = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """The state after the step from time t to time s: x at time s and the clean estimate at t."""

    index: int
    t: Tensor
    s: Tensor
    x: Tensor
    x0: Tensor


def ddim(schedule: Schedule, out: Denoised, s: Tensor) -> Tensor:
    """x_s from both estimates. This is DDIM for DDPM-type models (Song et al. 2021, eq. 12 with
    η = 0), Euler for flows and, for s noisier than t, the inversion of both."""
    return (
        per_sample(schedule.alpha(s), out.x0) * out.x0
        + per_sample(schedule.sigma(s), out.x0) * out.eps
    )


def renoise(schedule: Schedule, x: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t from x_s (t noisier than s), by adding the noise that separates the two levels."""
    ratio = schedule.alpha(t) / schedule.alpha(s)
    added = (schedule.sigma(t) ** 2 - (ratio * schedule.sigma(s)) ** 2).clamp_min(0).sqrt()
    return per_sample(ratio, x) * x + per_sample(added, x) * noise


def randn(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal noise, drawn on the CPU in float32 so that a seed gives the same noise on
    every device."""
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(device)


def generator_of(seed: int, index: int) -> torch.Generator:
    """The random generator of one iteration. It depends on the seed and the index only, so that an
    interrupted job resumes with the same random numbers."""
    drawn = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(drawn[0] >> np.uint64(1)))


def sample(
    denoise: Denoiser,
    schedule: Schedule,
    grid: Tensor,
    x: Tensor,
    *,
    edit: Edit | None = None,
    restart: bool = False,
    generator: torch.Generator | None = None,
) -> Iterator[Level]:
    """Walk from x at grid[0] to the clean level and yield after every level.

    grid is (N + 1,), noisiest first; x is (1, C, F, H, W). `edit` changes x_t before its step. With
    `restart` every step but the last is taken twice: after t -> s new noise is added to return to
    t, and the step is repeated (Xu et al. 2023, as DMT's code uses it). The step from a level
    without signal is taken once, because a return to that level would replace x by new noise.
    Raises `NotFinite` at the first level whose latents are not finite.
    """
    for index, (t, s) in enumerate(pairwise(grid)):
        if edit is not None:
            x = edit(x, t, index)
        with torch.no_grad():
            out = denoise(x, t)
            x = ddim(schedule, out, s)
            if restart and index < len(grid) - 2 and float(schedule.alpha(t)) > 1e-6:
                assert generator is not None
                noise = randn(tuple(x.shape), generator, x.device)
                out = denoise(renoise(schedule, x, s, t, noise), t)
                x = ddim(schedule, out, s)
        check_finite(x, f"level {index + 1} of {len(grid) - 1} (t = {float(t):g})")
        yield Level(index, t, s, x, out.x0)


def check_finite(x: Tensor, where: str) -> None:
    """Raise `NotFinite`, which says `where`, if x has a value that is not finite."""
    if not bool(torch.isfinite(x).all()):
        raise NotFinite(
            f"the latents are not finite at {where}; try `dtype=float32`, a lower `guidance_scale` "
            "or a lower learning rate"
        )
