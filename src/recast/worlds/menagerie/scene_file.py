"""Scenes as the content of a .json file, beside a rendered clip. It refuses to know pixels."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from recast.worlds.menagerie import captions, world
from recast.worlds.menagerie.world import Scene

_IN_PIXELS = ("centre", "scale", "pan")
_DIGITS = 4


def content(scene: Scene, seed: int) -> dict[str, Any]:
    """A scene in numbers and words: lengths in pixels of a frame of `world.SIZE`, angles in
    radians, and everything that changes over time as one value for each frame."""
    values = {field.name: getattr(scene, field.name) for field in fields(scene)}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            unit = world.SIZE if name in _IN_PIXELS else 1
            values[name] = np.round(value * unit, _DIGITS).tolist()
    return {
        "world": "menagerie",
        "caption": captions.prompt(scene.kind, scene.colour, scene.landscape),
        "seed": seed,
        "fps": world.FPS,
        "size": world.SIZE,
        **values,
    }


def scene(content: Mapping[str, Any]) -> Scene:
    """The scene of such a content. Raises `KeyError`, `TypeError` or `ValueError` for another
    one."""
    values: dict[str, Any] = {}
    for field in fields(Scene):
        value = content[field.name]
        if isinstance(value, list):
            unit = content["size"] if field.name in _IN_PIXELS else 1
            value = np.array(value, float) / unit
        values[field.name] = value
    return Scene(**values)
