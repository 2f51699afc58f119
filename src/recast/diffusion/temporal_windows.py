"""Overlapping windows of a clip that is longer than the network's input, and their blending.

All windows are cut from the same x_t, and their results are blended after every step, so that they
agree where they overlap. This is MultiDiffusion (Bar-Tal et al., ICML 2023) along time. Owns where
the windows lie and how they are blended. Knows no network.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def spans(frames: int, window: int, temporal_patch: int = 1) -> tuple[slice, ...]:
    """The frames of each window: as few windows of `window` frames as possible, evenly spread, so
    that neighbours overlap by at least half. If `frames` is at most `window`, there is one window.

    All numbers count frames of latents. Each window begins at a multiple of `temporal_patch`;
    `frames` and `window` must be multiples of it.
    """
    if frames <= window:
        return (slice(0, frames),)
    stride = max(temporal_patch, window // 2 // temporal_patch * temporal_patch)
    count = math.ceil((frames - window) / stride) + 1
    starts = (
        round(n * (frames - window) / (count - 1) / temporal_patch) * temporal_patch
        for n in range(count)
    )
    return tuple(slice(start, start + window) for start in starts)


def blend(parts: Sequence[Tensor], windows: Sequence[slice]) -> Tensor:
    """The weighted mean (B, C, F, H, W) of `parts`, the results of the windows, each
    (B, C, F', H, W). The weight of a window decreases linearly towards its first and last frame."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    length, frames = first.shape[2], windows[-1].stop
    ramp = torch.arange(1, length + 1, device=first.device, dtype=first.dtype)
    weight = torch.minimum(ramp, ramp.flip(0))[:, None, None]
    weighted_sum = first.new_zeros(*first.shape[:2], frames, *first.shape[3:])
    weight_sum = first.new_zeros(frames, 1, 1)
    for part, window in zip(parts, windows, strict=True):
        weighted_sum[:, :, window] += weight * part
        weight_sum[window] += weight
    return weighted_sum / weight_sum
