"""Wrappers from denoiser to denoiser. They know neither model nor prompt."""

import torch
from torch import Tensor

from recast.schedule import Denoised, Denoiser


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
