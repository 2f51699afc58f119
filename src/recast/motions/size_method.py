"""`SizeMethod`: the base of methods that learn nothing of the clip but its length and size.

If the model reads a mask, the motion of a method that uses one also holds the pixels of the clip.

Owns such a motion. Knows no single method.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.events import Job
from recast.motions.method import C, MotionMethod, Sampling
from recast.motions.motion import Motion


class SizeMethod(MotionMethod[C], Generic[C]):
    """A method whose `learn` only reads the shape of the clip."""

    @final
    def cache_key_settings(self) -> Mapping[str, Any]:
        return {}

    @final
    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Job[Motion]:
        """The motion holds the frames, height and width of the clip, in pixels, as "size", and its
        pixels (F, H, W, 3) in 8 bits as "clip" if the method and the model read a mask."""
        tensors = {"size": torch.tensor(video.shape[2:])}
        if self.model_reads_mask and backbone.reads_mask:
            levels = ((video[0].movedim(0, -1) + 1) * 127.5).round().clamp(0, 255)
            tensors["clip"] = levels.to(torch.uint8)
        return Job.finished(
            Motion(
                method=self.name,
                backbone=backbone.fingerprint,
                tensors=tensors,
                metadata={"backbone_name": backbone.name},
            )
        )

    @final
    def latent_shape(self, backbone: Backbone, motion: Motion) -> tuple[int, int, int, int, int]:
        """The shape (1, C, f, h, w) of the latents of a clip with this motion. Raises `BadMotion`
        for a motion of another method or model."""
        motion.check_compatible(backbone, self.name)
        motion.check_holds("size")
        frames, height, width = motion.tensors["size"].tolist()
        return backbone.latent_shape(frames, height, width)
