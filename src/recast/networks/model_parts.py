"""The parts of a loaded model, under the names of diffusers' pipelines.

Owns the record that backbones read. It refuses to know how parts are loaded (`pipeline_parts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelParts:
    """The networks, tokenizers and scheduler config of one model, named as in diffusers' pipelines.
    A part that the model does not have is None."""

    name: str
    scheduler: Mapping[str, Any]
    """The config of the scheduler."""
    device: torch.device = _CPU
    text_encoder: Any
    tokenizer: Any
    unet: Any = None
    transformer: Any = None
    transformer_2: Any = None
    """The second expert of a model with two experts, for the less noisy levels."""
    boundary_ratio: float | None = None
    """The noise level, from 0 to 1, below which `transformer_2` is used."""
    vae: Any = None
    controlnet: Any = None
    """The ControlNet beside the UNet."""
    text_encoder_2: Any = None
    tokenizer_2: Any = None
    words: frozenset[str] = frozenset()
    """All words on which the model was trained; empty if they are unknown."""

    @property
    def networks(self) -> list[nn.Module]:
        """All networks, the one that denoises first."""
        denoising = ("unet", "transformer", "transformer_2", "controlnet")
        names = (*denoising, "vae", "text_encoder", "text_encoder_2")
        parts = (getattr(self, name) for name in names)
        return [part for part in parts if part is not None]
