"""Parts of figures: convex polygons in body coordinates, and how they are coloured.

A figure is a list of parts from back to front. Every part has the same number of vertices in every
pose, so a point of a part can be followed from frame to frame (see `truth.py`). Body coordinates
have the subject's root at the origin, x forward and y down; one unit is about half of the subject's
length. This module refuses to know kinds of figures and pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Point = tuple[float, float]
Colour = tuple[int, int, int]

_FIXED: dict[str, Colour] = {
    "ink": (28, 24, 26),
    "skin": (236, 188, 150),
    "hair": (70, 46, 30),
    "hoof": (58, 46, 40),
    "glass": (186, 216, 232),
    "tyre": (38, 38, 42),
    "metal": (176, 180, 186),
    "beak": (244, 176, 44),
    "wood": (122, 84, 52),
    "sail": (238, 234, 222),
    "trousers": (64, 66, 84),
}
_SHADES = {"coat": 1.0, "shade": 0.72, "deep": 0.52}
_LIGHT = 0.45  # fraction of white in the light tone


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A convex polygon of one colour."""

    name: str
    """The member that it belongs to, such as "torso". Several polygons can form one member."""
    outline: Array  # (N, 2)
    tone: str
    """A shade of the subject's colour (coat, shade, deep, light) or a fixed colour."""


def paint(tone: str, colour: Colour) -> Colour:
    """The RGB value of a tone for a subject of `colour`."""
    if tone in _FIXED:
        return _FIXED[tone]
    rgb = np.array(colour, float)
    rgb = rgb + _LIGHT * (255 - rgb) if tone == "light" else rgb * _SHADES[tone]
    red, green, blue = (int(v) for v in np.clip(np.round(rgb), 0, 255))
    return red, green, blue


def tones(colour: Colour) -> list[Colour]:
    """All colours that a subject of `colour` can show."""
    return [paint(tone, colour) for tone in (*_SHADES, "light", *_FIXED)]


def capsule(
    name: str, start: Point, end: Point, radius: float, end_radius: float, tone: str = "coat"
) -> Part:
    """A limb from `start` to `end` with round ends."""
    a, b = np.array(start, float), np.array(end, float)
    along = np.arctan2(*(b - a)[::-1])
    half = np.linspace(0.5 * np.pi, 1.5 * np.pi, 7)
    back = a + radius * _directions(along + half)
    front = b + end_radius * _directions(along + half + np.pi)
    return Part(name, np.concatenate([back, front]), tone)


def ellipse(
    name: str, centre: Point, radii: Point, turn: float = 0.0, tone: str = "coat", corners: int = 18
) -> Part:
    """An ellipse; its vertices turn with it."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return Part(name, place(_directions(angle) * np.array(radii), centre, turn), tone)


def disc(name: str, centre: Point, radius: float, turn: float = 0.0, tone: str = "coat") -> Part:
    """A circle that rolls: its vertices are turned by `turn`."""
    angle = np.linspace(0, 2 * np.pi, 18, endpoint=False) + turn
    return Part(name, np.array(centre) + radius * _directions(angle), tone)


def polygon(name: str, points: Sequence[Point], tone: str = "coat") -> Part:
    """A convex polygon."""
    return Part(name, np.array(points, float), tone)


def ribbon(
    name: str, spine: Array, radii: Array, tones: Sequence[str], ends: bool = True
) -> list[Part]:
    """A flexible body: quadrilaterals along a spine (N, 2) with half widths `radii` (N,).

    `tones` colours them in turn. `ends` closes the body with a circle at the first and last point.
    """
    step = np.gradient(spine, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], -1)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    upper, lower = spine - radii[:, None] * normal, spine + radii[:, None] * normal
    parts = []
    if ends:
        for index, tone in ((0, tones[0]), (-1, tones[(len(spine) - 2) % len(tones)])):
            x, y = spine[index]
            parts.append(ellipse(name, (x, y), (radii[index], radii[index]), 0.0, tone, 12))
    for index in range(len(spine) - 1):
        corners = np.stack([upper[index], upper[index + 1], lower[index + 1], lower[index]])
        parts.append(Part(name, corners, tones[index % len(tones)]))
    return parts


def place(points: Array, centre: Point, turn: float) -> Array:
    """Points (N, 2) turned by `turn` radians, clockwise on the screen, and moved to `centre`."""
    cos, sin = np.cos(turn), np.sin(turn)
    return points @ np.array([[cos, sin], [-sin, cos]]) + np.array(centre)


def joint(start: Point, angle: float, length: float) -> Point:
    """The end of a bone that begins at `start`. Angle 0 points down, and a positive angle swings it
    forward."""
    return start[0] + length * float(np.sin(angle)), start[1] + length * float(np.cos(angle))


def _directions(angle: Array) -> Array:
    return np.stack([np.cos(angle), np.sin(angle)], -1)
