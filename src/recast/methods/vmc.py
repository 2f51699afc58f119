"""VMC: the projections of temporal attention, tuned to the differences between a clip's frames.

Jeong, Park, Ye: "VMC: Video Motion Customization using Temporal Attention Adaption for
Text-to-Video Diffusion Models", CVPR 2024. Published on Show-1. A sample starts from the clip's own
noise.
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

_ROLE = "all_temporal_transformers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(Training):
    """VMC's settings; the numbers are those of its released configs."""

    lr: float = 1e-4
    """AdamW's learning rate."""
    clip_gradient: float = 1.0
    """Cut the gradient to this norm; 0 does not."""
    objective: WithoutLoRA = "vmc"
    """vmc: the cosine of differences between frames, as residual vectors. vmc_released: of their
    absolute values, over time, as the code has it. mse: what the network says against what it
    should. debiased: that, with and without what the frames share."""
    initial_noise: initial_noise.Kind = "inverted"
    """What a sample starts from: random; inverted; low_frequency; blended;
    low_frequency_blended."""


PRESETS = {
    "fast": Config(iterations=150, lr=1e-3, inversion_steps=1),
    "paper": Config(inversion_steps=75),
    "reference": Config(objective="vmc_released", inversion_steps=75),
}


@final
class Method(trained_method.Method[Config]):
    """Tunes queries, keys and values of every temporal attention."""

    name = "vmc"

    @property
    def roles(self) -> tuple[str, ...]:
        return (_ROLE,)

    def fresh(
        self, backbone: Backbone, look: Callable[[], object], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """ "….diff" (out, in), all zero."""
        paths = [
            path
            for place in backbone.transformers_for(_ROLE)
            for attention in place.attentions
            for path in (attention.query, attention.key, attention.value)
        ]
        return WeightDifferences.zeros(backbone.network, paths, backbone.component)

    def adapter(self, backbone: Backbone, tensors: Mapping[str, Tensor], learning: bool) -> Adapter:
        return WeightDifferences(backbone.network, tensors, backbone.device, backbone.component)
