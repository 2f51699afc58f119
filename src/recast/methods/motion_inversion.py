"""Motion Inversion: embeddings in temporal self-attention that hold the motion of a clip.

Wang, Mai, Shen, Liang, Tao, Wan, Zhang, Li, Chen: "Motion Inversion for Video Customization", 2024.
m^QK has no extent in space, so that it cannot hold appearance; m^V has, and gives its difference
in time in its place when clips are made.
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
from recast.finetuning import trained_method
from recast.finetuning.objectives import Training
from recast.motions.method import check_setting
from recast.networks.adapters import Adapter, MotionEmbeddings, input_shapes
from recast.networks.attention_layers import Transformer

_ROLE = "temporal_transformers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(Training):
    """Motion Inversion's settings; the numbers are the paper's."""

    iterations: int = 800
    """Steps of AdamW; 100 to 300 do for the motion of a camera."""
    lr: float = 5e-2
    """Its learning rate."""
    places: int = 0
    """How many temporal transformers get embeddings, the coarsest first; 0 is all on the way down
    and up, 15 on ZeroScope, of which 5 suit simple, local motion."""
    spatial: bool = False
    """Give m^QK a value for every position, as m^V has: the paper's ablation."""
    gamma: float = 1.0
    """Scales m^V when clips are made. The paper has 0 for a plain motion of the camera; on the
    shipped model all of a motion is in m^V."""
    difference: bool = True
    """Make clips with the difference of m^V in time, which leaves static appearance out, and on the
    shipped model some of the motion too."""
    rank: int = 32
    """Rank of the spatial LoRA of the hybrid objective."""
    spatial_lr: float = 5e-4
    """Its learning rate."""

    def __post_init__(self) -> None:
        Training.__post_init__(self)
        check_setting("places", self.places, self.places >= 0, "at least 0")
        check_setting("gamma", self.gamma, self.gamma >= 0, "at least 0")
        check_setting("rank", self.rank, self.rank >= 1, "at least 1")
        check_setting("spatial_lr", self.spatial_lr, self.spatial_lr > 0, "above 0")


PRESETS = {
    "fast": Config(iterations=150, inversion_steps=1),
    # The appendix names no objective for the motion of objects, and none for both at once.
    "object": Config(places=5),
    "camera": Config(iterations=300, objective="debiased", gamma=0.0),
    "hybrid": Config(objective="hybrid"),
    "reference": Config(iterations=400, lr=2e-2, places=5),
}


@final
class Method(trained_method.Method[Config]):
    """Learn once, as a small file; use it with any prompt."""

    name = "motion_inversion"
    of_transfer = trained_method.Method.of_transfer | {"gamma", "difference"}
    scales = MappingProxyType({"gamma": "value."})

    @property
    def roles(self) -> tuple[str, ...]:
        return (_ROLE,)

    def fresh(
        self, backbone: Backbone, look: Callable[[], object], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """ "query_key.…" (1, F, C) and "value.…" (h·w, F, C), all zero."""
        chosen = self._chosen(backbone)
        paths = [path for place in chosen for attention in place.attentions for path in attention]
        with input_shapes(backbone.network, paths) as shapes:
            look()
        return MotionEmbeddings.zeros(chosen, shapes, spatial=self.config.spatial)

    def adapter(self, backbone: Backbone, tensors: Mapping[str, Tensor], learning: bool) -> Adapter:
        return MotionEmbeddings(
            backbone.network,
            tensors,
            backbone.device,
            backbone.transformers_for(_ROLE),
            gamma=1.0 if learning else self.config.gamma,
            difference=self.config.difference and not learning,
        )

    def spatial(self) -> tuple[int, float] | None:
        hybrid = self.config.objective == "hybrid"
        return (self.config.rank, self.config.spatial_lr) if hybrid else None

    def _chosen(self, backbone: Backbone) -> Sequence[Transformer]:
        there, asked = backbone.transformers_for(_ROLE), self.config.places
        if asked > len(there):
            raise BadCall(
                f"places is {asked}, and {backbone.name} has {len(there)} temporal transformers on "
                f"the way down and up; take at most so many, or 0 for all"
            )
        return there[: asked or len(there)]
