"""Frames that repeat the frame before them, found after lossy coding too.

Systems that convert the frame rate, and models such as Gen-1, show each frame several times. After
H.264 a repeated frame is no longer equal to its original: it differs by coding noise. This module
owns how such frames are distinguished from motion, by the size of the steps around them, and
from stillness. It refuses to know what is done about them.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from recast.media.frame_source import Pixels

NOISE = 3.0
"""Largest difference of two frames that can be coding noise, in grey levels of 255. At crf 28 of
x264, repeated frames differ by up to 1.8, the frames of a still clip with sensor noise of 6 levels
by up to 2.7, and consecutive frames of four real clips by 11 and more
(benchmarks/repeated_frames.py)."""
_RATIO = 2.5
"""A repeat differs from the previous frame by this factor less than the steps around it."""
_LONGEST_RUN = 4
"""Largest number of consecutive repeats: a frame that is shown more than five times stands
still."""
_BLOCK = 8
"""Side in pixels of the blocks in which differences are averaged, as video codecs code blocks."""
_SIDE = 480
"""Frames are subsampled by an integer factor while their shorter side stays above this."""


def repeated_frames(frames: Pixels) -> NDArray[np.bool_]:
    """For each frame of a clip (F, H, W, 3) whether it repeats the previous frame, (F,).

    A frame is a repeat if its difference from the previous frame can be coding noise, and if
    shortly before and after it there are steps that differ clearly more and are motion. In a clip,
    or a part of a clip, that stands still there are no such steps, so its frames are not repeats.
    Nor is the frame at which a motion turns back, where the frames before and after are alike.
    """
    steps = np.array([difference(a, b) for a, b in pairwise(frames)])
    found = [_is_repeat(frames, steps, index) for index in range(len(steps))]
    return np.array([False, *found])


def difference(a: Pixels, b: Pixels) -> float:
    """The difference of two frames (H, W, 3) in grey levels: the mean of order 4 over the mean
    absolute differences in blocks.

    The order makes a small moving subject count, and keeps a single noisy block from deciding.
    """
    factor = max(1, min(a.shape[:2]) // _SIDE)
    a, b = a[::factor, ::factor], b[::factor, ::factor]
    side = min(_BLOCK, *a.shape[:2])
    height, width = (length // side * side for length in a.shape[:2])
    absolute = (np.maximum(a, b) - np.minimum(a, b))[:height, :width]
    blocks = absolute.reshape(height // side, side, width // side, side, 3)
    means = blocks.sum((1, 3, 4), dtype=np.uint32) / (3 * side**2)
    return float((means**4).mean() ** 0.25)


def _is_repeat(frames: Pixels, steps: NDArray[np.float64], index: int) -> bool:
    """Whether step `index`, from frame `index` to the next, repeats a frame."""
    if steps[index] > NOISE:
        return False
    moving = np.flatnonzero(steps >= max(_RATIO * steps[index], NOISE))
    if not len(moving):
        return False
    before, after = moving[moving < index], moving[moving > index]
    begin = int(before[-1]) if len(before) else -1
    end = int(after[0]) if len(after) else len(steps)
    if end - begin - 1 > _LONGEST_RUN:
        return False
    if not len(before) or not len(after):
        return True
    turned = _RATIO * difference(frames[begin], frames[end + 1]) <= min(steps[begin], steps[end])
    return not turned
