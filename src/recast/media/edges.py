"""Canny edges: the structure map of a clip that needs no model.

Canny, "A computational approach to edge detection", IEEE PAMI 1986, by OpenCV. This module owns the
thresholds. It refuses to know who reads the map.
"""

import numpy as np

from recast.media.frame_source import Pixels

LOW, HIGH = 100, 200
"""The thresholds of the gradient, in grey levels of 255: those with which ControlNet for edges is
used (`controlnet_aux`, and the released code of ControlVideo)."""


def canny(frames: Pixels) -> Pixels:
    """The edges of a clip (F, H, W, 3), white on black, of the same shape."""
    import cv2  # here, because OpenCV loads slowly

    edges = [cv2.Canny(np.ascontiguousarray(frame), LOW, HIGH) for frame in frames]
    return np.repeat(np.asarray(edges, np.uint8)[..., None], 3, axis=-1)
