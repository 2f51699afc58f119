"""Held-out pairs of the menagerie: a source scene, and a prompt for another kind of subject.

This module owns the choice of pairs, and what the referee says of a result beside the exact truth
of its source. It refuses to know methods and models.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from recast.errors import BadClip, UnknownName
from recast.media.video import Video
from recast.metrics.base import Array, FigureTruth, GroundTruth, NoValue
from recast.worlds import silhouettes
from recast.worlds.menagerie import camera, captions, referee, scene_file, truth, world
from recast.worlds.menagerie.describe import parse_caption
from recast.worlds.menagerie.kinds import COLOURS, KINDS
from recast.worlds.menagerie.landscapes import SCENES
from recast.worlds.menagerie.layout import landscape_correlation
from recast.worlds.menagerie.motion import ACTIONS
from recast.worlds.menagerie.referee import Detection
from recast.worlds.menagerie.world import SIZE, Scene

CHANGES = ("colour", "scene")
"""What a prompt can change beside the kind."""


def held_out(
    count: int,
    kinds: Sequence[Sequence[str]],
    changes: Sequence[str] = ("colour",),
    unseen: bool = False,
    actions: Sequence[str] = (),
    camera_moves: bool | None = None,
    first: int = 0,
) -> Iterator[tuple[int, str]]:
    """`count` pairs (seed of the source scene, prompt). Equal arguments give equal pairs. The first
    `first` pairs are left out, so that settings can be chosen on other pairs than those of a test.

    The pairs take `kinds`, (kind of the source, kind in the prompt), in turn. The prompt asks for
    another value of each attribute in `changes` and for the source's value of the others; with
    `unseen`, for a kind in a colour and a landscape that training never showed together. The source
    makes one of `actions` (empty: any but waiting), before a camera that moves (True), stands still
    (False) or either (None). Raises `UnknownName` for an unknown kind or action.
    """
    for kind in chain.from_iterable(kinds):
        if kind not in KINDS:
            raise UnknownName("kind", kind, KINDS)
    for action in actions:
        if action not in ACTIONS:
            raise UnknownName("action", action, ACTIONS)
    allowed = set(actions) or set(ACTIONS) - {"waits"}
    sources = {kind: _scenes(kind, allowed, camera_moves) for kind, _ in kinds}
    pairs = (
        (seed, prompt)
        for number in range(first + count)
        for source_kind, kind in [kinds[number % len(kinds)]]
        for seed, prompt in [_next_pair(sources[source_kind], kind, changes, unseen)]
    )
    yield from islice(pairs, first, None)


def source(seed: int, frames: int = world.FRAMES, size: int = SIZE) -> Video:
    """The rendered clip of a scene."""
    return Video(world.render(world.sample(seed, frames), size), world.FPS)


def source_prompt(seed: int) -> str:
    """A prompt that describes a scene."""
    scene = world.sample(seed)
    return captions.prompt(scene.kind, scene.colour, scene.landscape)


def ideal_result(seed: int, prompt: str, frames: int = world.FRAMES, size: int = SIZE) -> Video:
    """The perfect result: the scene's root motion with the subject that the prompt names, which has
    its own gait."""
    target = _target(world.sample(seed, frames), prompt)
    return Video(world.render(target, size), world.FPS)


def ground_truth(seed: int, prompt: str, result: NDArray[np.uint8]) -> GroundTruth:
    """What a result (F, H, W, 3) shows according to the referee, and what it should show."""
    return _compare(_expected_of_seed(seed, len(result), prompt), result)


def ground_truth_from_source(
    source: NDArray[np.uint8], prompt: str, result: NDArray[np.uint8]
) -> GroundTruth:
    """Like `ground_truth`, for a source (F, H, W, 3) whose scene is not known: the referee reads
    the source too.

    Raises `BadClip` for a source without a subject, and `BadCall` for a prompt with words that the
    menagerie does not know.
    """
    return _compare(_expected_of_clip(referee.resized(source), prompt), result)


def ground_truth_of_scene(scene: Scene, prompt: str, result: NDArray[np.uint8]) -> GroundTruth:
    """Like `ground_truth`, for any scene of as many frames."""
    return _compare(_expected_of_scene(scene, prompt), result)


scene_of_file = scene_file.scene


@lru_cache(maxsize=1)
def detector() -> str:
    """A hash of the referee's weights."""
    files = sorted(referee.FOLDER.glob("*.safetensors"))
    content = b"".join(path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Expected:
    """What a source shows and what a correct result shows. All images have `SIZE` pixels a side."""

    frames: NDArray[np.uint8]  # of the source
    masks: NDArray[np.bool_]  # the source's subject
    seen: Detection  # of the source, whose silhouette is compared with that of the result
    source_kind: str
    landscape: str  # of the source
    target: Mapping[str, str]  # kind, colour and landscape
    gait: str
    path: Array
    extent: Array
    facing: Array
    scene: Scene | None  # a correct result; None if the scene of the source is not known
    overlap: float | NoValue  # of a correct result's silhouette with the source's


@lru_cache(maxsize=8)
def _expected_of_seed(seed: int, frames: int, prompt: str) -> _Expected:
    return _expected_of_scene(world.sample(seed, frames), prompt)


def _expected_of_scene(scene: Scene, prompt: str) -> _Expected:
    target = _target(scene, prompt)
    frames, whole = world.render(scene), truth.truth(replace(target, front=False)).mask
    path, extent = silhouettes.centre_and_extent(whole)
    moves = np.ptp(target.phase) > referee.LEAST_CYCLES
    seen = referee.detect(frames)
    return _Expected(
        frames=frames,
        masks=truth.truth(scene).mask,
        seen=seen,
        source_kind=scene.kind,
        landscape=scene.landscape,
        target={name: getattr(target, name) for name in ("kind", "colour", "landscape")},
        gait=KINDS[target.kind].gait if moves else "still",
        path=path,
        extent=extent,
        facing=scene.facing,
        scene=target,
        overlap=_overlap(referee.detect(world.render(target)), seen),
    )


def _expected_of_clip(frames: NDArray[np.uint8], prompt: str) -> _Expected:
    shown = referee.detect(frames)
    if shown.kind is None or shown.colour is None:
        raise BadClip("the source shows no subject of the menagerie; give a clip of that world")
    own = {"kind": shown.kind, "colour": shown.colour, "landscape": shown.landscape}
    target = own | {name: value for name, value in parse_caption(prompt).items() if name in own}
    return _Expected(
        frames=frames,
        masks=shown.masks,
        seen=shown,
        source_kind=shown.kind,
        landscape=shown.landscape,
        target=target,
        gait=KINDS[target["kind"]].gait,
        path=shown.path,
        extent=shown.extent,
        facing=shown.facing,
        scene=None,
        overlap=NoValue("the silhouette of a correct result needs the `truth` of the source"),
    )


def _compare(expected: _Expected, result: NDArray[np.uint8]) -> GroundTruth:
    frames = referee.resized(result)
    shown, target = referee.detect(frames), expected.target
    return GroundTruth(
        world="menagerie",
        expected_path=expected.path,
        detected_path=shown.path,
        attribute_correct={
            "kind": shown.kind == target["kind"],
            "colour": shown.colour == target["colour"],
            "scene": shown.landscape == target["landscape"],
        },
        iou=silhouettes.mean_iou(shown.masks, expected.masks),
        camera_error=_camera_error(expected, frames, shown),
        figure=_figure(expected, frames, shown),
    )


def _camera_error(
    expected: _Expected, frames: NDArray[np.uint8], shown: Detection
) -> float | NoValue:
    if expected.scene is None:
        return NoValue("the camera of the source is known only from its `truth`")
    if expected.scene.landscape not in camera.LANDSCAPES:
        return NoValue(f"the {expected.scene.landscape} hardly shows the camera's motion")
    return camera.camera_error(frames, shown.masks, expected.scene)


def _figure(expected: _Expected, frames: NDArray[np.uint8], shown: Detection) -> FigureTruth:
    kinds = (expected.source_kind, expected.target["kind"])
    without_sides = [kind for kind in kinds if kind in referee.WITHOUT_SIDES]
    return FigureTruth(
        present=shown.present,
        gait_correct=shown.gait == expected.gait,
        extent=shown.extent,
        expected_extent=expected.extent,
        facing=shown.facing,
        expected_facing=NoValue(f"a {without_sides[0]} looks alike from both sides")
        if without_sides
        else np.where(np.abs(expected.facing) > referee.SIDEWAYS, expected.facing, np.nan),
        layout=landscape_correlation(frames, expected.frames, shown.masks | expected.masks)
        if expected.target["landscape"] == expected.landscape
        else NoValue("the prompt changes the landscape"),
        overlap=_overlap(shown, expected.seen),
        target_overlap=expected.overlap,
    )


def _overlap(one: Detection, other: Detection) -> float | NoValue:
    """The mean overlap of the silhouettes of two clips, normalised in place and size, over frames
    that show both subjects; the better one of both sides of a silhouette counts."""
    both = np.flatnonzero(one.present & other.present)
    if not len(both):
        return NoValue("no frame shows a subject in both clips")
    overlaps = []
    for index in both:
        reference = silhouettes.normalised(other.masks[index])
        image = silhouettes.normalised(one.masks[index])
        sides = (image, image[:, ::-1])
        overlaps.append(max(silhouettes.overlap(side, reference) for side in sides))
    return float(np.mean(overlaps))


def _target(scene: Scene, prompt: str) -> Scene:
    """A correct result: what the prompt does not name is that of the scene."""
    named = parse_caption(prompt)
    named.pop("action", None)
    return world.with_appearance(scene, **named)


def _scenes(kind: str, actions: set[str], camera_moves: bool | None) -> Iterator[tuple[int, Scene]]:
    for seed in world.HELD_OUT:
        scene = world.sample(seed)
        moves = bool(np.ptp(scene.pan, 0).max() > 0 or np.ptp(scene.zoom) > 0)
        if scene.kind == kind and scene.action in actions and camera_moves in (None, moves):
            yield seed, scene


def _next_pair(
    sources: Iterator[tuple[int, Scene]], kind: str, changes: Sequence[str], unseen: bool
) -> tuple[int, str]:
    """The next source for which such a prompt exists, with a random one of these prompts."""
    for seed, scene in sources:
        colours = [c for c in COLOURS if (c != scene.colour) == ("colour" in changes)]
        places = [p for p in SCENES if (p != scene.landscape) == ("scene" in changes)]
        looks = [
            (colour, place)
            for colour in colours
            for place in places
            if not unseen or world.held_out_combination(kind, colour, place)
        ]
        if looks:
            colour, place = looks[np.random.default_rng(seed).integers(len(looks))]
            return seed, captions.prompt(kind, colour, place)
    raise AssertionError("the held-out seeds have scenes of every kind")
