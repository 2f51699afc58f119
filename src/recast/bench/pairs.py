"""Held-out pairs of the shapes world: a scene whose motion is taken, and a prompt for another look.

The truth of each is known: where the subject should be, and what the prompt's words mean.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recast.errors import BadCall, UnknownName
from recast.evaluation.trackers import Tracker
from recast.media.video import Video
from recast.metrics.base import Tracks, Truth
from recast.shapes import camera as cameras
from recast.shapes import captions, oracle, world
from recast.shapes.describe import dressed, named

LOOKS = ("colour", "shape", "background")
_TARGETS = range(world.HELD_OUT.start + 50_000, world.HELD_OUT.stop)


def held_out(
    count: int,
    changes: Sequence[str] = LOOKS,
    paths: Sequence[str] = (),
    camera: bool | None = None,
    patterns: Sequence[str] = (),
) -> Iterator[tuple[int, str]]:
    """(seed of the source's scene, prompt), `count` of them, the same at every call.

    The source moves, along one of `paths` (any, without) and before a `camera` that moves or does
    not (either, for None); both backgrounds have one of `patterns` (any, without). The prompt asks
    for another look in all of `changes` and for the source's in the rest.
    """
    for path in paths:
        if path not in world.PATHS:
            raise UnknownName("path", path, world.PATHS)
    for pattern in patterns:
        if pattern not in world.PATTERNS:
            raise UnknownName("pattern", pattern, world.PATTERNS)
    wanted, grounds = set(paths) or set(world.PATHS) - {"still"}, patterns or world.PATTERNS
    looks = (look for look in map(world.sample, _TARGETS) if look.pattern in grounds)
    found = 0
    for seed in world.HELD_OUT:
        if found == count:
            return
        source = world.sample(seed)
        if source.path not in wanted or camera not in (None, _camera_moves(source)):
            continue
        if source.pattern not in grounds:
            continue
        look = next(look for look in looks if _differs(look, source, changes))
        found += 1
        yield seed, captions.prompt(_recast(source, look, changes))


def source(seed: int, frames: int = world.FRAMES, size: int = world.SIZE) -> Video:
    """The rendered clip of a scene."""
    return Video(world.render(world.sample(seed, frames), size), world.FPS)


def described(seed: int) -> str:
    """What a scene shows, in words."""
    return captions.prompt(world.sample(seed))


def answer(seed: int, prompt: str, frames: int = world.FRAMES, size: int = world.SIZE) -> Video:
    """The perfect result: the scene's motion with the look that the prompt names."""
    return Video(world.render(dressed(world.sample(seed, frames), named(prompt)), size), world.FPS)


def truth(seed: int, prompt: str, result: NDArray[np.uint8]) -> Truth:
    """What the oracle sees in a result (F, H, W, 3), and what should be there."""
    return _seen(world.sample(seed, len(result)), prompt, result)


def told(path: Path, prompt: str, result: NDArray[np.uint8]) -> Truth:
    """The same for a clip that `recast shapes render` wrote, from the .json beside it.

    Raises `BadCall` for another file, for a clip of another length, and for a prompt with words
    that the world does not have.
    """
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        centre = np.array(there["centre"], float) / there["size"]
        looks = {name: there[name] for name in ("shape", "colour", "ground", "pattern")}
        scene = dressed(world.sample(there["seed"], len(centre)), looks)
        pan, zoom = np.array(there["pan"], float) / there["size"], np.array(there["zoom"], float)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadCall(f"{path} is no truth that recast shapes render wrote ({error})") from error
    if len(centre) != len(result):
        raise BadCall(f"{path.name} tells of {len(centre)} frames, the clip has {len(result)}")
    return _seen(replace(scene, centre=centre, pan=pan, zoom=zoom), prompt, result)


def tracker(scene: world.Scene) -> Tracker:
    """The tracker `truth`: where the points of a rendered scene really go."""

    def track(frames: NDArray[np.uint8]) -> Tracks:
        told = world.truth(scene, frames.shape[1])
        return Tracks(told.tracks, told.visible)

    return track


def _seen(scene: world.Scene, prompt: str, result: NDArray[np.uint8]) -> Truth:
    """What a prompt does not name should look as in the scene."""
    asked, verdict = dressed(scene, named(prompt)), oracle.judge(result)
    right = {name: getattr(verdict, name) == getattr(asked, name) for name in LOOKS}
    was = world.truth(scene, result.shape[1]).mask
    shared, either = ((verdict.masks & was).sum((1, 2)), (verdict.masks | was).sum((1, 2)))
    overlap = float(np.mean(shared / np.maximum(either, 1)))
    seen = {scene.pattern, asked.pattern} <= set(cameras.PATTERNS)
    return Truth(
        path=scene.centre,
        found=verdict.path,
        right=right,
        overlap=overlap,
        camera=cameras.distance(result, verdict.masks, scene) if seen else None,
    )


def _differs(look: world.Scene, source: world.Scene, changes: Sequence[str]) -> bool:
    return all(getattr(look, name) != getattr(source, name) for name in changes)


def _recast(source: world.Scene, look: world.Scene, changes: Sequence[str]) -> world.Scene:
    parts = {"colour": ("colour",), "shape": ("shape",), "background": ("ground", "pattern")}
    taken = {part: getattr(look, part) for name in changes for part in parts[name]}
    return dressed(source, taken)


def _camera_moves(scene: world.Scene) -> bool:
    return bool(np.ptp(scene.pan, 0).max() > 0 or np.ptp(scene.zoom) > 0)
