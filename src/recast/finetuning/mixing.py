"""Mixing: the weighted sum of motions that hold trained parameters.

Owns which motions can be mixed, and how their parameters, settings and noises are combined. Knows
no method: a method names the settings that scale tensors.
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
    """Mixes motions of one method."""

    method: str
    """The name of the method."""
    config: TrainingConfig
    """Gives the value of a setting that a motion does not record."""
    tensor_scales: Mapping[str, str]
    """Name of a setting that scales tensors -> the prefix of the names of these tensors."""
    common_settings: Collection[str]
    """Settings of the transfer that must be equal in all motions."""

    def mix(self, motions: Sequence[Motion], weights: Sequence[float]) -> Motion:
        """The weighted sum of motions. The strength and the tensor scales of each motion are
        multiplied into its parameters, and they are 1 in the result. Raises `BadMotion` for motions
        that cannot be mixed."""
        first = motions[0]
        self._check_mixable(motions)
        strengths = [self._setting(motion, "strength") for motion in motions]
        factors = [weight * strength for weight, strength in zip(weights, strengths, strict=True)]
        summed = weighted_sum([self._scaled_parameters(motion) for motion in motions], factors)
        tensors = {name: tensor.half() for name, tensor in summed.items()}
        # The division by the norm of the weights preserves the variance of the noise.
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

    def _check_mixable(self, motions: Sequence[Motion]) -> None:
        first = motions[0]
        for motion in motions:
            if (motion.method, motion.backbone) != (self.method, first.backbone):
                one, two = (f"{m.method} on {m.backbone}" for m in (first, motion))
                raise BadMotion(
                    f"a motion by {one} and one by {two} cannot be mixed; give motions of one "
                    "method on the same weights"
                )
            motion.check_holds("noise")
            for name, (first_value, value) in self._differences(first, motion).items():
                raise BadMotion(
                    f"motions with {name} {first_value} and {value} cannot be mixed; learn them "
                    "with the same value"
                )

    def _differences(self, *pair: Motion) -> dict[str, tuple[Any, ...]]:
        """The properties that must be equal but differ: name -> the two values."""
        values: dict[str, tuple[Any, ...]] = {
            "latents": tuple(tuple(m.tensors["noise"].shape) for m in pair),
            "noise levels (set by `steps`)": tuple(m.metadata.get("times") for m in pair),
        }
        for name in sorted(self.common_settings):
            values[f"`{name}`"] = tuple(self._setting(motion, name) for motion in pair)
        return {name: (a, b) for name, (a, b) in values.items() if a != b}

    def _setting(self, motion: Motion, name: str) -> Any:
        """The value of a setting with which the motion was learned."""
        return motion.metadata.get("config", {}).get(name, getattr(self.config, name))

    def _scaled_parameters(self, motion: Motion) -> dict[str, Tensor]:
        """The trained parameters, multiplied by the settings that scale them."""
        tensors = learned_parameters(motion)
        for setting, prefix in self.tensor_scales.items():
            scale = self._setting(motion, setting)
            tensors |= {n: scale * t.float() for n, t in tensors.items() if n.startswith(prefix)}
        return tensors
