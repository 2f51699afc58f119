"""Alignment of two clips for comparison: equal length, equal size, and a mask that fits both.

This module owns the rules by which clips of different lengths, rates and sizes are compared. It
refuses to know metrics.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recast.errors import BadClip, OneFrame
from recast.media import video as videos
from recast.media.repeated_frames import repeated_frames
from recast.media.video import Video

Mask = NDArray[np.bool_]
"""The region to evaluate, (F, H, W)."""


def align(source: Video, result: Video) -> tuple[Video, Video]:
    """Both clips with equal frame counts and sizes; their notes say what was changed.

    Clips of equal length are compared frame by frame, whatever their rates. Otherwise frames that
    repeat the previous one are dropped from both clips, because systems with another rate write
    such frames. Then frames are taken evenly from the longer clip, from the first to the last. The
    source is cropped around its centre and resized to the size of the result. Raises `BadClip` for
    a clip of one frame.
    """
    for clip, name in ((source, "source"), (result, "result")):
        if len(clip) < 2:
            raise BadClip(f"the {name} has one frame; motion needs at least two")
    if len(source) != len(result):
        source, result = _without_repeats(source), _without_repeats(result)
        count = min(len(result), len(source))
        source, result = _take_evenly(source, count), _take_evenly(result, count)
    return videos.fit(source, result.height, result.width, "crop"), result


def read_mask(path: Path, like: Video) -> Mask:
    """A mask (F, H, W) for the clip `like`, true where the file is bright.

    The file is an image, which is used for every frame, or a video with as many frames as the clip.
    It is fitted to the clip as the source is. Raises `BadClip` for another number of frames, for a
    mask without bright pixels, and for a video that is truncated.
    """
    try:
        clip = videos.read(path)
    except OneFrame:
        clip = videos.read(path, frames=1)
    if len(clip) not in (1, len(like)):
        raise BadClip(
            f"the mask {path.name} has {len(clip)} frames; give one image, or {len(like)} frames, "
            "as many as the aligned clips have"
        )
    fitted = videos.fit(clip, like.height, like.width, "crop").frames
    mask = np.broadcast_to(fitted.mean(-1) >= 128, (len(like), like.height, like.width))
    if not mask.any():
        raise BadClip(f"the mask {path.name} is empty: no pixel of it is brighter than 127")
    return mask


def _without_repeats(clip: Video) -> Video:
    repeats = repeated_frames(clip.frames)
    if not repeats.any():
        return clip
    note = f"dropped {repeats.sum()} of {len(clip)} frames, which repeat the previous frame"
    return replace(clip, frames=clip.frames[~repeats], notes=(*clip.notes, note))


def _take_evenly(clip: Video, count: int) -> Video:
    if len(clip) == count:
        return clip
    chosen = np.linspace(0, len(clip) - 1, count).round().astype(int)
    note = f"took {count} of {len(clip)} frames, evenly"
    return replace(clip, frames=clip.frames[chosen], notes=(*clip.notes, note))
