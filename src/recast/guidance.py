"""Wrappers from denoiser to denoiser. They know neither model nor prompt."""

import torch
from einops import rearrange
from torch import Tensor

from recast.schedule import Denoised, Denoiser, Schedule, per_sample


def cfg(pair: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022): a lerp on both estimates.

    `pair` is bound to two prompts, first the negative, then the positive, and takes x_t twice in
    one batch; the wrapper takes x_t (1, C, F, H, W).
    """

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        out = pair(torch.cat([x, x]), t)
        (x0_without, x0_with), (eps_without, eps_with) = out.x0.chunk(2), out.eps.chunk(2)
        return Denoised(
            torch.lerp(x0_without, x0_with, scale), torch.lerp(eps_without, eps_with, scale)
        )

    return denoise


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
