"""Motion Inversion: embeddings in temporal self-attention that hold the motion of a clip.

Wang, Mai, Shen, Liang, Tao, Wan, Zhang, Li, Chen: "Motion Inversion for Video Customization", 2024.
The embedding m^QK, which is added to the inputs of queries and keys, has one vector for all
positions of a frame, so it cannot hold appearance. The embedding m^V, which is added to the input
of values, has a vector for every position; a transfer uses its differences between frames.

Owns the choice of layers and the paper's numbers. Knows no model. `TrainedMethod` has the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.errors import BadCall
from recast.finetuning.trained_method import SpatialLoRA, TrainedMethod
from recast.finetuning.training_config import TrainingConfig
from recast.motions.method import check_above_zero, check_at_least
from recast.networks.adapters import Adapter, input_shapes
from recast.networks.attention_layers import Transformer
from recast.networks.motion_embeddings import MotionEmbeddings

_ROLE = "temporal_transformers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(TrainingConfig):
    """Motion Inversion's settings. The numbers are those of the paper."""

    iterations: int = 800
    """Number of AdamW steps. 100 to 300 steps are enough for the motion of a camera."""
    lr: float = 5e-2
    """AdamW's learning rate."""
    places: int = 0
    """Number of temporal transformers that get embeddings, the coarsest first. 0 selects all in the
    encoder and decoder; ZeroScope has 15. 5 are suited to simple, local motion."""
    spatial: bool = False
    """Give m^QK a vector for every position, like m^V. This is an ablation of the paper."""
    gamma: float = 1.0
    """Factor of m^V in a transfer. The paper uses 0 for clips in which only the camera moves. On
    the shipped model m^V holds all of the motion."""
    difference: bool = True
    """Use the differences of m^V between frames in a transfer. This removes static appearance, and
    on the shipped model also a part of the motion."""
    rank: int = 32
    """Rank of the spatial LoRA of the hybrid objective."""
    spatial_lr: float = 5e-4
    """Learning rate of the spatial LoRA."""

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        check_at_least(self, 0, "places", "gamma")
        check_at_least(self, 1, "rank")
        check_above_zero(self, "spatial_lr")


PRESETS = {
    # The paper's appendix, which is more complete than the released config: embeddings in all
    # transformers of encoder and decoder, and 800 iterations in all of its comparisons.
    "paper": Config(steps=50, guidance_scale=10.0),
    # What the appendix says about kinds of motion. It names no objective for the motion of objects
    # alone, nor for objects and camera together.
    "object": Config(places=5, steps=50, guidance_scale=10.0),
    "camera": Config(
        iterations=300, objective="debiased", gamma=0.0, steps=50, guidance_scale=10.0
    ),
    "hybrid": Config(objective="hybrid", steps=50, guidance_scale=10.0),
    "reference": Config(iterations=400, lr=2e-2, places=5, steps=30, guidance_scale=12.0),
    "shapes": Config(iterations=150, inversion_steps=1),
}


@final
class Method(TrainedMethod[Config]):
    """Train motion embeddings. A motion is learned once and serves any prompt."""

    name = "motion_inversion"
    transformer_role = _ROLE
    transfer_settings = TrainedMethod.transfer_settings | {"gamma", "difference"}
    tensor_scales = MappingProxyType({"gamma": "value."})

    def initial_parameters(
        self, backbone: Backbone, run_network: Callable[[], object], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Zeros: "query_key.<transformer>" (1, F, C), and "value.<projection>" (h·w, F, C)."""
        transformers = self._select_transformers(backbone)
        attentions = [attention for t in transformers for attention in t.attentions]
        paths = [path for attention in attentions for path in attention]
        with input_shapes(backbone.network, paths) as shapes:
            run_network()
        return MotionEmbeddings.zeros(transformers, shapes, spatial=self.config.spatial)

    def adapter(self, backbone: Backbone, tensors: Mapping[str, Tensor], learning: bool) -> Adapter:
        return MotionEmbeddings(
            backbone.network,
            tensors,
            backbone.device,
            backbone.transformers_for(_ROLE),
            gamma=1.0 if learning else self.config.gamma,
            difference=self.config.difference and not learning,
            constant=not learning,
        )

    def spatial_lora(self) -> SpatialLoRA | None:
        hybrid = self.config.objective == "hybrid"
        return SpatialLoRA(self.config.rank, self.config.spatial_lr) if hybrid else None

    def _select_transformers(self, backbone: Backbone) -> Sequence[Transformer]:
        """The coarsest `places` temporal transformers."""
        transformers, count = backbone.transformers_for(_ROLE), self.config.places
        if count > len(transformers):
            raise BadCall(
                f"`places` must be at most {len(transformers)}, the number of temporal "
                f"transformers in the encoder and decoder of {backbone.name}, got {count}"
            )
        return transformers[: count or len(transformers)]
