"""Unguided sampling: text to video from random noise, as a lower bound for every method.

Only the length and the size of the clip are used. Owns the settings of plain sampling. Knows no
model.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.sampling import Restart, randn
from recast.events import Event, job
from recast.feature_guidance.pass_counts import sampling_passes
from recast.feature_guidance.sampling_loop import sample_with_events
from recast.motions.method import Sampling
from recast.motions.motion import Motion
from recast.motions.passes import Passes, RunPasses
from recast.motions.size_method import SizeMethod


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of plain sampling."""

    restart: bool = False
    """Use Restart sampling: take every step except the last twice, and add new noise before the
    second time."""


PRESETS = {"plain": Config(), "restart": Config(restart=True)}


@final
class Method(SizeMethod[Config]):
    """Sample without the motion of the clip."""

    name = "unguided"
    takes_windows = True

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample from random noise."""
        generator = torch.Generator().manual_seed(sampling.seed)
        x = randn(self.latent_shape(backbone, motion), generator, backbone.device)
        latents = yield from sample_with_events(
            backbone,
            backbone.cfg_denoiser(prompt, sampling.negative_prompt, sampling.guidance_scale),
            x,
            sampling,
            restart=self._restart,
            generator=generator,
        )
        return latents

    def passes(self, backbone: Backbone, shape: Sequence[int], sampling: Sampling) -> RunPasses:
        negative = sampling.negative_prompt
        plain = sampling_passes(backbone, shape, sampling, negative, restart=self._restart)
        return RunPasses(Passes(), plain)

    @property
    def _restart(self) -> Restart | None:
        return Restart() if self.config.restart else None
