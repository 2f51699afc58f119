"""Landscapes: layers at different depths, which a moving camera shifts by different amounts.

A landscape is a sky and four layers: far, middle, ground and, in some clips, front, which covers
the subject. Owns their palettes and outlines. Refuses to know subjects. World coordinates are frame
widths with the origin at the top left of the first frame without camera motion.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from recast.worlds.menagerie.parts import Array, Colour

Image = NDArray[np.uint8]
DEPTHS: Mapping[str, float] = {"sky": 0.0, "far": 0.25, "middle": 0.55, "ground": 1.0, "front": 1.4}
"""The fraction of the camera's motion that each layer makes, from back to front."""
LAYERS = tuple(DEPTHS)
_SHIFT = 4  # fractional bits of OpenCV's coordinates
_RANGE = (-1.6, 2.6)  # world coordinates that a camera can show


@dataclass(frozen=True, kw_only=True, slots=True)
class Palette:
    """The colours of a landscape and how its layers are shaped."""

    sky: tuple[Colour, Colour]
    """At the top and at the horizon."""
    far: Colour
    middle: Colour
    ground: Colour
    shapes: tuple[str, str]
    """The outlines of the far and the middle layer: hills, dunes, peaks, houses, trees or waves."""
    marks: str
    """What lies on the ground: tufts, stones, drifts, lines, ferns, ripples, clouds or stars."""


PALETTES: Mapping[str, Palette] = {
    "meadow": Palette(
        sky=((150, 190, 214), (204, 220, 224)),
        far=(142, 166, 160),
        middle=(132, 160, 128),
        ground=(138, 172, 114),
        shapes=("hills", "hills"),
        marks="tufts",
    ),
    "desert": Palette(
        sky=((206, 196, 176), (234, 216, 184)),
        far=(206, 176, 146),
        middle=(214, 188, 150),
        ground=(226, 204, 164),
        shapes=("peaks", "dunes"),
        marks="stones",
    ),
    "snow": Palette(
        sky=((146, 160, 182), (186, 194, 208)),
        far=(158, 172, 194),
        middle=(180, 192, 208),
        ground=(206, 214, 224),
        shapes=("peaks", "hills"),
        marks="drifts",
    ),
    "city": Palette(
        sky=((168, 172, 182), (198, 198, 200)),
        far=(146, 148, 160),
        middle=(122, 122, 134),
        ground=(96, 96, 104),
        shapes=("houses", "houses"),
        marks="lines",
    ),
    "forest": Palette(
        sky=((150, 172, 164), (184, 198, 180)),
        far=(110, 138, 122),
        middle=(80, 110, 90),
        ground=(104, 112, 80),
        shapes=("trees", "trees"),
        marks="ferns",
    ),
    "sea": Palette(
        sky=((164, 188, 204), (208, 216, 218)),
        far=(120, 152, 176),
        middle=(98, 136, 164),
        ground=(78, 118, 150),
        shapes=("waves", "waves"),
        marks="ripples",
    ),
    "sky": Palette(
        sky=((126, 164, 204), (190, 208, 226)),
        far=(204, 214, 226),
        middle=(214, 222, 232),
        ground=(222, 228, 236),
        shapes=("clouds", "clouds"),
        marks="none",
    ),
    "night": Palette(
        sky=((22, 26, 52), (46, 52, 84)),
        far=(42, 50, 78),
        middle=(36, 46, 62),
        ground=(32, 46, 48),
        shapes=("hills", "hills"),
        marks="stars",
    ),
}
SCENES = tuple(PALETTES)


def _wave(u: Array, rng: np.random.Generator, periods: tuple[float, ...]) -> Array:
    total = np.zeros_like(u)
    for number, period in enumerate(periods):
        weight = 0.55**number
        total += weight * np.sin(2 * np.pi * (u / period + rng.random()))
    return total


def _hills(u: Array, rng: np.random.Generator) -> Array:
    return 0.045 * _wave(u, rng, (0.9, 0.41, 0.23))


def _dunes(u: Array, rng: np.random.Generator) -> Array:
    phase = (u / 0.7 + rng.random()) % 1
    return 0.09 * (0.5 - np.where(phase < 0.7, phase / 0.7, (1 - phase) / 0.3))


def _peaks(u: Array, rng: np.random.Generator) -> Array:
    first, second = rng.random(2)
    sharp = np.abs(((u / 0.52 + first) % 1) - 0.5) + 0.6 * np.abs(((u / 0.31 + second) % 1) - 0.5)
    return 0.3 * (sharp - 0.4)


def _houses(u: Array, rng: np.random.Generator) -> Array:
    heights = rng.uniform(-0.17, 0.04, 64)
    return heights[np.floor(u / 0.115).astype(int) % 64]


def _trees(u: Array, rng: np.random.Generator) -> Array:
    heights = rng.uniform(0.08, 0.2, 64)
    number, phase = np.divmod(u / 0.13, 1)
    return 0.03 - heights[number.astype(int) % 64] * (1 - np.abs(2 * phase - 1))


def _waves(u: Array, rng: np.random.Generator) -> Array:
    return 0.018 * np.abs(np.sin(np.pi * (u / 0.17 + rng.random())))


def _clouds(u: Array, rng: np.random.Generator) -> Array:
    return -0.05 * np.abs(np.sin(np.pi * (u / 0.34 + rng.random()))) + 0.03 * _wave(u, rng, (1.1,))


_OUTLINES: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "hills": _hills,
    "dunes": _dunes,
    "peaks": _peaks,
    "houses": _houses,
    "trees": _trees,
    "waves": _waves,
    "clouds": _clouds,
}
_BASES = {"far": 0.52, "middle": 0.62, "ground": 0.72}


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """A coloured polygon of a layer, in world coordinates."""

    layer: str
    outline: Array  # (N, 2)
    colour: Colour


@lru_cache(maxsize=512)
def shapes(scene: str, seed: int, front: bool) -> tuple[Shape, ...]:
    """All polygons of a landscape, from back to front; `front` adds what covers the subject."""
    rng = np.random.default_rng(seed)
    palette = PALETTES[scene]
    u = np.linspace(*_RANGE, 420)
    found: list[Shape] = [*_sky(scene, palette, rng)]
    colours = {"far": palette.far, "middle": palette.middle, "ground": palette.ground}
    for layer, outline in zip(colours, (*palette.shapes, "hills"), strict=True):
        height = _BASES[layer] + _OUTLINES[outline](u, rng) * (0.35 if layer == "ground" else 1.0)
        if scene == "sky":
            height = height + 0.14
        edge = np.stack([u, height], -1)
        corners = np.array([(_RANGE[1], 3.0), (_RANGE[0], 3.0)])
        found.append(Shape(layer, np.concatenate([edge, corners]), colours[layer]))
        if outline == "houses":
            found += _windows(layer, colours[layer], rng)
    found += _marks(palette, rng)
    if front:
        found += _front(palette, rng)
    return tuple(found)


def _sky(scene: str, palette: Palette, rng: np.random.Generator) -> list[Shape]:
    if scene == "night":
        places = np.stack([rng.uniform(*_RANGE, 130), rng.uniform(-0.5, 0.5, 130)], -1)
        stars = [_blob("sky", place, (0.006, 0.006), (170, 172, 186), 6) for place in places]
        moon = _blob("sky", np.array((rng.uniform(0.1, 0.9), 0.16)), (0.07, 0.07), (206, 204, 190))
        return [*stars, moon]
    if scene in ("city", "sky"):
        return []
    shapes = []
    for x in rng.uniform(-1, 2, 5):
        centre = np.array((x, rng.uniform(0.08, 0.3)))
        light = _mixed(palette.sky[1], 1.0, 0.35)
        for shift in (-0.06, 0.0, 0.07):
            offset = centre + np.array((shift, 0.2 * abs(shift)))
            shapes.append(_blob("sky", offset, (0.075, 0.032), light))
    return shapes


def _windows(layer: str, colour: Colour, rng: np.random.Generator) -> list[Shape]:
    light = _mixed(colour, 1.0, 0.22)
    xs = np.arange(_RANGE[0] + 0.03, _RANGE[1], 0.115)
    found = []
    for x in xs:
        for row in range(3):
            if rng.random() < 0.55:
                y = _BASES[layer] + 0.015 + 0.055 * row
                box = np.array([(x, y), (x + 0.024, y), (x + 0.024, y + 0.026), (x, y + 0.026)])
                found.append(Shape(layer, box, light))
    return found


def _marks(palette: Palette, rng: np.random.Generator) -> list[Shape]:
    """Small things on the ground, so that a pan of the camera shows."""
    dark, light = _mixed(palette.ground, 0.82, 0.0), _mixed(palette.ground, 1.0, 0.3)
    if palette.marks == "none":
        return []
    if palette.marks == "lines":
        return [_box(x, 0.87, 0.1, 0.016, light) for x in np.arange(*_RANGE, 0.24)] + [
            _box(_RANGE[0], 0.765, 4.2, 0.012, dark)
        ]
    found = []
    for x in np.arange(*_RANGE, 0.075):
        place = np.array((x + rng.uniform(-0.03, 0.03), rng.uniform(0.77, 1.2)))
        if palette.marks in ("tufts", "ferns"):
            tall = 0.03 if palette.marks == "tufts" else 0.06
            corners = [(-0.02, 0.0), (-0.008, -tall), (0.008, -0.6 * tall), (0.022, 0.0)]
            found.append(Shape("ground", place + np.array(corners), dark))
        elif palette.marks == "ripples":
            found.append(_blob("ground", place, (0.035, 0.007), light))
        elif palette.marks == "drifts":
            found.append(_blob("ground", place, (0.05, 0.012), _mixed(palette.ground, 0.92, 0.0)))
        else:
            found.append(_blob("ground", place, (0.02, 0.011), dark))
    return found


def _front(palette: Palette, rng: np.random.Generator) -> list[Shape]:
    """A few tall shapes before the subject: trunks, posts, reeds."""
    colour = _mixed(palette.ground, 0.62, 0.0)
    found = []
    for x in np.arange(-1.2 + rng.random(), 2.4, float(rng.uniform(0.75, 1.1))):
        top = float(rng.uniform(0.45, 0.66))
        wide = float(rng.uniform(0.016, 0.03))
        corners = [(x - wide, 2.0), (x - 0.6 * wide, top), (x + 0.6 * wide, top), (x + wide, 2.0)]
        found.append(Shape("front", np.array(corners), colour))
        found.append(_blob("front", np.array((x, top)), (2.6 * wide, 2.2 * wide), colour))
    return found


def tones(scene: str) -> list[Colour]:
    """The colours that a landscape can show: its sky from top to bottom, its layers, and what lies
    on them."""
    palette = PALETTES[scene]
    sky = [tuple(row) for row in paint_sky(scene, 6)[:, 0].tolist()]
    layers = [palette.far, palette.middle, palette.ground]
    lights = [_mixed(palette.sky[1], 1.0, 0.35)]
    lights += [_mixed(layer, 1.0, 0.22) for layer in (palette.far, palette.middle)]
    marks = [(0.82, 0.0), (1.0, 0.3), (0.92, 0.0), (0.62, 0.0)]
    return [*sky, *layers, *lights, *(_mixed(palette.ground, *mark) for mark in marks)]


def _blob(
    layer: str, centre: Array, radii: tuple[float, float], colour: Colour, corners: int = 14
) -> Shape:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return Shape(layer, centre + np.stack([np.cos(angle), np.sin(angle)], -1) * radii, colour)


def _box(x: float, y: float, width: float, height: float, colour: Colour) -> Shape:
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    return Shape("ground", np.array(corners), colour)


def _mixed(colour: Colour, scale: float, white: float) -> Colour:
    values = np.array(colour, float) * scale
    red, green, blue = (int(v) for v in np.clip(values + white * (255 - values), 0, 255))
    return red, green, blue


def on_screen(points: Array, layer: str, pan: Array, zoom: float) -> Array:
    """World points (N, 2) of a layer as seen by a camera, in frame widths."""
    depth = DEPTHS[layer]
    scale = 1 + depth * (zoom - 1)
    return (points - 0.5) * scale + depth * pan + 0.5


def paint_sky(scene: str, pixels: int) -> Image:
    """A gradient from the top of the sky to the horizon, (pixels, pixels, 3)."""
    top, horizon = (np.array(colour, float) for colour in PALETTES[scene].sky)
    height = np.clip(np.linspace(0, 1.5, pixels), 0, 1)[:, None, None]
    column = np.round(top + height * (horizon - top)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(column, (pixels, pixels, 3)))


def fill(image: Image | NDArray[np.uint16], outline: Array, colour: tuple[int, ...] | int) -> None:
    """Draw a polygon, given in frame widths, into an image."""
    corners = np.round(outline * image.shape[0] * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(image, [corners], colour, cv2.LINE_8, _SHIFT)
