"""MotionDirector: a LoRA on temporal transformers for the motion, one on spatial ones for the look.

Zhao et al.: "MotionDirector: Motion Customization of Text-to-Video Diffusion Models", ECCV 2024.
The spatial LoRA learns from single frames and is dropped; the temporal one learns beside it, by a
loss from which what the frames share is taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.finetuning import trained_method
from recast.finetuning.objectives import Objective, Training
from recast.motions.method import check_setting
from recast.networks.adapters import Adapter, LoRA

_ROLE = "all_temporal_transformers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(Training):
    """MotionDirector's settings; the numbers are those of its released configs."""

    iterations: int = 150
    """Steps of AdamW; its authors take up to 500."""
    objective: Objective = "hybrid"
    """hybrid: mse with and without what the frames share, beside a spatial LoRA for the appearance.
    debiased: without that. mse, vmc, vmc_released: see motion_inversion."""
    rank: int = 32
    """Rank of both LoRAs."""

    def __post_init__(self) -> None:
        Training.__post_init__(self)
        check_setting("rank", self.rank, self.rank >= 1, "at least 1")


PRESETS = {
    "fast": Config(rank=8, lr=2e-3, inversion_steps=1),
    "reference": Config(),
}


@final
class Method(trained_method.Method[Config]):
    """Keeps the temporal LoRA, under the keys of diffusers and peft."""

    name = "motiondirector"

    @property
    def roles(self) -> tuple[str, ...]:
        return (_ROLE,)

    def fresh(
        self, backbone: Backbone, look: Callable[[], object], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """LoRA on every linear layer of every temporal transformer."""
        network = backbone.network
        paths = [
            path for place in backbone.transformers_for(_ROLE) for path in place.linears(network)
        ]
        return LoRA.fresh(network, paths, self.config.rank, backbone.component, generator)

    def adapter(self, backbone: Backbone, tensors: Mapping[str, Tensor], learning: bool) -> Adapter:
        return LoRA(backbone.network, tensors, backbone.device, backbone.component)

    def spatial(self) -> tuple[int, float] | None:
        hybrid = self.config.objective == "hybrid"
        return (self.config.rank, self.config.lr) if hybrid else None
