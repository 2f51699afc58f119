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

    `pair` is the denoiser of two prompts, the negative one first. It gets x_t twice, as one batch
    (2, C, F, H, W). The returned denoiser takes x_t (1, C, F, H, W).
    """

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        out = pair(torch.cat([x, x]), t)
        weight = scale(t) if callable(scale) else scale
        (x0_negative, x0), (eps_negative, eps) = out.x0.chunk(2), out.eps.chunk(2)
        return Denoised(torch.lerp(x0_negative, x0, weight), torch.lerp(eps_negative, eps, weight))

    return denoise


def dynamic_scale(schedule: Schedule, scale: float) -> Callable[[Tensor], float]:
    """CogVideoX's guidance scale as a function of t: 1 + scale·(1 − cos(π·p⁵))/2, where p is
    1 − t/`schedule.length`. It is 1 in pure noise and 1 + scale at the clean end.

    diffusers computes p from a training time where the formula has the index of a sampling step, so
    its scale is not monotonic if there are fewer sampling steps than training levels. If the two
    numbers are equal, the results agree.
    """

    def weight(t: Tensor) -> float:
        progress = 1 - float(t) / schedule.length
        return 1 + scale * (1 - math.cos(math.pi * progress**5)) / 2

    return weight


def dynamic_thresholding(
    denoise: Denoiser, schedule: Schedule, quantile: float, maximum: float
) -> Denoiser:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3), which prevents saturated pixels.

    In each frame x0 is clamped to ±s and divided by s, where s is the `quantile` of |x0|, but at
    least 1 and at most `maximum`. The noise estimate is computed again, so that both estimates
    still add up to x_t (B, C, F, H, W).
    """

    def threshold(x: Tensor, t: Tensor) -> Denoised:
        x0 = denoise(x, t).x0
        values = rearrange(x0.abs(), "b c f h w -> b f (c h w)")
        s = values.quantile(quantile, dim=2).clamp(1, maximum)[:, None, :, None, None]
        x0 = x0.clamp(-s, s) / s
        alpha, sigma = (per_sample(value, x) for value in (schedule.alpha(t), schedule.sigma(t)))
        return Denoised(x0, (x - alpha * x0) / sigma)

    return threshold
