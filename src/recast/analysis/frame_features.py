"""Features of frames: the spatial marginal means of a clip's frames at given noise levels.

This module owns how a clip reaches a noise level, by noise that is added or by DDIM inversion, and
how one feature for each frame of the clip is read there (SMM; DMT, Yatim et al., CVPR 2024, eq. 2).
It refuses to know what the features are used for.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.ddim_inversion import invert
from recast.errors import BadCall
from recast.feature_guidance.losses import spatial_marginal_mean
from recast.networks.feature_hooks import Tap, record
from recast.worlds.shapes.geometry import Array

_GRID = 100  # steps of the grid on which the levels of clips with added noise lie

State = tuple[Tensor, Tensor]
"""A time t and the latents x_t (1, C, F, H, W)."""


def noised(backbone: Backbone, x0: Tensor, levels: Sequence[float], seed: int) -> Iterator[State]:
    """The latents x0 with noise from `seed`, at each level from 0 (clean) to 1 (noise)."""
    generator = torch.Generator().manual_seed(seed)
    grid = backbone.schedule.sized(x0.shape).grid(_GRID)
    for level in levels:
        t = grid[round((1 - level) * _GRID)]
        eps = torch.randn(x0.shape, generator=generator).to(x0.device)
        yield t, backbone.schedule.noised(x0, eps, t)


def inverted(backbone: Backbone, x0: Tensor, levels: Sequence[float], steps: int) -> list[State]:
    """The latents x0 inverted by DDIM under an empty prompt, at each level from 0 to 1.

    `steps` is the number of steps from level 0 to level 1; levels are rounded to a step. Raises
    `NotFinite`.
    """
    grid = backbone.schedule.sized(x0.shape).grid(steps)
    chosen = [round((1 - level) * steps) for level in levels]
    denoise = backbone.denoiser(backbone.encode_text([""]))
    latents = {steps: x0}
    for level in invert(denoise, backbone.schedule, grid[min(chosen) :], x0):
        index = steps - 1 - level.index
        if index in chosen:
            latents[index] = level.x
    return [(grid[index], latents[index]) for index in chosen]


class Features:
    """The spatial marginal means (F, C) of clips, for each tapped layer and noise level."""

    def __init__(self) -> None:
        self._by_tap_and_level: dict[tuple[str, int], list[Array]] = {}

    def read(
        self, backbone: Backbone, taps: tuple[Tap, ...], states: Iterable[State], frames: int
    ) -> None:
        """Add the features of one clip with this number of frames, at all levels, under an empty
        prompt."""
        denoise = backbone.denoiser(backbone.encode_text([""]))
        spans = backbone.latent_frame_spans(frames)
        for index, (t, x) in enumerate(states):
            with torch.no_grad(), record(backbone.network, taps, x.shape[2], stop=True) as recorded:
                denoise(x, t)
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


def check_inversion_steps(steps: int) -> None:
    """Raise `BadCall` for a number of steps below 1."""
    if steps < 1:
        raise BadCall(f"`inversion_steps` must be at least 1, got {steps}")
