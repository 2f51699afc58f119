"""Mixing: the weighted sum of motions of parameters.

Owns which motions can be added and how their settings and noises combine. Knows no method; a method
says which of its settings scale which tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from recast.errors import BadMotion
from recast.finetuning.parameters import learned_parameters
from recast.finetuning.training_config import TrainingConfig
from recast.motions.motion import Motion
from recast.networks.adapters import weighted_sum


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Mixer:
    """Adds motions of one method."""

    method: str
    config: TrainingConfig
    """Its values stand for settings that a motion does not record."""
    tensor_scales: Mapping[str, str]
    """Settings that scale tensors, and the prefix of these tensors' names."""
    common_settings: Collection[str]
    """Settings of the transfer that must be equal in all motions."""

    def mix(self, motions: Sequence[Motion], weights: Sequence[float]) -> Motion:
        """The weighted sum. Strength and tensor scales of each motion are multiplied into its
        parameters and are 1 in the sum. Raises `BadMotion` for motions that cannot be added."""
        first = motions[0]
        self._check_alike(motions)
        strengths = [self._setting(motion, "strength") for motion in motions]
        factors = [weight * strength for weight, strength in zip(weights, strengths, strict=True)]
        summed = weighted_sum([self._scaled_parameters(motion) for motion in motions], factors)
        tensors = {name: tensor.half() for name, tensor in summed.items()}
        # Divided by the norm of the weights, so that the variance stays that of noise.
        norm = sum(weight**2 for weight in weights) ** 0.5
        noises = [w / norm * m.tensors["noise"] for w, m in zip(weights, motions, strict=True)]
        tensors["noise"] = torch.stack(noises).sum(0)
        sources = [
            {"clip": m.metadata.get("clip", {}).get("name", ""), "weight": weight}
            for m, weight in zip(motions, weights, strict=True)
        ]
        metadata = {n: v for n, v in first.metadata.items() if n not in ("losses", "cost")}
        neutral = dict.fromkeys(["strength", *self.tensor_scales], 1.0)
        metadata["config"] = {**metadata.get("config", {}), **neutral}
        return Motion(
            method=self.method,
            backbone=first.backbone,
            tensors=tensors,
            metadata={**metadata, "mixed": sources},
        )

    def _check_alike(self, motions: Sequence[Motion]) -> None:
        first = motions[0]
        for motion in motions:
            if (motion.method, motion.backbone) != (self.method, first.backbone):
                one, two = (f"{m.method} on {m.backbone}" for m in (first, motion))
                raise BadMotion(f"a motion by {one} and one by {two} cannot be mixed")
            motion.check_holds("noise")
            for name, (one, two) in self._differences(first, motion).items():
                raise BadMotion(
                    f"motions with {name} {one} and {two} cannot be mixed; learn them with the same"
                )

    def _differences(self, *pair: Motion) -> dict[str, tuple[Any, ...]]:
        """The properties that must be equal and are not."""
        values: dict[str, tuple[Any, ...]] = {
            "latents": tuple(tuple(m.tensors["noise"].shape) for m in pair),
            "noise levels (of `steps`)": tuple(m.metadata.get("times") for m in pair),
        }
        for name in sorted(self.common_settings):
            values[f"`{name}`"] = tuple(self._setting(motion, name) for motion in pair)
        return {name: (one, two) for name, (one, two) in values.items() if one != two}

    def _setting(self, motion: Motion, name: str) -> Any:
        """A setting that the motion was learned with."""
        return motion.metadata.get("config", {}).get(name, getattr(self.config, name))

    def _scaled_parameters(self, motion: Motion) -> dict[str, Tensor]:
        """The learned parameters, times the settings that scale some of them."""
        tensors = learned_parameters(motion)
        for setting, prefix in self.tensor_scales.items():
            scale = self._setting(motion, setting)
            tensors |= {n: scale * t.float() for n, t in tensors.items() if n.startswith(prefix)}
        return tensors
