"""Retrieval by features: do similar features mean that the subjects are at similar positions?

This module reproduces DMT's fig. 2 d (Yatim et al., CVPR 2024) with known positions. For each frame
it retrieves the frame with the most similar spatial marginal mean (SMM) among clips of another
appearance, and measures the distance between the subjects of both. In clips of the user's own the
positions are not known: they are inverted as in the paper, and the retrieved frames are there to be
looked at. The module refuses to know any model by name.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recast.analysis import own_clips, probe
from recast.analysis.frame_features import (
    Features,
    check_inversion_steps,
    check_levels,
    inverted,
    noised,
)
from recast.backbones.base import Backbone
from recast.errors import BadCall
from recast.events import Event, Step, job
from recast.media.video import Video
from recast.metrics.base import ATTRIBUTES
from recast.pipeline.source_clip import to_tensor
from recast.worlds.shapes import world
from recast.worlds.shapes.geometry import Array

Indices = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig:
    """Which features are compared, and on how many clips."""

    clips: int = 100
    """Number of clips: held-out clips of the shapes world whose subject moves, or the first clips
    of a folder. The frames of each are retrieved from all clips that differ in colour, shape and
    background, or from all other clips of the folder."""
    levels: tuple[float, ...] = (0.2, 0.5, 0.8)
    """Noise levels as fractions of the schedule, from 0 (clean) to 1 (noise)."""
    roles: tuple[str, ...] = ("motion",)
    """Roles whose features are compared."""
    seed: int = 0
    """Seed of the noise that is added to clips of the shapes world."""
    inversion_steps: int = 100
    """Number of steps of the DDIM inversion by which the clips of a folder reach the levels."""

    def __post_init__(self) -> None:
        if self.clips < 20:
            raise BadCall(f"`clips` must be at least 20 for a retrieval, got {self.clips}")
        check_levels(self.levels)
        check_inversion_steps(self.inversion_steps)


class Match(NamedTuple):
    """A frame and the frame that was retrieved for it, as indices."""

    clip: int
    frame: int
    retrieved_clip: int
    retrieved_frame: int


@dataclass(frozen=True, slots=True, eq=False)
class Retrieval:
    """The result for one role at one noise level.

    The three distances are means over frames, between the subjects of both frames, in frame widths.
    """

    role: str
    level: float
    distance: float
    """Distance to the retrieved frame."""
    random: float
    """Distance to a random frame of the same clips."""
    best: float
    """Distance to the frame whose subject is nearest, which a perfect feature would reach."""
    matches: tuple[Match, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ClipRetrieval:
    """The result of clips of the user's own for one role at one noise level: two means over frames
    of the cosine between features."""

    role: str
    level: float
    similarity: float
    """Cosine with the retrieved frame."""
    random: float
    """Cosine with a random frame of the other clips."""
    matches: tuple[Match, ...]


@job
def retrieve(
    backbone: Backbone, config: RetrievalConfig
) -> Generator[Event, None, list[Retrieval]]:
    """Retrieve frames by the features of each role. The result is a list of `Retrieval`.

    Raises `UnknownName` for a role that the model does not have.
    """
    scenes = list(islice(probe.moving_scenes(backbone.defaults.frames), config.clips))
    taps = {role: backbone.taps(role)[0] for role in config.roles}
    features = Features()
    for index, scene in enumerate(scenes):
        x0 = backbone.encode(probe.video_of(scene, backbone))
        states = noised(backbone, x0, config.levels, config.seed + index)
        features.read(backbone, tuple(taps.values()), states, len(scene.centre))
        yield Step(stage="read", index=index + 1, total=len(scenes))
    return [
        retrieve_frames(role, level, scenes, features.of(tap.path, level_index))
        for role, tap in taps.items()
        for level_index, level in enumerate(config.levels)
    ]


@job
def retrieve_clips(
    backbone: Backbone, clips: Sequence[Video], config: RetrievalConfig
) -> Generator[Event, None, list[ClipRetrieval]]:
    """Retrieve frames of fitted clips, which are inverted and not noised. The result is a list of
    `ClipRetrieval`.

    Raises `UnknownName` for a role that the model does not have.
    """
    yield from own_clips.notes(clips)
    taps = {role: backbone.taps(role)[0] for role in config.roles}
    features = Features()
    for index, clip in enumerate(clips):
        states = inverted(
            backbone, backbone.encode(to_tensor(clip)), config.levels, config.inversion_steps
        )
        features.read(backbone, tuple(taps.values()), states, len(clip))
        yield Step(stage="invert and read", index=index + 1, total=len(clips))
    return [
        retrieve_among(role, level, features.of(tap.path, level_index))
        for role, tap in taps.items()
        for level_index, level in enumerate(config.levels)
    ]


def retrieve_frames(
    role: str, level: float, scenes: list[world.Scene], features: list[Array]
) -> Retrieval:
    """Retrieve each frame's most similar frame (cosine) among scenes of another appearance.

    `features` has one array (F, C) for each scene.
    """
    centres = np.concatenate([scene.centre for scene in scenes])
    clip, similarity = _similarities(features)
    allowed = _differ_in_appearance(scenes)[clip][:, clip]
    queries, retrieved = _nearest(similarity, allowed)
    distances = np.linalg.norm(centres[queries, None] - centres[None], axis=-1)
    allowed = allowed[queries]
    means = [row[mask].mean() for row, mask in zip(distances, allowed, strict=True)]
    return Retrieval(
        role=role,
        level=level,
        distance=float(distances[np.arange(len(queries)), retrieved].mean()),
        random=float(np.mean(means)),
        best=float(np.where(allowed, distances, np.inf).min(1).mean()),
        matches=_matches(clip, queries, retrieved),
    )


def retrieve_among(role: str, level: float, features: list[Array]) -> ClipRetrieval:
    """Retrieve each frame's most similar frame (cosine) among all other clips.

    `features` has one array (F, C) for each clip.
    """
    clip, similarity = _similarities(features)
    allowed = clip[:, None] != clip
    queries, retrieved = _nearest(similarity, allowed)
    return ClipRetrieval(
        role=role,
        level=level,
        similarity=float(similarity[queries, retrieved].mean()),
        random=float(similarity[allowed].mean()),
        matches=_matches(clip, queries, retrieved),
    )


def _similarities(features: list[Array]) -> tuple[Indices, Array]:
    """The clip of each frame, (N,), and the cosines between all frames, (N, N)."""
    frames = np.concatenate(features)
    frames = frames / np.maximum(np.linalg.norm(frames, axis=-1, keepdims=True), 1e-12)
    clip = np.repeat(np.arange(len(features)), [len(of_clip) for of_clip in features])
    return clip, np.asarray(frames @ frames.T)


def _nearest(similarity: Array, allowed: NDArray[np.bool_]) -> tuple[Indices, Indices]:
    """The frames for which another is allowed, and for each the most similar one."""
    queries = np.flatnonzero(allowed.any(1))
    return queries, np.where(allowed, similarity, -np.inf)[queries].argmax(1)


def _matches(clip: Indices, queries: Indices, retrieved: Indices) -> tuple[Match, ...]:
    frame = np.arange(len(clip)) - np.searchsorted(clip, clip)
    return tuple(
        Match(int(clip[a]), int(frame[a]), int(clip[b]), int(frame[b]))
        for a, b in zip(queries, retrieved, strict=True)
    )


def _differ_in_appearance(scenes: list[world.Scene]) -> NDArray[np.bool_]:
    """For each pair of scenes whether colour, shape and background all differ, (S, S)."""
    differ = np.ones((len(scenes), len(scenes)), bool)
    for name in ATTRIBUTES["shapes"]:
        values = np.array([getattr(scene, name) for scene in scenes])
        differ &= values[:, None] != values
    return differ
