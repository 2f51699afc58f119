"""`GuidedPass`: a guided noise estimate and the gradient of a loss of features, without a repeated
forward pass.

Owns the use of the prompt's forward pass for both. Knows no loss and no method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.cfg import cfg
from recast.diffusion.noise_schedule import Denoised
from recast.diffusion.optimize import GradientResult, LossScale, gradient
from recast.feature_guidance.taps import estimate_with_features
from recast.networks.feature_hooks import Tap


@final
class GuidedPass:
    """Classifier-free guidance in which the forward pass of the prompt also gives features, from
    which gradients are computed. A network that reads the guidance scale takes a pass of its own
    for the features, because they are read without guidance."""

    def __init__(
        self,
        backbone: Backbone,
        prompt: str,
        negative_prompt: str,
        scale: float,
        taps: Sequence[Tap],
    ) -> None:
        self._backbone, self._taps, self._scale = backbone, taps, scale
        self._loss_scale = LossScale()
        self._plain = backbone.denoiser(backbone.encode_text([prompt]))
        self._negative = backbone.denoiser(backbone.encode_text([negative_prompt]))
        self._guided = backbone.cfg_denoiser(prompt, negative_prompt, scale)
        self._reads_scale = backbone.guidance_distilled and not negative_prompt

    def __call__(
        self, x: Tensor, t: Tensor, loss: Callable[[Mapping[str, Tensor]], Tensor]
    ) -> tuple[Denoised, GradientResult]:
        """Both guided estimates at x_t (1, C, F, H, W), and the gradient at x_t of a loss of the
        features, tap path -> (1, F, H, W, C). Raises `NotFinite`."""
        estimates: list[Denoised] = []

        def loss_of(x: Tensor) -> Tensor:
            estimate, features = estimate_with_features(
                self._backbone, self._plain, self._taps, x, t
            )
            estimates.append(estimate)
            return loss(features)

        result = gradient(loss_of, x, self._loss_scale)
        return self._with_guidance(estimates[-1], x, t), result

    def _with_guidance(self, estimate: Denoised, x: Tensor, t: Tensor) -> Denoised:
        """Both guided estimates, from those of the prompt."""
        if self._scale == 1:
            return estimate
        if self._reads_scale:
            return self._guided(x, t)
        negative = self._negative(x, t)
        both = Denoised(*(torch.cat(pair) for pair in zip(negative, estimate, strict=True)))
        return cfg(lambda x, t: both, self._backbone.guidance_weight(self._scale))(x, t)
