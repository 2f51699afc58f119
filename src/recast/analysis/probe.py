"""Linear probes: how well the features of each role predict the position of the subject.

The input of the regression is the spatial marginal mean of each frame's features (SMM; DMT, Yatim
et al., CVPR 2024, eq. 2) minus its mean over the clip. The output is the displacement of the
subject from its mean position, and R² is measured on clips that were not used for the fit. In clips
of the user's own the position is not known, and the displacement of the tracked points that move
stands for it. A method cannot guide motion by features from which the motion cannot be predicted.
The method is that of Alain and Bengio ("Understanding intermediate layers using linear classifier
probes", 2016). This module refuses to know any model by name.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from recast.analysis import own_clips
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
from recast.networks.feature_hooks import Tap
from recast.pipeline.source_clip import to_tensor
from recast.worlds.shapes import world
from recast.worlds.shapes.geometry import Array

MIN_CLIPS = 20
"""Smallest number of clips for a probe."""
_RIDGE = 1e-3  # relative to the variance of a standardised feature


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """Which features are probed, and on how many clips."""

    clips: int = 200
    """Number of clips: held-out clips of the shapes world whose subject moves, or the first clips
    of a folder. Half of them are used for the test."""
    levels: tuple[float, ...] = (0.2, 0.5, 0.8)
    """Noise levels as fractions of the schedule, from 0 (clean) to 1 (noise); 0.5 is t = 500 of
    1000."""
    roles: tuple[str, ...] = ()
    """Roles to probe; by default all roles of the model."""
    seed: int = 0
    """Seed of the noise that is added to clips of the shapes world."""
    inversion_steps: int = 100
    """Number of steps of the DDIM inversion by which the clips of a folder reach the levels."""

    def __post_init__(self) -> None:
        if self.clips < MIN_CLIPS:
            raise BadCall(f"`clips` must be at least {MIN_CLIPS} for a probe, got {self.clips}")
        check_levels(self.levels)
        check_inversion_steps(self.inversion_steps)


@dataclass(frozen=True, slots=True)
class Row:
    """R² of the displacement (x and y together) for one role, at each noise level.

    1 means perfect prediction, and 0 means no better than the mean.
    """

    role: str
    r2: tuple[float, ...]


@job
def probe(backbone: Backbone, config: ProbeConfig) -> Generator[Event, None, list[Row]]:
    """Probe a model. The result is a list of `Row`, one for each role in the network's order.

    Raises `UnknownName` for a role that the model does not have.
    """
    taps = _taps_by_role(backbone, config.roles)
    features, targets = Features(), list[Array]()
    for index, scene in enumerate(islice(moving_scenes(backbone.defaults.frames), config.clips)):
        x0 = backbone.encode(video_of(scene, backbone))
        states = noised(backbone, x0, config.levels, config.seed + index)
        features.read(backbone, _distinct(taps), states, len(scene.centre))
        targets.append(_centred(scene.centre))
        yield Step(stage="probe", index=index + 1, total=config.clips)
    return _rows(taps, features, targets, len(config.levels))


@job
def probe_clips(
    backbone: Backbone, clips: Sequence[Video], config: ProbeConfig
) -> Generator[Event, None, list[Row]]:
    """Probe a model on fitted clips, which are inverted and not noised. The result is a list of
    `Row`, as in `probe`.

    Raises `BadCall` for clips without motion, and `UnknownName` as `probe` does.
    """
    taps = _taps_by_role(backbone, config.roles)
    yield from own_clips.notes(clips)
    targets = [_centred(own_clips.displacement(clip.frames)) for clip in clips]
    if not all(np.any(part) for part in (targets[::2], targets[1::2])):
        raise BadCall(
            "no tracked point moves in half of the clips, so there is no motion to predict; choose "
            "clips with more motion"
        )
    features = Features()
    for index, clip in enumerate(clips):
        states = inverted(
            backbone, backbone.encode(to_tensor(clip)), config.levels, config.inversion_steps
        )
        features.read(backbone, _distinct(taps), states, len(clip))
        yield Step(stage="probe", index=index + 1, total=len(clips))
    return _rows(taps, features, targets, len(config.levels))


def _rows(
    taps: Mapping[str, Tap], features: Features, targets: list[Array], levels: int
) -> list[Row]:
    rows = []
    for role, tap in taps.items():
        by_level = (features.of(tap.path, index) for index in range(levels))
        r2 = (held_out_r2(list(map(_centred, clips)), targets) for clips in by_level)
        rows.append(Row(role, tuple(r2)))
    return rows


def _distinct(taps: Mapping[str, Tap]) -> tuple[Tap, ...]:
    return tuple(dict.fromkeys(taps.values()))


def moving_scenes(frames: int) -> Iterator[world.Scene]:
    """All held-out scenes whose subject moves, with `frames` frames each."""
    scenes = (world.sample(seed, frames) for seed in world.HELD_OUT)
    return (scene for scene in scenes if scene.path != "still")


def _centred(values: Array) -> Array:
    return values - values.mean(0)


def _taps_by_role(backbone: Backbone, roles: tuple[str, ...]) -> Mapping[str, Tap]:
    """The first tap of each role. By default a tap that several roles share is probed once."""
    taps = {role: backbone.taps(role)[0] for role in roles or backbone.roles}
    if roles:
        return taps
    first_role: dict[Tap, str] = {}
    for role, tap in taps.items():
        first_role.setdefault(tap, role)
    return {role: tap for tap, role in first_role.items()}


def video_of(scene: world.Scene, backbone: Backbone) -> Tensor:
    """The rendered scene at the model's own size, (1, 3, F, H, W) in [-1, 1]."""
    size = min(backbone.defaults.height, backbone.defaults.width)
    frames = torch.from_numpy(world.render(scene, size)).float() / 127.5 - 1
    return rearrange(frames, "f h w c -> 1 c f h w")


def held_out_r2(features: list[Array], targets: list[Array]) -> float:
    """R² of a ridge regression from features (F, C) to targets (F, 2), one pair for each clip.

    It is fitted on the clips with even index and evaluated on those with odd index.
    """
    x, y = (np.concatenate(part[::2]) for part in (features, targets))
    scale = np.maximum(x.std(0), 1e-12)
    x = x / scale
    weights = np.linalg.solve(x.T @ x + _RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y)
    test_x, test_y = (np.concatenate(part[1::2]) for part in (features, targets))
    error = test_y - test_x / scale @ weights
    return float(1 - np.square(error).sum() / np.square(test_y).sum())
