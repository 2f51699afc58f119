"""Initial noise: the latents from which a sample starts, random or made from the inverted noise.

Owns the five kinds of initial noise and the low-pass filter of DMT. Knows no model and no method.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from recast.diffusion.sampling import randn

Kind = Literal["random", "inverted", "low_frequency", "blended", "low_frequency_blended"]


def initial(
    kind: Kind,
    inverted: Tensor,
    generator: torch.Generator,
    *,
    factor: int = 4,
    align_corners: bool = False,
    share: float = 0.5,
) -> Tensor:
    """The initial noise of a sample, with the shape of `inverted`, x_T (1, C, F, H, W).

    random: ε, drawn from `generator`. inverted: x_T (VMC). low_frequency: LF(x_T) + (ε − LF(ε))
    (DMT, eq. 4). blended: √p·x_T + √(1−p)·ε (MotionDirector, Motion Inversion).
    low_frequency_blended: the low frequencies of x_T and the high frequencies of the blended noise
    (the released code of Motion Inversion). `factor` is DMT's ξ, and `share` is p.
    """
    eps = randn(tuple(inverted.shape), generator, inverted.device)
    if kind == "random":
        return eps
    if kind == "inverted":
        return inverted
    blended = share**0.5 * inverted + (1 - share) ** 0.5 * eps
    if kind == "blended":
        return blended
    high = eps if kind == "low_frequency" else blended
    low_inverted = low_pass(inverted, factor, align_corners)
    return low_inverted + (high - low_pass(high, factor, align_corners))


def low_pass(x: Tensor, factor: int, align_corners: bool = False) -> Tensor:
    """LF_ξ of DMT, eq. 4: every frame of x (B, C, F, H, W) is downsampled by `factor` and upsampled
    again, both bilinearly with antialiasing. A downsampled side has at least one position."""
    batch, channels, frames, height, width = x.shape
    images = x.transpose(1, 2).reshape(batch * frames, channels, height, width)
    small = (max(1, height // factor), max(1, width // factor))
    resize = partial(interpolate, mode="bilinear", align_corners=align_corners, antialias=True)
    low = resize(resize(images, small), (height, width))
    return low.reshape(batch, frames, channels, height, width).transpose(1, 2)
