"""Query injection: the source's self-attention queries, put into the early steps of a sample.

Atzmon, Gal, Tewel, Kasten, Chechik: "Motion by Queries: Identity-Motion Trade-offs in Text-to-Video
Generation", arXiv 2412.07750. Queries say where things are and how they move; injected for long,
they also say who the source was. No gradients. `learn` inverts the clip and keeps x_t at the
injected levels; `transfer` reads the queries there again, which is a network call a level and
spares the gigabytes that the queries of every layer and level would fill.

The share of the steps and the noise that a sample starts from are ours: the released pages name
neither.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion import initial_noise
from recast.diffusion.noise_schedule import Denoiser
from recast.errors import BadCall
from recast.events import Event, job
from recast.feature_guidance import latent_guidance
from recast.motions.method import MotionMethod, Sampling, check_setting
from recast.motions.motion import Motion


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What is injected, and for how long."""

    queries: tuple[str, ...] = ("queries",)
    """Roles whose outputs are replaced by the source's."""
    places: tuple[int, ...] = ()
    """Which places of these roles, counted from 0; empty is all."""
    injected: float = 0.4
    """Share of the levels, from the noisiest, at which they are; 0 is plain sampling."""
    initial_noise: initial_noise.Kind = "random"
    """What a sample starts from: random; inverted; low_frequency; blended;
    low_frequency_blended."""
    inversion_steps: int = 1
    """About how many steps the inversion takes; it stops at every sampling level."""

    def __post_init__(self) -> None:
        if not self.queries:
            raise BadCall("queries is empty; name at least one role, such as queries")
        check_setting("injected", self.injected, 0 <= self.injected <= 1, "between 0 and 1")
        rule = "at least 1"
        check_setting("inversion_steps", self.inversion_steps, self.inversion_steps >= 1, rule)


PRESETS = {
    # From less of the inverted noise the queries alone hardly move the shapes model's subject.
    "fast": Config(initial_noise="inverted"),
    # An inversion as fine as DMT's; the paper's own numbers could not be read.
    "paper": Config(inversion_steps=1000),
}


@final
class Method(MotionMethod[Config]):
    """Learn once per clip, transfer for many prompts."""

    name = "query_injection"

    @property
    def roles(self) -> tuple[str, ...]:
        return self.config.queries

    def cache_key_settings(self) -> Mapping[str, Any]:
        return latent_guidance.json_settings(self.config, ("injected", "inversion_steps"))

    @job
    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Motion]:
        """DDIM inversion at guidance scale 1. The motion holds x_T as "noise", (C, F, H, W), and
        x_t of the injected levels as "latents", (L, C, F, H, W)."""
        trace = yield from latent_guidance.record_inversion(
            backbone,
            video,
            prompt,
            sampling.steps,
            guided=latent_guidance.level_count(self.config.injected, sampling),
            steps=self.config.inversion_steps,
        )
        tensors = {"noise": trace.noise, "latents": trace.latents}
        times = self._times(backbone, trace.noise.shape, sampling)
        return latent_guidance.build_motion(self, backbone, tensors, prompt, sampling, times)

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample with the source's queries in the first levels."""
        motion.check_made_for(backbone, self.name)
        latent_guidance.check_settings(
            motion, {"steps": sampling.steps, **self.cache_key_settings()}
        )
        motion.check_holds("noise", "latents")
        times = self._times(backbone, motion.tensors["noise"].shape, sampling)
        latent_guidance.check_times(motion, backbone, times)
        generator = torch.Generator().manual_seed(sampling.seed)
        inverted = motion.tensors["noise"][None].to(backbone.device)
        latents = yield from latent_guidance.sample_with_events(
            backbone,
            self._injected(backbone, motion, prompt, sampling, times),
            initial_noise.initial(self.config.initial_noise, inverted, generator),
            sampling,
        )
        return latents

    def _injected(
        self,
        backbone: Backbone,
        motion: Motion,
        prompt: str,
        sampling: Sampling,
        times: Sequence[float],
    ) -> Denoiser:
        taps = latent_guidance.select_taps(backbone, self.config.queries, self.config.places)
        levels = dict(zip(times, motion.tensors["latents"], strict=True))
        source = backbone.denoiser(backbone.encode_text([motion.source_prompt]))

        def queries(t: Tensor) -> Mapping[str, Tensor] | None:
            if float(t) not in levels:
                return None
            return latent_guidance.read_features(
                backbone, source, taps, levels[float(t)][None].to(backbone.device), t
            )

        denoise = backbone.cfg_denoiser(prompt, sampling.negative_prompt, sampling.guidance_scale)
        return latent_guidance.inject_features(backbone, denoise, taps, queries)

    def _times(self, backbone: Backbone, shape: Sequence[int], sampling: Sampling) -> list[float]:
        """The injected levels."""
        count = latent_guidance.level_count(self.config.injected, sampling)
        return latent_guidance.first_times(backbone, shape, sampling, count)
