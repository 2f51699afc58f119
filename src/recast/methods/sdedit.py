"""SDEdit on the same model: noise the source to a level, and denoise it towards the prompt.

Meng et al.: "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations",
ICLR 2022, frame by frame of one clip's latents at once. The baseline of DMT's fig. 8: more noise
follows the prompt further and keeps less of the motion.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.sampling import randn
from recast.errors import BadCall
from recast.events import Event, Job, job
from recast.feature_guidance import latent_guidance
from recast.motions.method import MotionMethod, Sampling, the_clip_itself
from recast.motions.motion import Motion


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """How much of the source is left."""

    strength: float = 0.7
    """Share of the sampling levels that are walked: the more, the less is left of the source; at 1
    only what the noisiest level leaves of it."""
    restart: bool = False
    """Take every step but the last twice, with noise added anew in between."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise BadCall(f"strength is {self.strength}; it must be above 0 and at most 1")


PRESETS = {
    f"strength-{round(100 * strength)}": Config(strength=strength)
    for strength in (0.7, 0.5, 0.6, 0.8, 0.9)
}


@final
class Method(MotionMethod[Config]):
    """Learns nothing but the clip's latents."""

    name = "sdedit"
    takes_windows = True

    def cache_key_settings(self) -> Mapping[str, Any]:
        return {}

    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Job[Motion]:
        """Encodes the clip, (C, F, H, W)."""
        return Job.finished(the_clip_itself(self.name, backbone, video, prompt, sampling))

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample from the noised source, at the levels below `strength` only."""
        motion.check_made_for(backbone, self.name)
        motion.check_holds("latents")
        count = max(1, round(self.config.strength * sampling.steps))
        x0 = motion.tensors["latents"][None].to(backbone.device)
        schedule = backbone.schedule.sized(x0.shape)
        part = slice(sampling.steps - count, None)
        t = schedule.grid(sampling.steps)[part][0]
        generator = torch.Generator().manual_seed(sampling.seed)
        eps = randn(tuple(x0.shape), generator, backbone.device)
        latents = yield from latent_guidance.sample_with_events(
            backbone,
            backbone.cfg_denoiser(prompt, sampling.negative_prompt, sampling.guidance_scale),
            schedule.noised(x0, eps, t),
            sampling,
            restart=self.config.restart,
            generator=generator,
            part=part,
        )
        return latents
