"""LPIPS between two clips, by torchmetrics, where its weights can be had."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from recast.errors import BadModel
from recast.metrics.base import Array

_LEAST = 64  # pixels of the shorter side: the networks shrink a frame by up to 32


def lpips(a: NDArray[np.uint8], b: NDArray[np.uint8], network: str, device: str = "cpu") -> Array:
    """LPIPS of each pair of frames (F, H, W, 3), (F,). `network` is alex, squeeze or vgg.

    Raises `BadModel` where torchmetrics, torchvision or the weights are missing.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        judge = LearnedPerceptualImagePatchSimilarity(network, normalize=True).to(device)
    except Exception as error:  # a missing package, or whatever a download may raise
        reason = " ".join(str(error).split())[:120]
        raise BadModel(
            f"LPIPS with {network} cannot be loaded ({reason}); pip install torchmetrics "
            "torchvision and let it download the weights once, or copy them to its cache "
            "(~/.cache/torch/hub/checkpoints); --lpips none leaves this score out"
        ) from error
    pairs = zip(_images(a), _images(b), strict=True)
    with torch.no_grad():
        return np.array([float(judge(x.to(device), y.to(device))) for x, y in pairs])


def _images(frames: NDArray[np.uint8]) -> list[torch.Tensor]:
    """Single frames (1, 3, H, W) in [0, 1], enlarged where they are too small for the networks."""
    x = rearrange(torch.from_numpy(frames), "f h w c -> f 1 c h w").float() / 255
    scale = max(1.0, _LEAST / min(frames.shape[1:3]))
    if scale == 1:
        return list(x)
    return [interpolate(frame, scale_factor=scale, mode="bilinear") for frame in x]
