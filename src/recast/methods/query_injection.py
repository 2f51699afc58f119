"""Query injection: the early steps of a sample use the source's self-attention queries.

Atzmon, Gal, Tewel, Kasten, Chechik: "Motion by Queries: Identity-Motion Trade-offs in Text-to-Video
Generation", arXiv 2412.07750. Queries transfer layout and motion; if they are injected at many
steps, they also transfer the identity of the source. The method needs no gradients. `learn` inverts
the clip and stores x_t at the injected levels. `transfer` computes the queries again from x_t, with
one forward pass for each level, because a file with the queries of every layer and level would take
gigabytes.

Owns the choice of queries and levels. Knows no model. The fraction of injected levels and the
initial noise are our choices, because the released pages name neither.
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
from recast.events import Event, job
from recast.feature_guidance.injection import SourceFeatures, inject_features
from recast.feature_guidance.levels import count_steps, guided_times
from recast.feature_guidance.pass_counts import inversion_passes, sampling_passes
from recast.feature_guidance.sampling_loop import sample_with_events
from recast.feature_guidance.taps import select_taps
from recast.feature_guidance.trace import record_inversion
from recast.motions.method import (
    MotionMethod,
    Sampling,
    check_at_least,
    check_fraction,
    check_names_roles,
)
from recast.motions.motion import Motion
from recast.motions.passes import Passes, RunPasses


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The settings of query injection."""

    queries: tuple[str, ...] = ("queries",)
    """Roles whose features are replaced by those of the source."""
    places: tuple[int, ...] = ()
    """Indices of the layers of each role, counted from 0. An empty list selects all layers."""
    injected: float = 0.4
    """Fraction of the levels, from the noisiest, at which queries are injected. 0 turns injection
    off."""
    initial_noise: initial_noise.Kind = "random"
    """The noise that a sample starts from: random, inverted, low_frequency, blended or
    low_frequency_blended."""
    inversion_steps: int = 1
    """Approximate number of inversion steps. The inversion visits every sampling level."""

    def __post_init__(self) -> None:
        check_names_roles(self, "queries", "queries")
        check_fraction(self, "injected")
        check_at_least(self, 1, "inversion_steps")


PRESETS = {
    # The number of inversion steps is that of DMT. The paper's numbers were not available to us.
    "paper": Config(inversion_steps=1000),
    # On the shapes model the queries alone hardly move the subject with another initial noise.
    "shapes": Config(initial_noise="inverted"),
}


@final
class Method(MotionMethod[Config]):
    """Inject the queries of the inverted clip. A motion is learned once and serves any prompt."""

    name = "query_injection"

    @property
    def roles(self) -> tuple[str, ...]:
        return self.config.queries

    def cache_key_settings(self) -> Mapping[str, Any]:
        return self.settings_as_json(("injected", "inversion_steps"))

    @job
    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Motion]:
        """Invert the clip at guidance scale 1. The motion holds x_T as "noise",
        (C, F, H, W), and x_t at the L injected levels as "latents", (L, C, F, H, W)."""
        trace = yield from record_inversion(
            backbone,
            backbone.encode(video),
            prompt,
            sampling.steps,
            guided_steps=count_steps(self.config.injected, sampling),
            inversion_steps=self.config.inversion_steps,
        )
        tensors = {"noise": trace.noise, "latents": trace.latents}
        times = self._times(backbone, trace.noise.shape, sampling)
        return self.build_motion(backbone, tensors, prompt, sampling, times)

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample with the source's queries at the noisiest levels."""
        motion.check_compatible(backbone, self.name)
        motion.check_settings({"steps": sampling.steps, **self.cache_key_settings()})
        motion.check_holds("noise", "latents")
        times = self._times(backbone, motion.tensors["noise"].shape, sampling)
        motion.check_times(backbone, times)
        generator = torch.Generator().manual_seed(sampling.seed)
        inverted = motion.tensors["noise"][None].to(backbone.device)
        latents = yield from sample_with_events(
            backbone,
            self._denoiser(backbone, motion, prompt, sampling, times),
            initial_noise.initial(self.config.initial_noise, inverted, generator),
            sampling,
        )
        return latents

    def passes(self, backbone: Backbone, shape: Sequence[int], sampling: Sampling) -> RunPasses:
        injected = Passes(partial=count_steps(self.config.injected, sampling))
        return RunPasses(
            inversion_passes(backbone, shape, sampling, self.config.inversion_steps),
            sampling_passes(backbone, shape, sampling, sampling.negative_prompt) + injected,
        )

    def _denoiser(
        self,
        backbone: Backbone,
        motion: Motion,
        prompt: str,
        sampling: Sampling,
        times: Sequence[float],
    ) -> Denoiser:
        """The denoiser of the sample, with the source's queries at these times."""
        taps = select_taps(backbone, self.config.queries, self.config.places)
        levels = dict(zip(times, motion.tensors["latents"], strict=True))
        queries = SourceFeatures(
            backbone,
            backbone.denoiser(backbone.encode_text([motion.source_prompt])),
            taps,
            times,
            lambda t: levels[float(t)][None].to(backbone.device),
        )
        denoise = backbone.cfg_denoiser(prompt, sampling.negative_prompt, sampling.guidance_scale)
        return inject_features(backbone, denoise, taps, queries)

    def _times(self, backbone: Backbone, shape: Sequence[int], sampling: Sampling) -> list[float]:
        """The times of the injected levels."""
        steps = count_steps(self.config.injected, sampling)
        return guided_times(backbone, shape, sampling, steps)
