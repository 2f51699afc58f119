"""Tune-A-Video: attention's queries and all of temporal attention, tuned to one clip.

Wu et al.: "Tune-A-Video: One-Shot Tuning of Image Diffusion Models for Text-to-Video Generation",
ICCV 2023. Published on an image model that is first blown up to video; here the video model's own
temporal transformers take the place of the ones it adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion import initial_noise
from recast.finetuning import trained_method
from recast.finetuning.objectives import Training, WithoutLoRA
from recast.networks.adapters import Adapter, WeightDifferences

_ROLE, _QUERIES = "all_temporal_transformers", "spatial_transformers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(Training):
    """Tune-A-Video's settings; the numbers are those of its released configs."""

    iterations: int = 500
    """Steps of AdamW."""
    lr: float = 3e-5
    """Its learning rate."""
    clip_gradient: float = 1.0
    """Cut the gradient to this norm; 0 does not."""
    objective: WithoutLoRA = "mse"
    """mse: what the network says against what it should. debiased: that, with and without what the
    frames share. vmc, vmc_released: see vmc."""
    initial_noise: initial_noise.Kind = "inverted"
    """What a sample starts from: random; inverted; low_frequency; blended;
    low_frequency_blended."""


PRESETS = {
    "fast": Config(iterations=150, lr=1e-3, inversion_steps=1),
    "reference": Config(),
}


@final
class Method(trained_method.Method[Config]):
    """Tunes the queries of spatial attention, to frame and words, and all temporal projections."""

    name = "tune_a_video"

    @property
    def roles(self) -> tuple[str, ...]:
        return (_ROLE,)

    def fresh(
        self, backbone: Backbone, look: Callable[[], object], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """ "….diff" (out, in), all zero."""
        spatial = backbone.transformers.get(_QUERIES, ())
        queries = [attention.query for place in spatial for attention in place.attentions]
        temporal = [
            path
            for place in backbone.transformers_for(_ROLE)
            for attention in place.attentions
            for path in attention
        ]
        return WeightDifferences.zeros(backbone.network, [*queries, *temporal], backbone.component)

    def adapter(self, backbone: Backbone, tensors: Mapping[str, Tensor], learning: bool) -> Adapter:
        return WeightDifferences(backbone.network, tensors, backbone.device, backbone.component)
