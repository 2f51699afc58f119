"""Guidance as wrappers that take a denoiser and return a denoiser.

Owns classifier-free guidance, its dynamic scale and dynamic thresholding. Knows no model and no
prompt.
"""

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from recast.diffusion.noise_schedule import Denoised, Denoiser, Schedule, per_sample


def cfg(pair: Denoiser, scale: float | Callable[[Tensor], float]) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022): a linear interpolation of both estimates with
    a constant scale or one that is a function of t.

    `pair` is bound to two prompts, the negative one first, and takes x_t twice in one batch. The
    wrapper takes x_t (1, C, F, H, W).
    """

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        out = pair(torch.cat([x, x]), t)
        weight = scale(t) if callable(scale) else scale
        (x0_without, x0_with), (eps_without, eps_with) = out.x0.chunk(2), out.eps.chunk(2)
        return Denoised(
            torch.lerp(x0_without, x0_with, weight), torch.lerp(eps_without, eps_with, weight)
        )

    return denoise


def dynamic_scale(schedule: Schedule, scale: float) -> Callable[[Tensor], float]:
    """CogVideoX's dynamic guidance: 1 + scale·(1 − cos(π·p⁵))/2, where p is the share of time that
    has passed. It is 1 in pure noise and 1 + scale near the clean end.

    diffusers computes p from the number of the level in place of the number of the step, so its
    scale is not monotonic with fewer steps than levels. With equal numbers the two agree.
    """

    def weight(t: Tensor) -> float:
        passed = 1 - float(t) / schedule.length
        return 1 + scale * (1 - math.cos(math.pi * passed**5)) / 2

    return weight


def dynamic_thresholding(
    denoise: Denoiser, schedule: Schedule, share: float, most: float
) -> Denoiser:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3), which prevents saturated pixels.

    In each frame x0 is clamped at the `share` quantile of |x0|, at least 1 and at most `most`, and
    divided by it. The noise estimate is recomputed, so that both estimates still add up to x_t.
    """

    def threshold(x: Tensor, t: Tensor) -> Denoised:
        x0 = denoise(x, t).x0
        levels = rearrange(x0.abs(), "b c f h w -> b f (c h w)")
        edge = levels.quantile(share, dim=2).clamp(1, most)[:, None, :, None, None]
        x0 = x0.clamp(-edge, edge) / edge
        alpha, sigma = (per_sample(level, x) for level in (schedule.alpha(t), schedule.sigma(t)))
        return Denoised(x0, (x - alpha * x0) / sigma)

    return threshold
