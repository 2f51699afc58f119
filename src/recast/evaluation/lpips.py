"""LPIPS between two clips (Zhang et al., CVPR 2018).

This module owns the network, which is that of torchmetrics if it is installed. It refuses to know
what the distance is used for.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from recast.errors import BadModel, reason_of
from recast.metrics.base import Array

_MIN_SIDE = 64  # pixels of the shorter side: the networks downsample a frame by up to 32


def lpips(a: NDArray[np.uint8], b: NDArray[np.uint8], network: str, device: str = "cpu") -> Array:
    """LPIPS (F,) of each pair of frames of two clips (F, H, W, 3).

    `network` is alex, squeeze or vgg. Raises `BadModel` if torchmetrics, torchvision or the weights
    are missing.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        metric = LearnedPerceptualImagePatchSimilarity(network, normalize=True).to(device)
    except Exception as error:  # a missing package, or any error of a download
        raise BadModel(
            f"LPIPS with {network} cannot be loaded ({reason_of(error)}); install it with "
            "pip install '.[lpips]' in Recast's own folder and let it download the weights "
            "once, or copy them to its cache (~/.cache/torch/hub/checkpoints), or set `lpips=none` "
            "to leave this score out"
        ) from error
    pairs = zip(_images(a), _images(b), strict=True)
    with torch.no_grad():
        return np.array([float(metric(x.to(device), y.to(device))) for x, y in pairs])


def _images(frames: NDArray[np.uint8]) -> list[torch.Tensor]:
    """Single frames (1, 3, H, W) in [0, 1], enlarged if they are too small for the networks."""
    x = rearrange(torch.from_numpy(frames), "f h w c -> f 1 c h w").float() / 255
    scale = max(1.0, _MIN_SIDE / min(frames.shape[1:3]))
    if scale == 1:
        return list(x)
    return [interpolate(frame, scale_factor=scale, mode="bilinear") for frame in x]
