"""Retrieval by features: which frames of other subjects does a model hold to be alike?

DMT's fig. 2 d, with the truth known: for every frame of some clips the frame with the nearest
spatial marginal mean among clips of other subjects, and how far apart the subjects of both are.
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
from recast.shapes import world
from recast.shapes.geometry import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig:
    """What is looked up, and where."""

    clips: int = 100
    """Held-out clips whose subject moves. The frames of each are looked up among all the others
    whose colour, shape and background are different."""
    levels: tuple[float, ...] = (0.2, 0.5, 0.8)
    """How far up the noise schedule, from 0, clean, to 1, noise."""
    roles: tuple[str, ...] = ("motion",)
    """Roles whose features are compared."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        if self.clips < 20:
            raise BadCall(f"clips is {self.clips}; a retrieval needs at least 20")
        probe.check_levels(self.levels)


class Match(NamedTuple):
    """A frame and the one that was found for it."""

    clip: int
    frame: int
    found_clip: int
    found_frame: int


@dataclass(frozen=True, slots=True, eq=False)
class Retrieved:
    """What one role at one level finds. Distances are means, in frame widths."""

    role: str
    level: float
    distance: float
    random: float
    """Of a frame drawn at random from the same clips."""
    best: float
    """Of the frame whose subject is nearest: what a perfect feature would reach."""
    matches: tuple[Match, ...]


@job
def retrieve(
    backbone: Backbone, config: RetrievalConfig
) -> Generator[Event, None, list[Retrieved]]:
    """The result is a list of `Retrieved`."""
    scenes = list(islice(probe.moving(backbone.defaults.frames), config.clips))
    taps = {role: backbone.taps(role)[0] for role in config.roles}
    features = probe.Features()
    for index, scene in enumerate(scenes):
        features.read(backbone, scene, tuple(taps.values()), config.levels, config.seed + index)
        yield Step(stage="read", index=index + 1, total=len(scenes))
    found = [
        _looked_up(role, level, scenes, features.of(tap.path, number))
        for role, tap in taps.items()
        for number, level in enumerate(config.levels)
    ]
    return found


def _looked_up(
    role: str, level: float, scenes: list[world.Scene], features: list[Array]
) -> Retrieved:
    frames = np.concatenate(features)
    frames = frames / np.maximum(np.linalg.norm(frames, axis=-1, keepdims=True), 1e-12)
    centres = np.concatenate([scene.centre for scene in scenes])
    clip = np.repeat(np.arange(len(scenes)), [len(them) for them in features])
    likeness = frames @ frames.T
    allowed = _unlike(scenes)[clip][:, clip]
    likeness[~allowed] = -np.inf
    usable = np.flatnonzero(allowed.any(1))
    nearest = likeness[usable].argmax(1)
    apart = np.linalg.norm(centres[usable, None] - centres[None], axis=-1)
    others = allowed[usable]
    within = np.arange(len(clip)) - np.searchsorted(clip, clip)
    return Retrieved(
        role=role,
        level=level,
        distance=float(apart[np.arange(len(usable)), nearest].mean()),
        random=float(np.mean([row[mask].mean() for row, mask in zip(apart, others, strict=True)])),
        best=float(np.where(others, apart, np.inf).min(1).mean()),
        matches=tuple(
            Match(int(clip[a]), int(within[a]), int(clip[b]), int(within[b]))
            for a, b in zip(usable, nearest, strict=True)
        ),
    )


def _unlike(scenes: list[world.Scene]) -> NDArray[np.bool_]:
    """Which scenes share neither colour nor shape nor background, (S, S)."""
    unlike = np.ones((len(scenes), len(scenes)), bool)
    for name in ("colour", "shape", "background"):
        values = np.array([getattr(scene, name) for scene in scenes])
        unlike &= values[:, None] != values
    return unlike
