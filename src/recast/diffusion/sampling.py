"""The sampler: one step formula, Restart, and one loop with an optional edit before each step.

Plain functions of a denoiser. They know no model, no prompt and no method.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from recast.diffusion.noise_schedule import Denoised, Denoiser, Schedule, per_sample
from recast.errors import NotFinite

# (x_t, t, index of the level) -> x_t, changed
Edit = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """Where the sampler stands after a step: x at time s, and the clean estimate it came from."""

    index: int
    t: Tensor
    s: Tensor
    x: Tensor
    x0: Tensor


def ddim(schedule: Schedule, out: Denoised, s: Tensor) -> Tensor:
    """x_s from both estimates: DDIM for DDPM-type models (Song et al. 2021, eq. 12 with η = 0),
    Euler for flows, and, for s noisier than t, the inversion of both."""
    return (
        per_sample(schedule.alpha(s), out.x0) * out.x0
        + per_sample(schedule.sigma(s), out.x0) * out.eps
    )


def renoise(schedule: Schedule, x: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t from x_s by adding the noise that separates the two levels (t noisier than s)."""
    ratio = schedule.alpha(t) / schedule.alpha(s)
    added = (schedule.sigma(t) ** 2 - (ratio * schedule.sigma(s)) ** 2).clamp_min(0).sqrt()
    return per_sample(ratio, x) * x + per_sample(added, x) * noise


def randn(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal noise, drawn on the CPU in float32 so that a seed means the same anywhere."""
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(device)


def generator_of(seed: int, index: int) -> torch.Generator:
    """The generator of one iteration, whatever came before it: a job that was broken off goes on as
    if it had not been."""
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
    """Walk from x at grid[0] to the clean level, yielding after every level.

    grid (N + 1,) noisiest first; x (1, C, F, H, W). `edit` changes x_t before its step. With
    `restart` every step but the last is taken twice: after t -> s the noise between the levels is
    added anew, and the step repeated (Xu et al. 2023, as DMT's code uses it). From a level without
    signal there is no way back: it would replace x by fresh noise, so it is taken once.
    Raises `NotFinite` at the first level that is not.
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
    """Raise `NotFinite` naming where the latents broke."""
    if not bool(torch.isfinite(x).all()):
        raise NotFinite(
            f"the latents are not finite at {where}; try dtype float32, a lower guidance scale "
            "or a lower learning rate"
        )
