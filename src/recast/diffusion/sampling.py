"""The sampler: one formula for a step, Restart sampling, and one loop that may edit x_t.

Owns the functions that sample with a denoiser. Knows no model, no prompt and no method.
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
    """The state after one step, from time t to time s."""

    index: int
    """The number of the step, counted from 0."""
    t: Tensor
    s: Tensor
    x: Tensor
    """x_s, (1, C, F, H, W)."""
    x0: Tensor
    """The clean estimate at x_t, (1, C, F, H, W)."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Restart sampling (Xu et al. 2023) in the form of DMT's code: every step from t to s except
    the last is taken twice. In between, new noise brings x_s back to t."""

    without_signal: bool = False
    """Return also to a level without signal. There the new noise replaces x."""
    shifted: bool = False
    """Return with the noise that separates the training levels one below s and t, as DMT's code
    does, whose betas begin one level too early. In continuous time there are no such levels, and
    the noise is the exact one."""

    def applies(self, schedule: Schedule, t: Tensor) -> bool:
        """Whether the step from t is taken twice, if it is not the last step."""
        return self.without_signal or float(schedule.alpha(t)) > 1e-6

    def back(self, schedule: Schedule, x: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t from x_s (B, C, F, H, W), with standard normal noise of the same shape."""
        if self.shifted:
            s, t = schedule.less_noisy(s), schedule.less_noisy(t)
        return renoise(schedule, x, s, t, noise)


def ddim(schedule: Schedule, out: Denoised, s: Tensor) -> Tensor:
    """x_s (B, C, F, H, W) from both estimates at x_t. For DDPM-type models this is DDIM (Song et
    al. 2021, eq. 12 with η = 0), for flow models Euler. If s is noisier than t, it is a step of
    the inversion."""
    return (
        per_sample(schedule.alpha(s), out.x0) * out.x0
        + per_sample(schedule.sigma(s), out.x0) * out.eps
    )


def renoise(schedule: Schedule, x: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t from x_s (B, C, F, H, W), where t is noisier than s: one step of the forward process,
    with standard normal noise of the same shape."""
    ratio = schedule.alpha(t) / schedule.alpha(s)
    std = (schedule.sigma(t) ** 2 - (ratio * schedule.sigma(s)) ** 2).clamp_min(0).sqrt()
    return per_sample(ratio, x) * x + per_sample(std, x) * noise


def randn(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal noise, drawn on the CPU in float32 so that a seed gives the same noise on
    every device."""
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(device)


def generator_of(seed: int, index: int) -> torch.Generator:
    """The random generator of iteration `index`. It depends only on the seed and the index, so that
    an interrupted job resumes with the same random numbers."""
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def sample(
    denoise: Denoiser,
    schedule: Schedule,
    grid: Tensor,
    x: Tensor,
    *,
    edit: Edit | None = None,
    restart: Restart | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Level]:
    """Sample from x (1, C, F, H, W), at time grid[0], to the clean level. Yields the state after
    every step.

    `grid` (N + 1,) holds the times, the noisiest first. `edit` changes x_t before its step.
    `restart` takes steps twice, with noise from `generator`. Raises `NotFinite`, which names the
    level.
    """
    for index, (t, s) in enumerate(pairwise(grid)):
        if edit is not None:
            x = edit(x, t, index)
        with torch.no_grad():
            out = denoise(x, t)
            x = ddim(schedule, out, s)
            if restart and index < len(grid) - 2 and restart.applies(schedule, t):
                assert generator is not None
                noise = randn(tuple(x.shape), generator, x.device)
                out = denoise(restart.back(schedule, x, s, t, noise), t)
                x = ddim(schedule, out, s)
        check_finite(x, f"level {index + 1} of {len(grid) - 1} (t = {float(t):g})")
        yield Level(index, t, s, x, out.x0)


def check_finite(x: Tensor, where: str) -> None:
    """Raise `NotFinite` if x has a value that is not finite. `where` names the step in the
    message."""
    if not bool(torch.isfinite(x).all()):
        raise NotFinite(
            f"the latents are not finite at {where}; try `dtype=float32`, a lower `guidance_scale` "
            "or a lower learning rate"
        )
