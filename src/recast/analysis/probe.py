"""Linear probes: how well the features of each role predict the position of the subject.

The input of the regression is the spatial marginal mean of each frame's features (SMM; DMT, Yatim
et al., CVPR 2024, eq. 2) minus its mean over the clip. The output is the displacement of the
subject from its mean position, and R² is measured on clips that were not used for the fit. A method
cannot guide motion by features from which the motion cannot be predicted. The method is that of
Alain and Bengio ("Understanding intermediate layers using linear classifier probes", 2016). This
module refuses to know any model by name.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from recast.backbones.base import Backbone
from recast.errors import BadCall
from recast.events import Event, Step, job
from recast.feature_guidance.losses import spatial_marginal_mean
from recast.networks.feature_hooks import Tap, record
from recast.shapes import world
from recast.shapes.geometry import Array

_RIDGE = 1e-3  # relative to the variance of a standardised feature


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """Which features are probed, and on how many clips."""

    clips: int = 200
    """Number of held-out clips whose subject moves; half of them are used for the test."""
    levels: tuple[float, ...] = (0.2, 0.5, 0.8)
    """Noise levels as fractions of the schedule, from 0 (clean) to 1 (noise); 0.5 is t = 500 of
    1000."""
    roles: tuple[str, ...] = ()
    """Roles to probe; by default all roles of the model."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        if self.clips < 20:
            raise BadCall(f"`clips` must be at least 20 for a probe, got {self.clips}")
        check_levels(self.levels)


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
    distinct_taps = tuple(dict.fromkeys(taps.values()))
    features, targets = Features(), list[Array]()
    for index, scene in enumerate(islice(moving_scenes(backbone.defaults.frames), config.clips)):
        features.read(backbone, scene, distinct_taps, config.levels, config.seed + index)
        targets.append(_centred(scene.centre))
        yield Step(stage="probe", index=index + 1, total=config.clips)
    rows = []
    for role, tap in taps.items():
        by_level = (features.of(tap.path, index) for index in range(len(config.levels)))
        r2 = (held_out_r2(list(map(_centred, clips)), targets) for clips in by_level)
        rows.append(Row(role, tuple(r2)))
    return rows


class Features:
    """The spatial marginal means (F, C) of clips, for each tapped layer and noise level."""

    def __init__(self) -> None:
        self._by_tap_and_level: dict[tuple[str, int], list[Array]] = {}

    def read(
        self,
        backbone: Backbone,
        scene: world.Scene,
        taps: tuple[Tap, ...],
        levels: Sequence[float],
        seed: int,
    ) -> None:
        """Add the features of one clip, noised to each level, under an empty prompt."""
        denoise = backbone.denoiser(backbone.encode_text([""]))
        generator = torch.Generator().manual_seed(seed)
        video = _video(scene, backbone)
        x0, spans = backbone.encode(video), backbone.latent_frame_spans(video.shape[2])
        grid = backbone.schedule.sized(x0.shape).grid(100)
        for index, level in enumerate(levels):
            t = grid[round((1 - level) * 100)]
            eps = torch.randn(x0.shape, generator=generator).to(x0.device)
            with (
                torch.no_grad(),
                record(backbone.network, taps, x0.shape[2], stop=True) as recorded,
            ):
                denoise(backbone.schedule.noised(x0, eps, t), t)
            for path, features in recorded.items():
                smm = spatial_marginal_mean(features.float())[0].cpu().double().numpy()
                clips = self._by_tap_and_level.setdefault((path, index), [])
                clips.append(by_frame(smm, spans))

    def of(self, path: str, level_index: int) -> list[Array]:
        """The features (F, C) of all clips at one layer and one level."""
        return self._by_tap_and_level[path, level_index]


def by_frame(features: Array, spans: Sequence[slice]) -> Array:
    """Features (f, C) of a layer, repeated for each frame of the clip, (F, C).

    `spans` has one slice of frames for each latent frame. If the layer has fewer frames than the
    latents, consecutive latent frames share one feature.
    """
    frames = np.empty((spans[-1].stop, features.shape[1]))
    for index, span in enumerate(spans):
        frames[span] = features[index * len(features) // len(spans)]
    return frames


def check_levels(levels: tuple[float, ...]) -> None:
    """Raise `BadCall` unless there is a level and all of them are between 0 and 1."""
    if not levels or not all(0 <= level <= 1 for level in levels):
        raise BadCall(f"`levels` must be numbers between 0 and 1, got {levels}")


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


def _video(scene: world.Scene, backbone: Backbone) -> Tensor:
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
