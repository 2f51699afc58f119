"""Tune-A-Video's tuning on a text-to-video model, whose own temporal layers it tunes.

Wu et al.: "Tune-A-Video: One-Shot Tuning of Image Diffusion Models for Text-to-Video Generation",
ICCV 2023, adds temporal layers to an image model; that is the method `tune_a_video`. Here the
temporal transformers of a video model, which are trained already, take the part of these layers.

Owns the choice of layers. Knows no model. `TrainedMethod` has the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion import initial_noise
from recast.finetuning.trained_method import TrainedMethod
from recast.finetuning.training_config import ObjectiveWithoutLoRA, TrainingConfig
from recast.networks.adapters import Adapter, WeightDifferences

_ROLE, _QUERIES = "all_temporal_transformers", "spatial_transformers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(TrainingConfig):
    """The settings, with the numbers of Tune-A-Video's released configs."""

    iterations: int = 500
    """Number of AdamW steps."""
    lr: float = 3e-5
    """AdamW's learning rate."""
    clip_gradient: float = 1.0
    """Maximum norm of the gradient. 0 turns clipping off."""
    objective: ObjectiveWithoutLoRA = "mse"
    """mse: mean squared error of the network's output. debiased: mse, plus mse without the content
    that frames share. vmc, vmc_released: see the method vmc."""
    initial_noise: initial_noise.Kind = "inverted"
    """The noise that a sample starts from: random, inverted, low_frequency, blended or
    low_frequency_blended."""


PRESETS = {
    # The released config, the only source of these numbers that was available to us.
    "reference": Config(steps=50, guidance_scale=12.5),
    "shapes": Config(iterations=150, lr=1e-3, inversion_steps=1),
}


@final
class Method(TrainedMethod[Config]):
    """Tune the queries of spatial self- and cross-attention, and all projections of temporal
    attention."""

    name = "tune_a_video_t2v"
    transformer_role = _ROLE

    def initial_parameters(
        self, backbone: Backbone, run_network: Callable[[], object], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Zeros: "<component>.<layer>.diff" (out, in)."""
        queries = [
            attention.query
            for transformer in backbone.transformers.get(_QUERIES, ())
            for attention in transformer.attentions
        ]
        temporal = [
            path
            for transformer in backbone.transformers_for(_ROLE)
            for attention in transformer.attentions
            for path in attention
        ]
        return WeightDifferences.zeros(backbone.network, [*queries, *temporal], backbone.component)

    def adapter(self, backbone: Backbone, tensors: Mapping[str, Tensor], learning: bool) -> Adapter:
        return WeightDifferences(backbone.network, tensors, backbone.device, backbone.component)
