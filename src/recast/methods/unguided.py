"""Unguided sampling: text to video from random noise, as a lower bound for every method.

Only the length and the size of the clip are used. Owns the settings of plain sampling. Knows no
model.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.sampling import Restart, randn
from recast.events import Event, Job, job
from recast.feature_guidance.sampling_loop import sample_with_events
from recast.motions.method import MotionMethod, Sampling
from recast.motions.motion import Motion


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of plain sampling."""

    restart: bool = False
    """Use Restart sampling: take every step except the last twice, and add new noise before the
    second time."""


PRESETS = {"plain": Config(), "restart": Config(restart=True)}


@final
class Method(MotionMethod[Config]):
    """Sample without the motion of the clip."""

    name = "unguided"
    takes_windows = True

    def cache_key_settings(self) -> Mapping[str, Any]:
        return {}

    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Job[Motion]:
        """The motion holds the frames, height and width of the clip, in pixels, as "size"."""
        frames, height, width = video.shape[2:]
        return Job.finished(
            Motion(
                method=self.name,
                backbone=backbone.fingerprint,
                tensors={"size": torch.tensor([frames, height, width])},
                metadata={"backbone_name": backbone.name},
            )
        )

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample from random noise."""
        motion.check_compatible(backbone, self.name)
        frames, height, width = motion.tensors["size"].tolist()
        generator = torch.Generator().manual_seed(sampling.seed)
        x = randn(backbone.latent_shape(frames, height, width), generator, backbone.device)
        latents = yield from sample_with_events(
            backbone,
            backbone.cfg_denoiser(prompt, sampling.negative_prompt, sampling.guidance_scale),
            x,
            sampling,
            restart=Restart() if self.config.restart else None,
            generator=generator,
        )
        return latents
