"""A scene from a sentence: what the sentence names replaces what the seed drew.

The opposite of `captions.py`, by the same words. Refuses what it cannot use rather than ignore it.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from recast.errors import BadCall
from recast.shapes import captions, geometry, world
from recast.shapes.world import COLOURS, FRAMES, GROUNDS, PATTERNS, SHAPES, Scene, sample

# Longest first: "moving in a circle" is a path, and a "circle" left over is a shape.
_MOTIONS = sorted(
    (
        ("moving in a straight line", "line"),
        ("in a straight line", "line"),
        ("gliding along a line", "line"),
        ("along a line", "line"),
        ("drifting steadily", "line"),
        ("moving along an arc", "arc"),
        ("along an arc", "arc"),
        ("swinging in an arc", "arc"),
        ("swinging", "arc"),
        ("moving in a circle", "circle"),
        ("circling around", "circle"),
        ("circling", "circle"),
        ("going round in circles", "circle"),
        ("in circles", "circle"),
        ("moving in a zigzag", "zigzag"),
        ("in a zigzag", "zigzag"),
        ("zigzagging", "zigzag"),
        ("bouncing up and down", "bounce"),
        ("bouncing", "bounce"),
        ("hopping along", "bounce"),
        ("hopping", "bounce"),
        ("moving in a wave", "wave"),
        ("in a wave", "wave"),
        ("waving along", "wave"),
        ("moving in a spiral", "spiral"),
        ("in a spiral", "spiral"),
        ("spiraling inward", "spiral"),
        ("spiraling", "spiral"),
        ("standing still", "still"),
        ("at rest", "still"),
        ("that does not move", "still"),
    ),
    key=lambda pair: -len(pair[0]),
)
_FILLERS = {
    *("a", "an", "the", "on", "over", "in", "front", "of", "against", "that", "is", "and", "with"),
    *("background", "backdrop", "scene", "video", "animation", "clip", "moving"),
}
_SPELLINGS = {"grey": "gray", "checkerboard": "checkered", "stripes": "striped", "dots": "dotted"}


def described(caption: str, seed: int, frames: int = FRAMES) -> Scene:
    """The scene of a seed with the shape, colour, ground, pattern and path that a caption names.

    A ground that is named without a pattern is plain. A named path is drawn anew for the seed.
    Raises `BadCall` for a word that says none of these, or for two that contradict each other.
    """
    return _changed(sample(seed, frames), named(caption), seed)


def named(caption: str) -> dict[str, str]:
    """What a caption names: "shape", "colour", "ground", "pattern", "path", as far as it does.

    Raises `BadCall` for a word that says none of these, or for two that contradict each other.
    """
    rest, paths = _motions(" ".join(captions.words(caption)))
    kinds = {
        "shape": SHAPES,
        "colour": tuple(COLOURS),
        "ground": tuple(GROUNDS),
        "pattern": PATTERNS,
    }
    found: dict[str, set[str]] = {kind: set() for kind in kinds}
    found["path"] = paths
    for word in (_SPELLINGS.get(word, word) for word in rest):
        kind = next((kind for kind, values in kinds.items() if word in values), None)
        if kind is not None:
            found[kind].add(word)
        elif word not in _FILLERS:
            raise BadCall(f"the shapes world cannot draw {word!r}; it knows {_known(kinds)}")
    return {kind: _only(kind, words) for kind, words in found.items() if words}


def dressed(scene: Scene, chosen: Mapping[str, str]) -> Scene:
    """The scene with another look and the same motion; a ground without a pattern is plain."""
    if "ground" in chosen:
        chosen = {"pattern": "plain", **chosen}
    return replace(
        scene,
        shape=chosen.get("shape", scene.shape),
        colour=chosen.get("colour", scene.colour),
        ground=chosen.get("ground", scene.ground),
        pattern=chosen.get("pattern", scene.pattern),
    )


def _motions(text: str) -> tuple[list[str], set[str]]:
    """The words that tell no motion, and the paths that the others tell."""
    text, paths = f" {text} ", set()
    for phrase, path in _MOTIONS:
        if f" {phrase} " in text:
            text = text.replace(f" {phrase} ", " ")
            paths.add(path)
    return text.split(), paths


def _only(kind: str, words: set[str]) -> str:
    if len(words) > 1:
        raise BadCall(f"the caption names {' and '.join(sorted(words))}; a scene has one {kind}")
    return next(iter(words))


def _changed(scene: Scene, chosen: dict[str, str], seed: int) -> Scene:
    scene = dressed(scene, chosen)
    path, needed = chosen.get("path", scene.path), world.margin(scene.shape, scene.radius)
    centre = scene.centre
    whole = bool((centre >= needed).all() and (centre <= 1 - needed).all())
    if path == scene.path and whole:
        return scene
    rng = np.random.default_rng([seed, list(geometry.PATHS).index(path)])
    return replace(scene, path=path, centre=geometry.path(path, len(centre), needed, rng))


def _known(kinds: dict[str, tuple[str, ...]]) -> str:
    paths = "motions such as 'moving in a circle', 'bouncing' or 'standing still'"
    return "; ".join([*(", ".join(values) for values in kinds.values()), paths])
