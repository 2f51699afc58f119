"""Tune-A-Video: an image model is inflated to see a clip, and tuned on it.

Wu et al.: "Tune-A-Video: One-Shot Tuning of Image Diffusion Models for Text-to-Video Generation",
ICCV 2023. Attention within a frame looks at the first and the previous frame, and attention over
frames is added (`networks.inflation`). The queries and the added layers are trained. The same
tuning of a text-to-video model is the method `tune_a_video_t2v`.

Owns the choice of layers and the paper's numbers. Knows no model. `TrainedMethod` has the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion import initial_noise
from recast.finetuning.trained_method import TrainedMethod
from recast.finetuning.training_config import ObjectiveWithoutLoRA, TrainingConfig
from recast.motions.method import Sampling
from recast.motions.passes import RunPasses
from recast.networks.adapters import Adapter
from recast.networks.inflation import InflatedNetwork

_ROLE, _KEYS_AND_VALUES = "spatial_transformers", ("all_keys", "all_values")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(TrainingConfig):
    """Tune-A-Video's settings. The numbers are those of its released configs."""

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
}


@final
class Method(TrainedMethod[Config]):
    """Tune the queries of self- and cross-attention, and attention over frames, which is added."""

    name = "tune_a_video"
    transformer_role = _ROLE

    @property
    def roles(self) -> tuple[str, ...]:
        return (_ROLE, *_KEYS_AND_VALUES)

    def passes(
        self, backbone: Backbone, shape: Sequence[int], sampling: Sampling
    ) -> RunPasses | None:
        return None  # the layers that are added change what a pass costs

    def initial_parameters(
        self, backbone: Backbone, run_network: Callable[[], object], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Zeros, as `InflatedNetwork` names them."""
        spatial = backbone.transformers_for(_ROLE)
        return InflatedNetwork.zeros(backbone.network, backbone.component, spatial)

    def adapter(self, backbone: Backbone, tensors: Mapping[str, Tensor], learning: bool) -> Adapter:
        return InflatedNetwork(
            backbone.network,
            tensors,
            backbone.device,
            backbone.component,
            backbone.transformers_for(_ROLE),
            [tap for role in _KEYS_AND_VALUES for tap in backbone.taps(role)],
        )
