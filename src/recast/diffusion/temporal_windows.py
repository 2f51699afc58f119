"""Overlapping windows of a clip that is longer than the network's input, and their blending.

All windows are cut from the same x_t and their results are blended after every step, so that they
agree where they overlap: MultiDiffusion (Bar-Tal et al., ICML 2023) along time. Knows no network.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def spans(frames: int, window: int, temporal_patch: int = 1) -> tuple[slice, ...]:
    """The smallest number of windows of `window` frames that overlap by at least half, evenly
    spread over `frames`; a single window if `frames` is at most `window`.

    All numbers count frames of latents. Each window begins at a multiple of `temporal_patch`;
    `frames` and `window` must be multiples of it.
    """
    if frames <= window:
        return (slice(0, frames),)
    apart = max(temporal_patch, window // 2 // temporal_patch * temporal_patch)
    count = math.ceil((frames - window) / apart) + 1
    starts = (
        round(n * (frames - window) / (count - 1) / temporal_patch) * temporal_patch
        for n in range(count)
    )
    return tuple(slice(start, start + window) for start in starts)


def blend(parts: Sequence[Tensor], windows: Sequence[slice]) -> Tensor:
    """The weighted mean (B, C, F, H, W) of the windows' results (B, C, F', H, W). The weight of a
    window falls linearly towards its ends."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    length, frames = first.shape[2], windows[-1].stop
    rising = torch.arange(1, length + 1, device=first.device, dtype=first.dtype)
    weight = torch.minimum(rising, rising.flip(0))[:, None, None]
    whole = first.new_zeros(*first.shape[:2], frames, *first.shape[3:])
    total = first.new_zeros(frames, 1, 1)
    for part, window in zip(parts, windows, strict=True):
        whole[:, :, window] += weight * part
        total[window] += weight
    return whole / total
