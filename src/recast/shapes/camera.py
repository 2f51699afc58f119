"""How the camera moved, read off a clip of the embedded world alone.

The background's optical flow from frame to frame, where no subject is, is fitted by a pan and a
zoom; their product over time is the camera. Backgrounds without a pattern show none.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from recast.evaluation import trackers
from recast.shapes.geometry import Array
from recast.shapes.world import Scene

PATTERNS = ("checkered", "dotted")
"""Backgrounds that show where they go: stripes do so across themselves only."""
_ROUNDS = 5
_LEAST = 12  # points that a fit needs


def estimated(frames: NDArray[np.uint8], masks: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Pan (F, 2) in frame widths and zoom (F,) of a clip (F, H, W, 3): a point of the background
    that is at p in the first frame is at zoom·p + pan in frame f. `masks` (F, H, W) is the subject,
    which is left out. From frames that show too little of a background it is taken to stand still.
    """
    size = frames.shape[1]
    pans, zooms = [np.zeros(2)], [1.0]
    ground = np.median(frames.reshape(-1, 3), 0).astype(np.uint8)
    covered = ndimage.binary_dilation(masks, np.ones((1, 3, 3)), iterations=3)
    bare = np.where(covered[..., None], ground, frames)
    for before, after in pairwise(range(len(frames))):
        tracks = trackers.flow(bare[[before, after]])
        start, end = tracks.points
        x, y = start.astype(int).clip(0, size - 1).T
        seen = tracks.visible[1] & ~covered[before, y, x] & ~covered[after, y, x]
        zoom, pan = _fitted(start[seen] / size, end[seen] / size)
        zooms.append(zoom * zooms[-1])
        pans.append(zoom * pans[-1] + pan)
    return np.stack(pans), np.array(zooms)


def distance(frames: NDArray[np.uint8], masks: NDArray[np.bool_], scene: Scene) -> float:
    """Mean distance in frame widths between where a scene's camera carries the points of the first
    frame, and where the clip's does. A camera that stands still is as wrong as the scene's goes
    far."""
    grid = np.stack(np.meshgrid(*[np.linspace(0.05, 0.95, 7)] * 2), -1).reshape(-1, 2)
    pan, zoom = estimated(frames, masks)
    found = zoom[:, None, None] * grid + pan[:, None]
    return float(np.linalg.norm(found - scene.carried(grid), axis=-1).mean())


def _fitted(start: Array, end: Array) -> tuple[float, Array]:
    """The zoom and pan by which most points (N, 2) come from `start` to `end`: least squares, then
    without what lies further off than twice the median, a few times over."""
    zoom, pan = 1.0, np.zeros(2)
    kept = np.ones(len(start), bool)
    for _ in range(_ROUNDS):
        if kept.sum() < _LEAST:
            return 1.0, np.zeros(2)
        a, b = start[kept], end[kept]
        middle, there = a.mean(0), b.mean(0)
        zoom = float(((a - middle) * (b - there)).sum() / ((a - middle) ** 2).sum())
        pan = there - zoom * middle
        off = np.linalg.norm(zoom * start + pan - end, axis=-1)
        kept = off <= max(2 * np.median(off[kept]), 1e-6)
    return zoom, pan
