"""Warping error: how much a result flickers.

From Lai et al. ("Learning Blind Video Temporal Consistency", ECCV 2018): the mean squared
difference between a frame and the next frame, after the next one is warped back along the optical
flow, over the pixels that are not occluded. Occlusions are found where forward and backward flow
disagree (Sundaram et al., ECCV 2010, eq. 5). The released script takes the flow of the source from
FlowNet 2; here it is the flow of the result itself, because a result need not move where its source
does, and it is that of OpenCV's DIS (Kroeger et al., ECCV 2016). A clip that stands still has the
error 0, so the value says nothing about motion.
"""

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from recast.metrics.base import Metric, MetricInput, NoValue, by_name

_SIDE = 128
"""Smaller frames are enlarged to this shorter side before the flow is computed."""


def warping_error(frames: NDArray[np.uint8]) -> float | NoValue:
    """The mean squared difference over all pixels that are not occluded, on the scale from 0 to 1
    (black to white), for frames (F, H, W, 3)."""
    if len(frames) < 2:
        return NoValue("a single frame does not flicker")
    scale = max(1.0, _SIDE / min(frames.shape[1:3]))
    size = (round(frames.shape[2] * scale), round(frames.shape[1] * scale))
    enlarged = [cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in frames]
    errors = [_error(before, after) for before, after in pairwise(enlarged)]
    known = [error for error in errors if error is not None]
    return float(np.mean(known)) if known else NoValue("all pixels are occluded in every frame")


def _error(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> float | None:
    """The error of two frames; None if all pixels are occluded."""
    grey = [
        np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8) for frame in (before, after)
    ]
    forward, backward = _flow(*grey), _flow(*grey[::-1])
    height, width = grey[0].shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x + forward[..., 0], y + forward[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    back = cv2.remap(backward, x, y, cv2.INTER_LINEAR)
    mismatch = ((forward + back) ** 2).sum(-1)
    visible = mismatch < 0.01 * ((forward**2).sum(-1) + (back**2).sum(-1)) + 0.5  # eq. 5
    visible &= inside
    warped = cv2.remap(after, x, y, cv2.INTER_LINEAR)
    squared = ((before.astype(np.float64) - warped) / 255) ** 2
    return float(squared[visible].mean()) if visible.any() else None


def _flow(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The flow (H, W, 2) from one grey frame (H, W) to the next."""
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(method.calc(before, after, np.zeros((*before.shape, 2), np.float32)))


def _score(inputs: MetricInput) -> float | NoValue:
    error = warping_error(inputs.result.frames)
    return error if isinstance(error, NoValue) else 1000 * error


METRICS = by_name(
    Metric(
        name="warping_error",
        title="flicker, warping error",
        higher_is_better=False,
        unit="squared difference x 1000, 1 is black to white",
        score=_score,
    ),
)
