"""The camera motion of a clip of the shapes world, estimated from its pixels.

A pan and a zoom are fitted to the optical flow of the background from frame to frame, and their
product over time is the camera. A background without a pattern does not show camera motion. This
module refuses to know how a clip was generated.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from recast.evaluation import trackers
from recast.worlds.shapes.geometry import Array
from recast.worlds.shapes.world import Scene

PATTERNS = ("checkered", "dotted")
"""Patterns that show motion in all directions; stripes show it only across themselves."""
_ROUNDS = 5  # of rejecting outliers
_MIN_POINTS = 12  # that a fit needs


def estimate_camera(frames: NDArray[np.uint8], masks: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Pan (F, 2) in frame widths and zoom (F,) of a clip (F, H, W, 3).

    A background point at p in the first frame is at zoom·p + pan in frame f. `masks` (F, H, W) is
    the subject, which is ignored. Between two frames that show too little background, the camera is
    assumed to stand still.
    """
    size = frames.shape[1]
    pans, zooms = [np.zeros(2)], [1.0]
    median_colour = np.median(frames.reshape(-1, 3), 0).astype(np.uint8)
    covered = ndimage.binary_dilation(masks, np.ones((1, 3, 3)), iterations=3)
    background = np.where(covered[..., None], median_colour, frames)
    for before, after in pairwise(range(len(frames))):
        tracks = trackers.flow(background[[before, after]])
        start, end = tracks.points
        x, y = start.astype(int).clip(0, size - 1).T
        usable = tracks.visible[1] & ~covered[before, y, x] & ~covered[after, y, x]
        zoom, pan = _fit_zoom_and_pan(start[usable] / size, end[usable] / size)
        zooms.append(zoom * zooms[-1])
        pans.append(zoom * pans[-1] + pan)
    return np.stack(pans), np.array(zooms)


def camera_error(frames: NDArray[np.uint8], masks: NDArray[np.bool_], scene: Scene) -> float:
    """Mean distance in frame widths between points moved by the camera of the scene and by that of
    the clip (F, H, W, 3). For a clip whose camera stands still, the error is the mean distance that
    the scene's camera moves."""
    grid = np.stack(np.meshgrid(*[np.linspace(0.05, 0.95, 7)] * 2), -1).reshape(-1, 2)
    pan, zoom = estimate_camera(frames, masks)
    estimate = zoom[:, None, None] * grid + pan[:, None]
    return float(np.linalg.norm(estimate - scene.background_points(grid), axis=-1).mean())


def _fit_zoom_and_pan(start: Array, end: Array) -> tuple[float, Array]:
    """The zoom and pan that map most points (N, 2) from `start` to `end`.

    Least squares, repeated a few times without the points whose residual is above twice the
    median.
    """
    zoom, pan = 1.0, np.zeros(2)
    inliers = np.ones(len(start), bool)
    for _ in range(_ROUNDS):
        if inliers.sum() < _MIN_POINTS:
            return 1.0, np.zeros(2)
        a, b = start[inliers], end[inliers]
        mean_a, mean_b = a.mean(0), b.mean(0)
        zoom = float(((a - mean_a) * (b - mean_b)).sum() / ((a - mean_a) ** 2).sum())
        pan = mean_b - zoom * mean_a
        residual = np.linalg.norm(zoom * start + pan - end, axis=-1)
        inliers = residual <= max(2 * np.median(residual[inliers]), 1e-6)
    return zoom, pan
