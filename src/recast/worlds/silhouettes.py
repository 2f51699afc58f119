"""Silhouettes compared: the overlap of masks, in place or after place and size are normalised.

What the detectors and the truth of all worlds share. This module refuses to know scenes.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float64]
Masks = NDArray[np.bool_]
SIDE = 32  # side in pixels of a normalised silhouette


def centre_and_extent(masks: Masks) -> tuple[Array, Array]:
    """Centroids (F, 2), x and y, and square roots of the areas (F,) of masks (F, H, W), in frame
    widths; NaN for an empty mask."""
    height, width = masks.shape[1:]
    path, extent = np.full((len(masks), 2), np.nan), np.full(len(masks), np.nan)
    for index, mask in enumerate(masks):
        y, x = np.nonzero(mask)
        if len(x):
            path[index] = (x.mean() + 0.5) / width, (y.mean() + 0.5) / height
            extent[index] = np.sqrt(len(x)) / width
    return path, extent


def normalised(mask: Masks) -> Array:
    """A mask (H, W) as an image (SIDE, SIDE) in [0, 1], centred on its centroid and scaled to a
    fixed second moment. An empty mask gives zeros."""
    points = np.argwhere(mask)
    if not len(points):
        return np.zeros((SIDE, SIDE))
    centre = np.array(ndimage.center_of_mass(mask))
    spread = max(float(np.sqrt(((points - centre) ** 2).sum(-1).mean())), 0.5)
    step = 2.2 * spread / (SIDE / 2)
    axis = (np.arange(SIDE) - (SIDE - 1) / 2) * step
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"))
    grid = grid + centre[:, None, None]
    return np.asarray(ndimage.map_coordinates(mask.astype(float), grid, order=1))


def overlap(a: Array, b: Array) -> float:
    """Intersection over union of two images with values in [0, 1]; 0 if both are empty."""
    union = float(np.maximum(a, b).sum())
    return float(np.minimum(a, b).sum()) / union if union else 0.0


def mean_iou(a: Masks, b: Masks) -> float:
    """Intersection over union of masks (F, H, W), mean over frames; two empty masks have 0."""
    intersection, union = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    return float(np.mean(intersection / np.maximum(union, 1)))
