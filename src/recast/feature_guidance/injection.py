"""Injection: forward passes of a sample that use features of the source.

Owns the denoiser with injected features and the reading of the source's features level by level.
Knows no method; the hooks are in `networks.feature_hooks`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import final

from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoised, Denoiser
from recast.feature_guidance.taps import read_features
from recast.networks.feature_hooks import Tap, override

# t -> tap path -> features (B, F, H, W, C); None at times without injection
FeaturesAt = Callable[[Tensor], Mapping[str, Tensor] | None]


@final
class SourceFeatures:
    """The source's features at some times, as a `FeaturesAt`. Each time costs one forward pass.

    `latents_at(t)` are the source's latents (1, C, F, H, W) at time t.
    """

    def __init__(
        self,
        backbone: Backbone,
        denoise: Denoiser,
        taps: Sequence[Tap],
        times: Collection[float],
        latents_at: Callable[[Tensor], Tensor],
    ) -> None:
        self._backbone, self._denoise, self._taps = backbone, denoise, taps
        self._times, self._latents_at = times, latents_at
        # The features of one level only, because those of all levels may not fit in memory.
        self._features: dict[float, Mapping[str, Tensor]] = {}

    def __call__(self, t: Tensor) -> Mapping[str, Tensor] | None:
        time = float(t)
        if not self._taps or time not in self._times:
            return None
        if time not in self._features:
            self._features.clear()
            x = self._latents_at(t)
            self._features[time] = read_features(self._backbone, self._denoise, self._taps, x, t)
        return self._features[time]


def inject_features(
    backbone: Backbone,
    denoise: Denoiser,
    taps: Sequence[Tap],
    features_at: FeaturesAt,
    write: Callable[..., AbstractContextManager[None]] = override,
) -> Denoiser:
    """A denoiser whose forward passes use `features_at(t)` in place of the taps' own features.
    `write` may be `feature_hooks.added`, which adds to them."""

    def injected(x: Tensor, t: Tensor) -> Denoised:
        features = features_at(t)
        if features is None:
            return denoise(x, t)
        with write(backbone.network, taps, features, x.shape[2]):
            return denoise(x, t)

    return injected
