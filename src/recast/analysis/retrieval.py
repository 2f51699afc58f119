"""Retrieval by features: do similar features mean that the subjects are at similar positions?

This module reproduces DMT's fig. 2 d (Yatim et al., CVPR 2024) with known positions. For each frame
it retrieves the frame with the most similar spatial marginal mean (SMM) among clips of another
appearance, and measures the distance between the subjects of both. It refuses to know any model by
name.
"""

from collections.abc import Generator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recast.analysis import probe
from recast.backbones.base import Backbone
from recast.errors import BadCall
from recast.events import Event, Step, job
from recast.metrics.base import ATTRIBUTES
from recast.shapes import world
from recast.shapes.geometry import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig:
    """Which features are compared, and on how many clips."""

    clips: int = 100
    """Number of held-out clips whose subject moves. The frames of each are retrieved from all clips
    that differ in colour, shape and background."""
    levels: tuple[float, ...] = (0.2, 0.5, 0.8)
    """Noise levels as fractions of the schedule, from 0 (clean) to 1 (noise)."""
    roles: tuple[str, ...] = ("motion",)
    """Roles whose features are compared."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        if self.clips < 20:
            raise BadCall(f"`clips` must be at least 20 for a retrieval, got {self.clips}")
        probe.check_levels(self.levels)


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


@job
def retrieve(
    backbone: Backbone, config: RetrievalConfig
) -> Generator[Event, None, list[Retrieval]]:
    """Retrieve frames by the features of each role. The result is a list of `Retrieval`.

    Raises `UnknownName` for a role that the model does not have.
    """
    scenes = list(islice(probe.moving_scenes(backbone.defaults.frames), config.clips))
    taps = {role: backbone.taps(role)[0] for role in config.roles}
    features = probe.Features()
    for index, scene in enumerate(scenes):
        features.read(backbone, scene, tuple(taps.values()), config.levels, config.seed + index)
        yield Step(stage="read", index=index + 1, total=len(scenes))
    return [
        retrieve_frames(role, level, scenes, features.of(tap.path, level_index))
        for role, tap in taps.items()
        for level_index, level in enumerate(config.levels)
    ]


def retrieve_frames(
    role: str, level: float, scenes: list[world.Scene], features: list[Array]
) -> Retrieval:
    """Retrieve each frame's most similar frame (cosine) among scenes of another appearance.

    `features` has one array (F, C) for each scene.
    """
    frames = np.concatenate(features)
    frames = frames / np.maximum(np.linalg.norm(frames, axis=-1, keepdims=True), 1e-12)
    centres = np.concatenate([scene.centre for scene in scenes])
    clip = np.repeat(np.arange(len(scenes)), [len(of_clip) for of_clip in features])
    similarity = frames @ frames.T
    allowed = _differ_in_appearance(scenes)[clip][:, clip]
    similarity[~allowed] = -np.inf
    queries = np.flatnonzero(allowed.any(1))
    retrieved = similarity[queries].argmax(1)
    distances = np.linalg.norm(centres[queries, None] - centres[None], axis=-1)
    allowed = allowed[queries]
    frame = np.arange(len(clip)) - np.searchsorted(clip, clip)
    means = [row[mask].mean() for row, mask in zip(distances, allowed, strict=True)]
    return Retrieval(
        role=role,
        level=level,
        distance=float(distances[np.arange(len(queries)), retrieved].mean()),
        random=float(np.mean(means)),
        best=float(np.where(allowed, distances, np.inf).min(1).mean()),
        matches=tuple(
            Match(int(clip[a]), int(frame[a]), int(clip[b]), int(frame[b]))
            for a, b in zip(queries, retrieved, strict=True)
        ),
    )


def _differ_in_appearance(scenes: list[world.Scene]) -> NDArray[np.bool_]:
    """For each pair of scenes whether colour, shape and background all differ, (S, S)."""
    differ = np.ones((len(scenes), len(scenes)), bool)
    for name in ATTRIBUTES:
        values = np.array([getattr(scene, name) for scene in scenes])
        differ &= values[:, None] != values
    return differ
