"""Outlines and paths of the shapes world: signed distance functions and curves, in numpy.

This module refuses to know colours, pixel values and captions.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Every outline has its centroid at the origin and about the area of the unit circle, so that one
# radius gives the same visible size for all of them.


def _circle(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 1.0


def _square(x: Array, y: Array) -> Array:
    return np.maximum(abs(x), abs(y)) - 0.89


def _triangle(x: Array, y: Array) -> Array:
    # Inside three half-planes at the inradius; one corner points up (y grows downward).
    s = np.sqrt(3) / 2
    return np.maximum(y, np.maximum(s * x - 0.5 * y, -s * x - 0.5 * y)) - 0.78


def _star(x: Array, y: Array) -> Array:
    # The plane is folded into one tenth to give five points; outer radius 1.4, inner 0.62.
    sector = np.pi / 5
    angle = np.arctan2(x, -y)
    angle = abs((angle + sector) % (2 * sector) - sector)
    radius = np.hypot(x, y)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    ax, ay = 1.4, 0.0
    bx, by = 0.62 * np.cos(sector), 0.62 * np.sin(sector)
    normal = np.array([by - ay, ax - bx]) / np.hypot(bx - ax, by - ay)
    return (px - ax) * normal[0] + (py - ay) * normal[1]


def _cross(x: Array, y: Array) -> Array:
    long, wide = 1.2, 0.42
    upright = np.maximum(abs(x) - wide, abs(y) - long)
    level = np.maximum(abs(x) - long, abs(y) - wide)
    return np.minimum(upright, level)


def _ring(x: Array, y: Array) -> Array:
    return abs(np.hypot(x, y) - 0.95) - 0.3


OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
# Largest distance of a shape's outline from its centre, in radii.
REACH = {
    "circle": 1.0,
    "square": 1.26,
    "triangle": 1.56,
    "star": 1.4,
    "cross": 1.28,
    "ring": 1.25,
}


def coverage(shape: str, grid: Array, centre: Array, radius: Array, angle: Array) -> Array:
    """The fraction of each pixel that the shape covers, (F, H, W), with one pixel of antialiasing.

    `grid` (H, W, 2) holds pixel centres in frame widths. `centre` (F, 2) and `radius` (F,) are in
    frame widths, `angle` (F,) is in radians, clockwise on the screen.
    """
    offset = (grid[None] - centre[:, None, None]) / radius[:, None, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    x = cos * offset[..., 0] + sin * offset[..., 1]
    y = -sin * offset[..., 0] + cos * offset[..., 1]
    pixel = 1.0 / (grid.shape[1] * radius[:, None, None])
    return np.clip(0.5 - OUTLINES[shape](x, y) / pixel, 0.0, 1.0)


def _line(s: Array, rng: np.random.Generator) -> Array:
    return np.stack([s, np.zeros_like(s)], -1)


def _arc(s: Array, rng: np.random.Generator) -> Array:
    turn = rng.uniform(0.5, 1.0) * np.pi
    angle = (s - 0.5) * turn
    return np.stack([np.sin(angle), np.cos(angle)], -1)


def _full_circle(s: Array, rng: np.random.Generator) -> Array:
    angle = 2 * np.pi * s
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def _zigzag(s: Array, rng: np.random.Generator) -> Array:
    turns = rng.choice([1.5, 2.0, 2.5])
    return np.stack([2 * s, 0.5 * abs(2 * ((turns * s) % 1) - 1)], -1)


def _bounce(s: Array, rng: np.random.Generator) -> Array:
    hops = rng.choice([1.5, 2.0, 2.5])
    phase = (hops * s) % 1
    return np.stack([1.6 * s, -4 * 0.7 * phase * (1 - phase)], -1)


def _wave(s: Array, rng: np.random.Generator) -> Array:
    cycles = rng.choice([1.0, 1.5])
    return np.stack([2 * s, 0.4 * np.sin(2 * np.pi * cycles * s)], -1)


def _spiral(s: Array, rng: np.random.Generator) -> Array:
    angle = 2 * np.pi * rng.choice([1.25, 1.5]) * s
    return np.stack([np.cos(angle), np.sin(angle)], -1) * (1 - 0.75 * s)[:, None]


def _still(s: Array, rng: np.random.Generator) -> Array:
    return np.zeros((len(s), 2))


PATHS: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "line": _line,
    "arc": _arc,
    "circle": _full_circle,
    "zigzag": _zigzag,
    "bounce": _bounce,
    "wave": _wave,
    "spiral": _spiral,
    "still": _still,
}


def path(kind: str, frames: int, margin: float, rng: np.random.Generator) -> Array:
    """A curve (frames, 2) in frame widths that keeps `margin` from every edge of the frame.

    The curve is rotated by a random angle, played forward or backward, scaled to a random fraction
    of the available space, and placed at random. A bounce is only mirrored and not rotated, because
    it falls downward.
    """
    curve = PATHS[kind](np.linspace(0, 1, frames), rng)
    if kind != "bounce":
        turn = rng.uniform(0, 2 * np.pi)
        cos, sin = np.cos(turn), np.sin(turn)
        curve = curve @ np.array([[cos, -sin], [sin, cos]])
    if rng.random() < 0.5:
        curve[:, 0] *= -1
    if rng.random() < 0.5:
        curve = curve[::-1]
    low, high = curve.min(0), curve.max(0)
    room = 1 - 2 * margin
    curve = (curve - low) * (room * rng.uniform(0.7, 1.0) / max((high - low).max(), 1e-9))
    extent = curve.max(0)
    return margin + curve + rng.uniform(0, 1, 2) * (room - extent)
