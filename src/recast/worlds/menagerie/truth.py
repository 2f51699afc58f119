"""The exact truth of a scene: masks, members, visible layers and dense point tracks.

A point of the subject is followed through the polygon that it lies in: its position is written as a
mean of the polygon's centre and two neighbouring corners, and every pose has the same polygons.
Coordinates are (x, y) in pixels, with (0, 0) at the corner of the first pixel.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recast.worlds.menagerie import landscapes, world
from recast.worlds.menagerie.landscapes import LAYERS
from recast.worlds.menagerie.parts import Array, Part
from recast.worlds.menagerie.world import SIZE, Scene

SUBJECT = len(LAYERS)
"""The value of the subject in `SceneTruth.layer`; smaller values are indices into `LAYERS`."""
_FINE = 4  # samples along a pixel's side for masks


@dataclass(frozen=True, slots=True, eq=False)
class SceneTruth:
    """The exact content of a rendered scene."""

    centre: Array
    """The subject's root, (F, 2)."""
    scale: Array
    """Pixels in a body unit, (F,)."""
    mask: NDArray[np.bool_]
    """Where the subject is visible in at least half of a pixel, (F, H, W)."""
    layer: NDArray[np.uint8]
    """The layer that is visible in the middle of each pixel, (F, H, W): an index into `LAYERS`,
    which are sorted from back to front, or `SUBJECT`."""
    member: NDArray[np.uint8]
    """The visible member of the subject, (F, H, W): 1 + an index into `members`, or 0."""
    members: tuple[str, ...]
    """Names of the members, such as "near front leg"."""
    tracks: Array
    """Positions of points of the first frame, (F, N, 2)."""
    visible: NDArray[np.bool_]
    """Whether a point is inside the frame and not covered, (F, N)."""
    on_subject: NDArray[np.bool_]
    """(N,)"""


def truth(scene: Scene, size: int = SIZE, spacing: int = 4) -> SceneTruth:
    """The exact content of `render(scene, size)`; points start on a grid of `spacing` pixels."""
    subjects = [world.parts_on_screen(scene, index) for index in range(len(scene))]
    members = tuple(dict.fromkeys(part.name for part, _ in subjects[0]))
    maps = [_maps(scene, index, subjects[index], size) for index in range(len(scene))]
    layer = np.stack([one[0] for one in maps])
    part = np.stack([one[1] for one in maps])  # 1 + index of the topmost polygon
    numbers = np.array([0] + [1 + members.index(p.name) for p, _ in subjects[0]], np.uint8)
    ticks = (np.arange(spacing // 2, size, spacing) + 0.5) / size
    start = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    tracks, owner = _tracks(scene, start, layer[0], part[0], subjects)
    pixel = np.floor(tracks * size).astype(int)
    inside = ((pixel >= 0) & (pixel < size)).all(-1)
    x, y = np.moveaxis(pixel.clip(0, size - 1), -1, 0)
    frame = np.arange(len(scene))[:, None]
    on_subject = owner >= 0
    same = np.where(on_subject, part[frame, y, x] == owner + 1, layer[frame, y, x] == -owner - 1)
    return SceneTruth(
        centre=scene.centre * size,
        scale=scene.scale * size,
        mask=np.stack([one[2] for one in maps]),
        layer=layer,
        member=numbers[part],
        members=members,
        tracks=tracks * size,
        visible=inside & same,
        on_subject=on_subject,
    )


def depth_maps(scene: Scene, size: int = SIZE) -> NDArray[np.uint8]:
    """The depth of a scene as a structure map, (F, size, size, 3): grey levels of the layers in
    their order, from the black sky to the white front. The subject is between ground and front."""
    order = [*LAYERS[:-1], "subject", LAYERS[-1]]
    levels = np.array([order.index(name) for name in (*LAYERS, "subject")]) * 255
    grey = (levels // (len(order) - 1)).astype(np.uint8)[truth(scene, size).layer]
    return np.repeat(grey[..., None], 3, axis=-1)


def _maps(
    scene: Scene, index: int, subject: list[tuple[Part, Array]], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.bool_]]:
    """Of one frame: the visible layer, 1 + the topmost polygon of the subject, and the mask."""
    pixels = size * _FINE
    layer = np.zeros((pixels, pixels), np.uint8)
    part = np.zeros((pixels, pixels), np.uint16)
    shapes = landscapes.shapes(scene.landscape, scene.layout, scene.front)
    front = [shape for shape in shapes if shape.layer == "front"]
    for shape in shapes:
        if shape.layer not in ("front", "sky"):
            _draw(layer, scene, index, shape, LAYERS.index(shape.layer))
    for number, (_, outline) in enumerate(subject):
        landscapes.fill(layer, outline, SUBJECT)
        landscapes.fill(part, outline, number + 1)
    for shape in front:
        _draw(layer, scene, index, shape, LAYERS.index("front"))
    part[layer != SUBJECT] = 0
    cover = cv2.resize((part > 0).astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    middle = slice(_FINE // 2, None, _FINE)
    return layer[middle, middle], part[middle, middle], np.asarray(cover >= 0.5)


def _draw(
    image: NDArray[np.uint8], scene: Scene, index: int, shape: landscapes.Shape, value: int
) -> None:
    outline = landscapes.on_screen(shape.outline, shape.layer, scene.pan[index], scene.zoom[index])
    landscapes.fill(image, outline, value)


def _tracks(
    scene: Scene,
    start: Array,
    layer: NDArray[np.uint8],
    part: NDArray[np.uint16],
    subjects: list[list[tuple[Part, Array]]],
) -> tuple[Array, NDArray[np.int64]]:
    """Positions (F, N, 2) in frame widths of points that begin at `start` (N, 2), and the owner of
    each point: the index of a polygon of the subject, or -1 - the index of a layer."""
    size = layer.shape[0]
    x, y = np.floor(start * size).astype(int).T
    polygon = part[y, x].astype(np.int64) - 1
    owner = np.where(polygon >= 0, polygon, -1 - layer[y, x].astype(np.int64))
    tracks = np.empty((len(scene), len(start), 2))
    for index, name in enumerate(LAYERS):
        chosen = owner == -1 - index
        world_points = _in_world(start[chosen], name, scene.pan[0], float(scene.zoom[0]))
        for frame in range(len(scene)):
            tracks[frame, chosen] = landscapes.on_screen(
                world_points, name, scene.pan[frame], float(scene.zoom[frame])
            )
    for number in np.unique(owner[owner >= 0]):
        chosen = owner == number
        outlines = np.stack([parts[number][1] for parts in subjects])
        tracks[:, chosen] = follow(outlines, start[chosen])
    return tracks, owner


def _in_world(points: Array, layer: str, pan: Array, zoom: float) -> Array:
    depth = landscapes.DEPTHS[layer]
    return (points - 0.5 - depth * pan) / (1 + depth * (zoom - 1)) + 0.5


def follow(outlines: Array, points: Array) -> Array:
    """Positions (F, N, 2) of points (N, 2) that lie in a convex polygon, whose corners move as in
    `outlines` (F, K, 2)."""
    centres = outlines.mean(1)  # (F, 2)
    spokes = outlines - centres[:, None]  # (F, K, 2)
    following = np.roll(spokes, -1, axis=1)
    # Each point lies in the triangle of the centre and two neighbouring corners: p = a·s + b·s'.
    matrix = np.stack([spokes[0], following[0]], -1)  # (K, 2, 2)
    weights = np.einsum("kij,nj->nki", np.linalg.pinv(matrix), points - centres[0])
    best = weights.min(-1).argmax(1)  # the triangle in which both weights are positive
    a, b = weights[np.arange(len(points)), best].T
    moved = a[:, None] * spokes[:, best] + b[:, None] * following[:, best]
    return np.asarray(centres[:, None] + moved)
