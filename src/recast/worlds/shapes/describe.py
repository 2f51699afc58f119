"""Scenes from captions: the attributes that a caption names replace those of a seed's scene.

This module owns the meaning of words, and is the reverse of `captions.py`. A word without a meaning
in the shapes world raises an error.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from recast.errors import BadCall
from recast.worlds import wording
from recast.worlds.shapes import captions, geometry, world
from recast.worlds.shapes.world import COLOURS, FRAMES, GROUNDS, PATTERNS, SHAPES, Scene, sample

_SHORT_PHRASES = {
    "line": ("in a straight line", "along a line"),
    "arc": ("along an arc", "swinging"),
    "circle": ("circling", "in circles"),
    "zigzag": ("in a zigzag",),
    "bounce": ("hopping",),
    "wave": ("in a wave",),
    "spiral": ("in a spiral", "spiraling"),
}
_PHRASES = [
    (phrase, path)
    for phrases in (captions.MOTION_PHRASES, _SHORT_PHRASES)
    for path, options in phrases.items()
    for phrase in options
]
_FILLERS = {
    *("a", "an", "the", "on", "over", "in", "front", "of", "against", "that", "is", "and", "with"),
    *("background", "backdrop", "scene", "video", "animation", "clip", "moving"),
}
_SPELLINGS = {"grey": "gray", "checkerboard": "checkered", "stripes": "striped", "dots": "dotted"}


def scene_from_caption(caption: str, seed: int, frames: int = FRAMES) -> Scene:
    """The scene of a seed with the shape, colour, ground, pattern and path that a caption names.

    A ground without a pattern becomes plain. If the caption names another path than that of the
    scene, the path is sampled again from the seed. Raises `BadCall` for an unknown word, and for
    two different values of one attribute.
    """
    return _with_attributes(sample(seed, frames), parse_caption(caption), seed)


def parse_caption(caption: str) -> dict[str, str]:
    """The attributes that a caption names, among "shape", "colour", "ground", "pattern", "path".

    Raises `BadCall` for an unknown word, and for two different values of one attribute.
    """
    rest, paths = wording.split_phrases(caption, _PHRASES)
    kinds = {
        "shape": SHAPES,
        "colour": tuple(COLOURS),
        "ground": tuple(GROUNDS),
        "pattern": PATTERNS,
    }
    named: dict[str, set[str]] = {kind: set() for kind in kinds}
    named["path"] = paths
    for word in (_SPELLINGS.get(word, word) for word in rest):
        kind = next((kind for kind, values in kinds.items() if word in values), None)
        if kind is not None:
            named[kind].add(word)
        elif word not in _FILLERS:
            raise BadCall(f"the shapes world cannot draw {word!r}; it knows {_vocabulary(kinds)}")
    return wording.one_of_each(named)


def with_appearance(scene: Scene, chosen: Mapping[str, str]) -> Scene:
    """The scene with another appearance and the same motion.

    `chosen` maps "shape", "colour", "ground" or "pattern" to the new value; a ground without a
    pattern becomes plain.
    """
    if "ground" in chosen:
        chosen = {"pattern": "plain", **chosen}
    return replace(
        scene,
        shape=chosen.get("shape", scene.shape),
        colour=chosen.get("colour", scene.colour),
        ground=chosen.get("ground", scene.ground),
        pattern=chosen.get("pattern", scene.pattern),
    )


def _with_attributes(scene: Scene, chosen: dict[str, str], seed: int) -> Scene:
    scene = with_appearance(scene, chosen)
    path, margin = chosen.get("path", scene.path), world.margin(scene.shape, scene.radius)
    centre = scene.centre
    inside = bool((centre >= margin).all() and (centre <= 1 - margin).all())
    if path == scene.path and inside:
        return scene
    rng = np.random.default_rng([seed, list(geometry.PATHS).index(path)])
    return replace(scene, path=path, centre=geometry.path(path, len(centre), margin, rng))


def _vocabulary(kinds: dict[str, tuple[str, ...]]) -> str:
    paths = "motions such as 'moving in a circle', 'bouncing' or 'standing still'"
    return "; ".join([*(", ".join(values) for values in kinds.values()), paths])
