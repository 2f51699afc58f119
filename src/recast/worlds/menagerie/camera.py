"""The camera of a clip of the menagerie, estimated from the pixels of its landscape.

Corners of the landscape are followed from frame to frame, and a pan and a zoom are fitted to them.
The layers of a landscape are at different depths and move by different amounts. To which layer a
corner belongs is read from a scene that the clip should show, seen by the camera that was found so
far. This module refuses to know how a clip was generated.
"""

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recast.worlds.menagerie import landscapes
from recast.worlds.menagerie.landscapes import DEPTHS, LAYERS, SCENES
from recast.worlds.menagerie.parts import Array
from recast.worlds.menagerie.world import Scene

LANDSCAPES = tuple(name for name in SCENES if name != "sky")
"""Landscapes that show how the camera moves; clouds are too smooth and too pale."""
_CORNERS = 150
_QUALITY = 0.002  # of a corner, relative to the best one
_WINDOW = (9, 9)  # pixels around a corner that are compared
_LARGEST_RETURN = 0.5  # pixels: a corner that is farther from its start after going back is lost
_DRAWS = 100  # of pairs of corners
_AGREES = 0.75  # pixels between where a corner is and where a fit expects it
_LEAST_CORNERS = 8  # that a fit needs
_COVER = np.ones((7, 7), np.uint8)  # the subject is enlarged by half of it
_CONTRAST = 4.0  # limit of the local equalisation


def estimate_camera(
    frames: NDArray[np.uint8], masks: NDArray[np.bool_], scene: Scene
) -> tuple[Array, Array]:
    """Pan (F, 2) in frame widths and zoom (F,), as in `Scene`, of a clip (F, H, W, 3) of square
    frames. The first frame has the camera of the scene, whose landscape tells the depths.

    `masks` (F, H, W) is the subject, which is ignored. Between two frames that show too few
    corners, the camera is assumed to stand still.
    """
    enhance = cv2.createCLAHE(_CONTRAST, (4, 4))  # dark landscapes have faint corners
    grey = [enhance.apply(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for frame in frames]
    free = [cv2.dilate(mask.astype(np.uint8), _COVER) == 0 for mask in masks]
    pans, zooms = [scene.pan[0]], [float(scene.zoom[0])]
    for before, after in pairwise(range(len(frames))):
        depth = _depths(scene, pans[-1], zooms[-1], frames.shape[1])
        start, end = _followed(grey[before], grey[after], free[before] & (depth > 0), free[after])
        pan, zoom = _fitted(start, end, depth, pans[-1], zooms[-1])
        pans.append(pan)
        zooms.append(zoom)
    return np.stack(pans), np.array(zooms)


def camera_error(frames: NDArray[np.uint8], masks: NDArray[np.bool_], scene: Scene) -> float:
    """Mean distance in frame widths between points of the ground moved by the camera of the scene
    and by that of the clip (F, H, W, 3).

    The points form a grid over the first frame. For a clip whose camera stands still, the error is
    the mean distance by which the scene's camera moves the ground.
    """
    grid = np.stack(np.meshgrid(*[np.linspace(0.05, 0.95, 7)] * 2), -1).reshape(-1, 2) - 0.5
    pan, zoom = estimate_camera(frames, masks, scene)
    on_ground = (grid - scene.pan[0]) / scene.zoom[0]
    found = zoom[:, None, None] * on_ground + pan[:, None]
    expected = scene.zoom[:, None, None] * on_ground + scene.pan[:, None]
    return float(np.linalg.norm(found - expected, axis=-1).mean())


def _followed(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    free: NDArray[np.bool_],
    free_after: NDArray[np.bool_],
) -> tuple[Array, Array]:
    """Corners (N, 2) of a frame in its `free` region and where they are in the next frame, in
    pixels (Lucas and Kanade 1981). A corner that does not come back when it is followed backward is
    left out."""
    mask = free.astype(np.uint8)
    corners: Any = cv2.goodFeaturesToTrack(before, _CORNERS, _QUALITY, 3, mask=mask)
    if corners is None:
        return np.zeros((0, 2)), np.zeros((0, 2))
    there, found = _moved(before, after, corners)
    back, found_back = _moved(after, before, there)
    start, end, returned = (points[:, 0].astype(float) for points in (corners, there, back))
    x, y = np.round(end).astype(int).clip(0, before.shape[0] - 1).T
    usable = found & found_back & free_after[y, x]
    usable &= np.linalg.norm(returned - start, axis=-1) < _LARGEST_RETURN
    centre = 0.5  # OpenCV's coordinates are 0 in the middle of the first pixel
    return start[usable] + centre, end[usable] + centre


def _moved(
    before: NDArray[np.uint8], after: NDArray[np.uint8], points: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where points (N, 1, 2) of a frame are in another one, and whether they were found, (N,)."""
    start = np.empty_like(points)
    there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, points, start, winSize=_WINDOW)
    return np.asarray(there, np.float32), np.asarray(found)[:, 0].astype(bool)


def _depths(scene: Scene, pan: Array, zoom: float, size: int) -> Array:
    """The depth of the layer in each pixel (size, size), for a camera before the scene's landscape.
    An edge between two layers belongs to the nearer one."""
    layer = np.zeros((size, size), np.uint8)
    for shape in landscapes.shapes(scene.landscape, scene.layout, scene.front):
        if shape.layer != "sky":
            outline = landscapes.on_screen(shape.outline, shape.layer, pan, zoom)
            landscapes.fill(layer, outline, LAYERS.index(shape.layer))
    return np.array(list(DEPTHS.values()))[cv2.dilate(layer, np.ones((3, 3), np.uint8))]


def _fitted(
    start: Array, end: Array, depth_map: Array, pan: Array, zoom: float
) -> tuple[Array, float]:
    """The pan and zoom after a step in which most points (N, 2) in pixels moved from `start` to
    `end`; `pan` and `zoom` are those before it.

    A point of depth d that is at w in the world, about the middle of the frame, is seen at
    w + d·((zoom − 1)·w + pan). The step on which most points agree is chosen among those of random
    pairs of points (RANSAC), and fitted to these points by least squares.
    """
    size = len(depth_map)
    x, y = np.floor(start).astype(int).clip(0, size - 1).T
    depth = depth_map[y, x][:, None]
    world = (start / size - 0.5 - depth * pan) / (1 + depth * (zoom - 1))
    ones = np.ones_like(world)
    rows = depth[..., None] * np.stack([world, ones * (1, 0), ones * (0, 1)], -1)  # (N, 2, 3)
    target = end / size - 0.5 - world
    if len(world) < _LEAST_CORNERS:
        return pan, zoom
    pairs = np.random.default_rng(0).integers(len(world), size=(_DRAWS, 2))
    solutions = np.linalg.pinv(rows[pairs].reshape(-1, 4, 3)) @ target[pairs].reshape(-1, 4, 1)
    distance = np.linalg.norm(rows @ solutions[:, None] - target[..., None], axis=2)[..., 0]
    agrees = distance * size < _AGREES  # (draws, N)
    inliers = agrees[agrees.sum(1).argmax()]
    if inliers.sum() < _LEAST_CORNERS:
        return pan, zoom
    solution = np.linalg.lstsq(rows[inliers].reshape(-1, 3), target[inliers].ravel())[0]
    return solution[1:], float(1 + solution[0])
