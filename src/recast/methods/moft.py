"""MOFT: guidance by motion features, from which static content is removed.

Xiao, Zhou, Yang, Pan: "Video Diffusion Models are Training-free Motion Interpreter and Controller",
NeurIPS 2024. A motion feature is a feature minus its mean over frames, on the few channels that
have the largest weights in the first principal component. The loss and the numbers are those of
DiTFlow's authors in their comparison with MOFT. The source is read along an inversion, as in MOFT's
code.

Owns the paper's settings, features and loss. Knows no model. `FeatureMatchingMethod` has the
algorithm. Not implemented: MOFT's masks, its point dragging, and its shared attention with an
unguided sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import cosine_similarity

from recast.diffusion import initial_noise
from recast.feature_guidance.feature_matching import (
    FeatureMatchingMethod,
    check_feature_matching,
)
from recast.motions.method import SamplingDefaults, check_setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(SamplingDefaults):
    """MOFT's settings."""

    taps: tuple[str, ...] = ("motion",)
    """Roles whose features are matched. The losses of their layers are averaged."""
    channels: float = 0.04
    """Fraction of the channels that are compared. These are the channels with the largest weights
    in the first principal component."""
    guided: float = 0.2
    """Fraction of the levels, from the noisiest, at which x_t is optimised. 0 turns guidance
    off."""
    inner_steps: int = 5
    """Number of optimisation steps at each guided level. Each level starts a new Adam."""
    lr: float = 0.002
    """Adam's learning rate at the first guided level."""
    lr_end: float = 0.001
    """Adam's learning rate at the last guided level. It changes linearly in between."""
    initial_noise: initial_noise.Kind = "random"
    """The noise that a sample starts from: random, inverted, low_frequency, blended or
    low_frequency_blended."""
    inversion_steps: int = 1
    """Approximate number of inversion steps. The inversion visits every sampling level."""

    def __post_init__(self) -> None:
        SamplingDefaults.__post_init__(self)
        check_feature_matching(self)
        check_setting("channels", self.channels, 0 < self.channels <= 1, "above 0 and at most 1")


PRESETS = {
    # The numbers of the paper of DiTFlow, whose authors compare with MOFT: 4 % of the channels, 5
    # steps at each of the noisiest 10 of 50 levels, and a guidance scale of 7.
    "paper": Config(steps=50, guidance_scale=7.0),
    "shapes": Config(
        channels=0.25,
        guided=0.6,
        inner_steps=10,
        lr=0.04,
        lr_end=0.02,
        initial_noise="inverted",
    ),
}


def motion_feature(features: Tensor) -> Tensor:
    """Features (B, F, H, W, C) minus their mean over frames, which removes static content."""
    return features - features.mean(1, keepdim=True)


def motion_channels(feature: Tensor, fraction: float) -> Tensor:
    """The indices, in ascending order, of the channels with the largest weights in the first
    principal component of a motion feature (1, F, H, W, C). Selects this fraction of the channels,
    but at least one."""
    # The mean over frames is zero at every position, so the second moments are the covariance.
    points = rearrange(feature, "1 f h w c -> (f h w) c").double()
    direction = torch.linalg.eigh(points.mT @ points).eigenvectors[:, -1]
    count = max(1, int(fraction * len(direction)))
    return direction.abs().topk(count).indices.sort().values


def distance(feature: Tensor, target: Tensor) -> Tensor:
    """The mean over positions and frames of 1 − the cosine over channels. Features (B, F, H, W, C)
    -> scalar."""
    return (1 - cosine_similarity(feature, target, dim=-1)).mean()


@final
class Method(FeatureMatchingMethod[Config]):
    """Match motion features. For each tap the motion holds, at the L guided levels, the indices of
    the compared channels as "<tap>/channels", (L, C'), and the motion feature on these channels as
    "<tap>", (L, F, H, W, C')."""

    name = "moft"
    learned_settings = ("taps", "channels", "guided", "inversion_steps")
    tensor_suffixes = ("", "/channels")

    def reduce(self, features: Tensor) -> Tensor:
        return motion_feature(features.float())

    def motion_tensors(self, levels: Tensor) -> tuple[Tensor, ...]:
        channels = [motion_channels(level[None], self.config.channels) for level in levels]
        values = [level[..., indices] for level, indices in zip(levels, channels, strict=True)]
        return torch.stack(values), torch.stack(channels)

    def distance(self, features: Tensor, target: Sequence[Tensor]) -> Tensor:
        values, channels = target
        return distance(motion_feature(features.float()[..., channels]), values[None])

    def initial_latents(self, inverted: Tensor, generator: torch.Generator) -> Tensor:
        return initial_noise.initial(self.config.initial_noise, inverted, generator)
