"""Injection: features of the source replace those of a sample during its forward passes.

Owns the denoiser that injects features, and the reading of the source's features level by level.
Knows no method. The hooks are in `networks.feature_hooks`.
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

# t -> {tap path: features (B, F, H, W, C)}, or None at a time without injection
FeaturesAt = Callable[[Tensor], Mapping[str, Tensor] | None]


@final
class SourceFeatures:
    """The source's features at the given times, as a `FeaturesAt`. One forward pass reads the
    features of one time.

    `latents_at(t)` returns the source's x_t (1, C, F, H, W).
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
        # Holds the features of the latest time only, because those of all times may not fit into
        # memory.
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
    """A denoiser in whose forward passes `features_at(t)` replace the features at the taps. If
    `write` is `feature_hooks.added`, they are added instead."""

    def denoise_with_injection(x: Tensor, t: Tensor) -> Denoised:
        features = features_at(t)
        if features is None:
            return denoise(x, t)
        with write(backbone.network, taps, features, x.shape[2]):
            return denoise(x, t)

    return denoise_with_injection
