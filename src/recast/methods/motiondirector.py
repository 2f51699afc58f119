"""MotionDirector: a temporal LoRA that learns the motion, and a spatial LoRA for the appearance.

Zhao et al.: "MotionDirector: Motion Customization of Text-to-Video Diffusion Models", ECCV 2024.
The spatial LoRA learns from single frames and is discarded after the training. The temporal LoRA is
trained at the same time, with a loss from which the content that frames share is removed.

Owns the choice of layers and the paper's numbers. Knows no model. `TrainedMethod` has the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.finetuning.trained_method import SpatialLoRA, TrainedMethod
from recast.finetuning.training_config import Objective, TrainingConfig
from recast.motions.method import check_at_least
from recast.networks.adapters import Adapter, LoRA

_ROLE = "all_temporal_transformers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(TrainingConfig):
    """MotionDirector's settings. The numbers are those of its released configs."""

    iterations: int = 150
    """Number of AdamW steps. The authors use up to 500 steps."""
    objective: Objective = "hybrid"
    """hybrid: mse, plus mse without the content that frames share, with a spatial LoRA for the
    appearance. debiased: the same loss without the spatial LoRA. mse, vmc, vmc_released: see the
    method motion_inversion."""
    rank: int = 32
    """Rank of both LoRAs."""

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        check_at_least(self, 1, "rank")


PRESETS = {
    # The released config, the only source of these numbers that was available to us.
    "reference": Config(steps=30, guidance_scale=12.0),
    "shapes": Config(
        rank=8, lr=2e-3, iterations=75, strength=0.7, initial_noise="inverted", inversion_steps=1
    ),
}


@final
class Method(TrainedMethod[Config]):
    """Train a temporal LoRA. The motion holds it under the names of diffusers and peft."""

    name = "motiondirector"
    transformer_role = _ROLE

    def initial_parameters(
        self, backbone: Backbone, run_network: Callable[[], object], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """A LoRA for every linear layer of every temporal transformer."""
        network, transformers = backbone.network, backbone.transformers_for(_ROLE)
        paths = [path for transformer in transformers for path in transformer.linears(network)]
        return LoRA.initial(network, paths, self.config.rank, backbone.component, generator)

    def adapter(self, backbone: Backbone, tensors: Mapping[str, Tensor], learning: bool) -> Adapter:
        return LoRA(backbone.network, tensors, backbone.device, backbone.component)

    def spatial_lora(self) -> SpatialLoRA | None:
        hybrid = self.config.objective == "hybrid"
        return SpatialLoRA(self.config.rank, self.config.lr) if hybrid else None
