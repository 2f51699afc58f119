"""How well a backbone's features tell where the subject is: a linear probe for every role.

The spatial marginal mean of each frame's features, less its mean over the clip, is regressed on the
subject's displacement from its mean place, and judged on clips that the fit never saw. What a probe
cannot read, guidance by that feature cannot ask for. Knows no model by name.
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

_RIDGE = 1e-3  # of each standardised feature's variance


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """What is probed, and on how much."""

    clips: int = 200
    """Held-out clips whose subject moves; every other one is kept for the test."""
    levels: tuple[float, ...] = (0.2, 0.5, 0.8)
    """How far up the noise schedule, from 0, clean, to 1, noise; 0.5 is t = 500 of 1000."""
    roles: tuple[str, ...] = ()
    """Roles to probe; every role that the model has unless given."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        if self.clips < 20:
            raise BadCall(f"clips is {self.clips}; a probe needs at least 20")
        check_levels(self.levels)


@dataclass(frozen=True, slots=True)
class Row:
    """R² of the displacement, both directions together, at each level: 1 is all, 0 is nothing."""

    role: str
    r2: tuple[float, ...]


@job
def probe(backbone: Backbone, config: ProbeConfig) -> Generator[Event, None, list[Row]]:
    """The result is a list of `Row`, one for each role in the network's order."""
    taps = _taps(backbone, config.roles)
    places = tuple(dict.fromkeys(taps.values()))
    features, targets = Features(), list[Array]()
    for index, scene in enumerate(islice(moving(backbone.defaults.frames), config.clips)):
        features.read(backbone, scene, places, config.levels, config.seed + index)
        targets.append(_centred(scene.centre))
        yield Step(stage="probe", index=index + 1, total=config.clips)
    rows = []
    for role, tap in taps.items():
        read = [list(map(_centred, features.of(tap.path, n))) for n in range(len(config.levels))]
        rows.append(Row(role, tuple(_r2(found, targets) for found in read)))
    return rows


class Features:
    """The spatial marginal means (F, C) of clips, by place in the network and noise level."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], list[Array]] = {}

    def read(
        self,
        backbone: Backbone,
        scene: world.Scene,
        places: tuple[Tap, ...],
        levels: Sequence[float],
        seed: int,
    ) -> None:
        """Add a clip's: noised to every level and shown to the network under an empty prompt."""
        denoise = backbone.denoiser(backbone.encode_text([""]))
        generator = torch.Generator().manual_seed(seed)
        video = _video(scene, backbone)
        x0, shown = backbone.encode(video), backbone.latent_frame_spans(video.shape[2])
        grid = backbone.schedule.sized(x0.shape).grid(100)
        for number, level in enumerate(levels):
            t = grid[round((1 - level) * 100)]
            eps = torch.randn(x0.shape, generator=generator).to(x0.device)
            with torch.no_grad(), record(backbone.network, places, x0.shape[2], stop=True) as seen:
                denoise(backbone.schedule.noised(x0, eps, t), t)
            for path, found in seen.items():
                smm = spatial_marginal_mean(found.float())[0].cpu().double().numpy()
                self._found.setdefault((path, number), []).append(by_frame(smm, shown))

    def of(self, path: str, number: int) -> list[Array]:
        """Those of all clips at one place and one level."""
        return self._found[path, number]


def by_frame(features: Array, shown: Sequence[slice]) -> Array:
    """Features (f, C) for every frame of a clip, (F, C): those of the frame of the latents that
    `shown` it. Where a layer packs frames of the latents, they share one."""
    frames = np.empty((shown[-1].stop, features.shape[1]))
    for index, part in enumerate(shown):
        frames[part] = features[index * len(features) // len(shown)]
    return frames


def check_levels(levels: tuple[float, ...]) -> None:
    """Raise `BadCall` unless each is a share of the noise schedule."""
    if not levels or not all(0 <= level <= 1 for level in levels):
        raise BadCall(f"levels are {levels}; each must be between 0 and 1")


def moving(frames: int) -> Iterator[world.Scene]:
    """Held-out scenes whose subject moves."""
    scenes = (world.sample(seed, frames) for seed in world.HELD_OUT)
    return (scene for scene in scenes if scene.path != "still")


def _centred(values: Array) -> Array:
    return values - values.mean(0)


def _taps(backbone: Backbone, roles: tuple[str, ...]) -> Mapping[str, Tap]:
    """Role -> its place; of two roles that are one place the first is taken, unless asked for."""
    wanted = {role: backbone.taps(role)[0] for role in roles or backbone.roles}
    if roles:
        return wanted
    first: dict[Tap, str] = {}
    for role, tap in wanted.items():
        first.setdefault(tap, role)
    return {role: tap for tap, role in first.items()}


def _video(scene: world.Scene, backbone: Backbone) -> Tensor:
    size = min(backbone.defaults.height, backbone.defaults.width)
    frames = torch.from_numpy(world.render(scene, size)).float() / 127.5 - 1
    return rearrange(frames, "f h w c -> 1 c f h w")


def _r2(features: list[Array], targets: list[Array]) -> float:
    """Ridge regression on the even clips, (F, C) -> (F, 2) each, judged on the odd ones."""
    x, y = (np.concatenate(part[::2]) for part in (features, targets))
    scale = np.maximum(x.std(0), 1e-12)
    x = x / scale
    weights = np.linalg.solve(x.T @ x + _RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y)
    held_x, held_y = (np.concatenate(part[1::2]) for part in (features, targets))
    error = held_y - held_x / scale @ weights
    return float(1 - np.square(error).sum() / np.square(held_y).sum())
