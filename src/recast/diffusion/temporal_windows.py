"""Windows of a clip that is longer than a model sees at once, and how what they give is blended.

All are cut from the same x_t, so that they share their noise where they overlap, and agree again
after every step: MultiDiffusion (Bar-Tal et al., ICML 2023) along time.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def spans(frames: int, window: int, temporal_patch: int = 1) -> tuple[slice, ...]:
    """As few windows of so many frames as overlap by half or more, evenly spread over all frames;
    one of all frames where these are no more. All three are counted in latents' frames, and each
    begins at a multiple of `temporal_patch`, of which frames and window are multiples too."""
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
    """What each window gave, (B, C, F', H, W), as one, (B, C, F, H, W): a mean in which a window
    weighs less towards its ends."""
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
