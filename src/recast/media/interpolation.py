"""The frame in the middle of two frames, by optical flow.

Both frames are moved half of the way along the flow to the other one, and averaged. The flow is
OpenCV's DIS (Kroeger et al., ECCV 2016), which needs no weights. This module owns the
interpolation. It refuses to know why a frame is replaced.
"""

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
_SIDE = 128
"""Smaller frames are enlarged to this shorter side before the flow is computed."""


def middle_frame(one: Image, other: Image) -> Image:
    """The frame halfway between two frames (H, W, 3) in [0, 255]."""
    forward, backward = _flow(one, other), _flow(other, one)
    return np.asarray((_moved(one, forward) + _moved(other, backward)) / 2, np.float32)


def _moved(frame: Image, flow: Image) -> Image:
    """A frame, moved half of the way along the flow (H, W, 2) to the other frame."""
    import cv2  # here, because OpenCV loads slowly

    height, width = frame.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    # The middle of a path is not on the grid, so the flow there is taken from its beginning.
    x, y = x - flow[..., 0] / 2, y - flow[..., 1] / 2
    return np.asarray(cv2.remap(frame, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _flow(one: Image, other: Image) -> Image:
    """The flow (H, W, 2) in pixels from one frame to the other."""
    import cv2  # here, because OpenCV loads slowly

    height, width = one.shape[:2]
    scale = max(1.0, _SIDE / min(height, width))
    size = (round(width * scale), round(height * scale))
    before, after = _enlarged_grey(one, size), _enlarged_grey(other, size)
    if np.array_equal(before, after):
        return np.zeros((height, width, 2), np.float32)
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = method.calc(before, after, np.zeros((*before.shape, 2), np.float32))
    factor = np.array((width / size[0], height / size[1]), np.float32)
    return np.asarray(cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) * factor)


def _enlarged_grey(frame: Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    import cv2  # here, because OpenCV loads slowly

    levels = frame.round().clip(0, 255).astype(np.uint8)
    grey = cv2.cvtColor(levels, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_CUBIC))
