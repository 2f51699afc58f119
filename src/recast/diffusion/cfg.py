"""Wrappers from denoiser to denoiser. They know neither model nor prompt."""

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from recast.diffusion.noise_schedule import Denoised, Denoiser, Schedule, per_sample


def cfg(pair: Denoiser, scale: float | Callable[[Tensor], float]) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022): a lerp on both estimates, by a scale or by
    what a function of t gives.

    `pair` is bound to two prompts, first the negative, then the positive, and takes x_t twice in
    one batch; the wrapper takes x_t (1, C, F, H, W).
    """

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        out = pair(torch.cat([x, x]), t)
        weight = scale(t) if callable(scale) else scale
        (x0_without, x0_with), (eps_without, eps_with) = out.x0.chunk(2), out.eps.chunk(2)
        return Denoised(
            torch.lerp(x0_without, x0_with, weight), torch.lerp(eps_without, eps_with, weight)
        )

    return denoise


def growing(schedule: Schedule, scale: float) -> Callable[[Tensor], float]:
    """CogVideoX's dynamic guidance: 1 in pure noise, 1 + scale near the clean end, as
    1 + scale·(1 − cos(π·p⁵))/2 of the share p of time that has passed.

    diffusers takes p from a level's number where it means a step's, so that with fewer steps than
    levels its scale jumps about; with as many of both it agrees with this.
    """

    def weight(t: Tensor) -> float:
        passed = 1 - float(t) / schedule.length
        return 1 + scale * (1 - math.cos(math.pi * passed**5)) / 2

    return weight


def thresholded(denoise: Denoiser, schedule: Schedule, share: float, most: float) -> Denoiser:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3), which keeps pixels from burning out.

    In each frame x0 is cut at the `share` quantile of |x0|, at least 1 and at most `most`, and
    divided by it. The noise follows, so that both estimates still make up x_t.
    """

    def keep(x: Tensor, t: Tensor) -> Denoised:
        x0 = denoise(x, t).x0
        levels = rearrange(x0.abs(), "b c f h w -> b f (c h w)")
        edge = levels.quantile(share, dim=2).clamp(1, most)[:, None, :, None, None]
        x0 = x0.clamp(-edge, edge) / edge
        alpha, sigma = (per_sample(level, x) for level in (schedule.alpha(t), schedule.sigma(t)))
        return Denoised(x0, (x - alpha * x0) / sigma)

    return keep
