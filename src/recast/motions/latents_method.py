"""`LatentsMethod`: the base of methods whose motion consists of the clip's latents.

Owns the encoding of the clip and the check of such a motion. Knows no single method.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, final

from torch import Tensor

from recast.backbones.base import Backbone
from recast.events import Job
from recast.motions.method import C, MotionMethod, Sampling
from recast.motions.motion import Motion


class LatentsMethod(MotionMethod[C], Generic[C]):
    """A method whose `learn` encodes the clip and learns nothing else."""

    @final
    def cache_key_settings(self) -> Mapping[str, Any]:
        return {}

    @final
    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Job[Motion]:
        """Encode the clip. The motion holds its latents as "latents", (C, F, H, W)."""
        return Job.finished(
            Motion(
                method=self.name,
                backbone=backbone.fingerprint,
                tensors={"latents": backbone.encode(video)[0]},
                metadata={
                    "backbone_name": backbone.name,
                    "source_prompt": prompt,
                    "steps": sampling.steps,
                },
            )
        )

    @final
    def source_latents(self, backbone: Backbone, motion: Motion) -> Tensor:
        """The latents (1, C, F, H, W) of a motion, on the model's device. Raises `BadMotion` for a
        motion of another method or model."""
        motion.check_compatible(backbone, self.name)
        motion.check_holds("latents")
        return motion.tensors["latents"][None].to(backbone.device)
