"""Held-out pairs of the shapes world: a source scene, and a prompt for another appearance.

This module owns the choice of pairs and their exact ground truth: where the subject should be, and
what the prompt's words mean. It refuses to know methods and models.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recast.errors import BadClip, UnknownName
from recast.media.video import Video
from recast.metrics.base import ATTRIBUTES, GroundTruth, NoValue, Tracks
from recast.worlds.shapes import camera as cameras
from recast.worlds.shapes import captions, oracle, world
from recast.worlds.shapes.describe import parse_caption, with_appearance
from recast.worlds.silhouettes import mean_iou

_TARGET_SEEDS = range(world.HELD_OUT.start + 50_000, world.HELD_OUT.stop)


def held_out(
    count: int,
    changes: Sequence[str] = ATTRIBUTES["shapes"],
    paths: Sequence[str] = (),
    camera: bool | None = None,
    patterns: Sequence[str] = (),
    first: int = 0,
) -> Iterator[tuple[int, str]]:
    """`count` pairs (seed of the source scene, prompt). Equal arguments give equal pairs. The first
    `first` pairs are left out, so that settings can be chosen on other pairs than those of a test.

    The subject of the source moves along one of `paths` (empty: any), in front of a `camera` that
    moves (True), stands still (False) or either (None). Both backgrounds have one of `patterns`
    (empty: any). The prompt asks for a different value of each attribute in `changes`, and for the
    source's value of the others. Raises `UnknownName` for an unknown path or pattern.
    """
    for path in paths:
        if path not in world.PATHS:
            raise UnknownName("path", path, world.PATHS)
    for pattern in patterns:
        if pattern not in world.PATTERNS:
            raise UnknownName("pattern", pattern, world.PATTERNS)
    allowed_paths = set(paths) or set(world.PATHS) - {"still"}
    allowed_patterns = patterns or world.PATTERNS
    candidates = map(world.sample, _TARGET_SEEDS)
    targets = (target for target in candidates if target.pattern in allowed_patterns)
    found = 0
    for seed in world.HELD_OUT:
        if found == first + count:
            return
        source = world.sample(seed)
        if source.path not in allowed_paths or camera not in (None, _camera_moves(source)):
            continue
        if source.pattern not in allowed_patterns:
            continue
        target = next(target for target in targets if _differs(target, source, changes))
        found += 1
        if found > first:
            yield seed, captions.prompt(_with_changes(source, target, changes))


def source(seed: int, frames: int = world.FRAMES, size: int = world.SIZE) -> Video:
    """The rendered clip of a scene."""
    return Video(world.render(world.sample(seed, frames), size), world.FPS)


def source_prompt(seed: int) -> str:
    """A prompt that describes a scene."""
    return captions.prompt(world.sample(seed))


def ideal_result(
    seed: int, prompt: str, frames: int = world.FRAMES, size: int = world.SIZE
) -> Video:
    """The perfect result: the scene's motion with the appearance that the prompt names."""
    return Video(
        world.render(with_appearance(world.sample(seed, frames), parse_caption(prompt)), size),
        world.FPS,
    )


def ground_truth(seed: int, prompt: str, result: NDArray[np.uint8]) -> GroundTruth:
    """What a result (F, H, W, 3) shows according to the oracle, and what it should show."""
    return ground_truth_of_scene(world.sample(seed, len(result)), prompt, result)


def ground_truth_of_scene(
    scene: world.Scene, prompt: str, result: NDArray[np.uint8]
) -> GroundTruth:
    """What a result (F, H, W, 3) shows according to the oracle, and what it should show. An
    attribute that the prompt does not name should be that of the scene."""
    target, detection = with_appearance(scene, parse_caption(prompt)), oracle.detect(result)
    shows_camera = {scene.pattern, target.pattern} <= set(cameras.PATTERNS)
    return GroundTruth(
        world="shapes",
        expected_path=scene.centre,
        detected_path=detection.path,
        attribute_correct=_correct(
            detection, {name: getattr(target, name) for name in ("colour", "shape", "background")}
        ),
        iou=mean_iou(detection.masks, world.truth(scene, result.shape[1]).mask),
        camera_error=cameras.camera_error(result, detection.masks, scene)
        if shows_camera
        else NoValue("a plain or striped background does not show the camera's motion"),
    )


def ground_truth_from_source(
    source: NDArray[np.uint8], prompt: str, result: NDArray[np.uint8]
) -> GroundTruth:
    """Like `ground_truth`, for a source (F, H, W, 3) whose scene is not known: the oracle reads the
    source too.

    Raises `BadClip` for a source without a subject, and `BadCall` for a prompt with words that the
    shapes world does not know.
    """
    shown, named = oracle.detect(source), parse_caption(prompt)
    if shown.colour is None or shown.shape is None:
        raise BadClip("the source shows no subject of the shapes world; give a clip of that world")
    background = shown.background
    if "ground" in named:
        pattern = named.get("pattern", "plain")
        background = named["ground"] if pattern == "plain" else f"{pattern} {named['ground']}"
    detection = oracle.detect(result)
    target = {"colour": shown.colour, "shape": shown.shape} | named | {"background": background}
    return GroundTruth(
        world="shapes",
        expected_path=shown.path,
        detected_path=detection.path,
        attribute_correct=_correct(detection, target),
        iou=mean_iou(detection.masks, shown.masks),
        camera_error=NoValue("the camera of the source is known only from its `truth`"),
    )


def scene_of_file(content: Mapping[str, Any]) -> world.Scene:
    """The scene of a clip that `recast shapes render` wrote, from the content of its .json file.

    Raises `KeyError`, `TypeError` or `ValueError` for another content.
    """
    size = content["size"]
    centre = np.array(content["centre"], float) / size
    appearance = {name: content[name] for name in ("shape", "colour", "ground", "pattern")}
    scene = with_appearance(world.sample(content["seed"], len(centre)), appearance)
    pan, zoom = np.array(content["pan"], float) / size, np.array(content["zoom"], float)
    return replace(scene, centre=centre, pan=pan, zoom=zoom)


def detector() -> str | None:
    """None: the oracle has no weights on which numbers could depend."""
    return None


def tracker(scene: world.Scene) -> Callable[[NDArray[np.uint8]], Tracks]:
    """A tracker that returns the exact tracks of a rendered scene, whatever frames it gets."""

    def track(frames: NDArray[np.uint8]) -> Tracks:
        truth = world.truth(scene, frames.shape[1])
        return Tracks(truth.tracks, truth.visible)

    return track


def _correct(detection: oracle.Detection, target: Mapping[str, str]) -> dict[str, bool]:
    return {name: getattr(detection, name) == target[name] for name in ATTRIBUTES["shapes"]}


def _differs(target: world.Scene, source: world.Scene, changes: Sequence[str]) -> bool:
    return all(getattr(target, name) != getattr(source, name) for name in changes)


def _with_changes(source: world.Scene, target: world.Scene, changes: Sequence[str]) -> world.Scene:
    parts = {"colour": ("colour",), "shape": ("shape",), "background": ("ground", "pattern")}
    return with_appearance(
        source, {part: getattr(target, part) for name in changes for part in parts[name]}
    )


def _camera_moves(scene: world.Scene) -> bool:
    return bool(np.ptp(scene.pan, 0).max() > 0 or np.ptp(scene.zoom) > 0)
