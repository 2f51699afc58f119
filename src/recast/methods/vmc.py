"""VMC: fine-tune the projections of temporal attention on the differences between frames.

Jeong, Park, Ye: "VMC: Video Motion Customization using Temporal Attention Adaption for
Text-to-Video Diffusion Models", CVPR 2024. The paper uses Show-1. A sample starts from the inverted
noise of the clip.

Owns the choice of layers and the paper's numbers. Knows no model. `TrainedMethod` has the training.
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

_ROLE = "all_temporal_transformers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(TrainingConfig):
    """VMC's settings. The numbers are those of its released configs."""

    lr: float = 1e-4
    """AdamW's learning rate."""
    clip_gradient: float = 1.0
    """Maximum norm of the gradient. 0 turns clipping off."""
    objective: ObjectiveWithoutLoRA = "vmc"
    """vmc: cosine distance of the differences between frames (residual vectors). vmc_released:
    cosine distance over time of the absolute values of these differences, as in the released code.
    mse: mean squared error of the network's output. debiased: mse, plus mse without the content
    that frames share."""
    initial_noise: initial_noise.Kind = "inverted"
    """The noise that a sample starts from: random, inverted, low_frequency, blended or
    low_frequency_blended."""


PRESETS = {
    # The numbers of the released configs with the objective of the paper. "reference" has the
    # objective of the released code.
    "paper": Config(inversion_steps=75, steps=75, guidance_scale=9.0),
    "reference": Config(objective="vmc_released", inversion_steps=75, steps=75, guidance_scale=9.0),
    "shapes": Config(iterations=150, lr=1e-3, inversion_steps=1),
}


@final
class Method(TrainedMethod[Config]):
    """Tune the queries, keys and values of every temporal attention."""

    name = "vmc"
    transformer_role = _ROLE

    def initial_parameters(
        self, backbone: Backbone, run_network: Callable[[], object], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Zeros: "<component>.<layer>.diff" (out, in)."""
        paths = [
            path
            for transformer in backbone.transformers_for(_ROLE)
            for attention in transformer.attentions
            for path in (attention.query, attention.key, attention.value)
        ]
        return WeightDifferences.zeros(backbone.network, paths, backbone.component)

    def adapter(self, backbone: Backbone, tensors: Mapping[str, Tensor], learning: bool) -> Adapter:
        return WeightDifferences(backbone.network, tensors, backbone.device, backbone.component)
