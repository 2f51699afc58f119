"""SDEdit: add noise to the source, and denoise it with the new prompt.

Meng et al.: "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations",
ICLR 2022. Here the latents of all frames are noised and denoised together, as in the baseline of
DMT's fig. 8. With more noise the result follows the prompt more closely and preserves less of the
motion.

Owns the choice of the noise level. Knows no network.
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
from recast.feature_guidance.levels import count_steps
from recast.feature_guidance.pass_counts import sampling_passes
from recast.feature_guidance.sampling_loop import sample_with_events
from recast.motions.latents_method import LatentsMethod
from recast.motions.method import Sampling, check_setting
from recast.motions.motion import Motion
from recast.motions.passes import Passes, RunPasses


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The settings of SDEdit."""

    strength: float = 0.7
    """Fraction of the sampling steps that are taken. A larger fraction preserves less of the
    source. 1 starts at the noisiest level."""
    restart: bool = False
    """Use Restart sampling: take every step except the last twice, and add new noise before the
    second time."""

    def __post_init__(self) -> None:
        check_setting("strength", self.strength, 0 < self.strength <= 1, "above 0 and at most 1")


PRESETS = {
    f"strength-{round(100 * strength)}": Config(strength=strength)
    for strength in (0.7, 0.5, 0.6, 0.8, 0.9)
}


@final
class Method(LatentsMethod[Config]):
    """Sample from the noised latents of the clip."""

    name = "sdedit"
    takes_windows = True

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Add noise to the source, and take the last steps of the sampler: the fraction `strength`
        of all steps."""
        x0 = self.source_latents(backbone, motion)
        schedule = backbone.schedule.sized(x0.shape)
        part = self._part(sampling)
        t = schedule.grid(sampling.steps)[part][0]
        generator = torch.Generator().manual_seed(sampling.seed)
        eps = randn(tuple(x0.shape), generator, backbone.device)
        latents = yield from sample_with_events(
            backbone,
            backbone.cfg_denoiser(prompt, sampling.negative_prompt, sampling.guidance_scale),
            schedule.noised(x0, eps, t),
            sampling,
            restart=self._restart,
            generator=generator,
            part=part,
        )
        return latents

    def passes(self, backbone: Backbone, shape: Sequence[int], sampling: Sampling) -> RunPasses:
        return RunPasses(
            Passes(),
            sampling_passes(
                backbone,
                shape,
                sampling,
                sampling.negative_prompt,
                restart=self._restart,
                part=self._part(sampling),
            ),
        )

    @property
    def _restart(self) -> Restart | None:
        return Restart() if self.config.restart else None

    def _part(self, sampling: Sampling) -> slice:
        """The part of the sampler's grid that is sampled."""
        steps = max(1, count_steps(self.config.strength, sampling))
        return slice(sampling.steps - steps, None)
