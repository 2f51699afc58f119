"""DMT: space-time diffusion features as guidance, for motion transfer without training.

Yatim, Fridman, Bar-Tal, Kasten, Dekel: "Space-Time Diffusion Features for Zero-Shot Text-Driven
Motion Transfer", CVPR 2024. `learn` inverts the clip once and records its features at the sampling
levels on the way; `transfer` starts from the inverted noise or its low frequencies and, at the
noisiest levels, moves x_t until its features change over time as the clip's did.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion import initial_noise
from recast.diffusion.optimize import minimize
from recast.errors import BadCall
from recast.events import Event, job
from recast.feature_guidance import latent_guidance, losses
from recast.motions.method import MotionMethod, Sampling, check_setting
from recast.motions.motion import Motion


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """DMT's settings. What its paper ablates is a setting here."""

    taps: tuple[str, ...] = ("motion",)
    """Roles whose features are matched; their losses are averaged."""
    feature: Literal["smm", "full"] = "smm"
    """smm: the spatial marginal mean of each frame (eq. 1). full: every position."""
    cells: int = 1
    """Take the mean of smm over each cell of a grid of this many by this many; 1 is eq. 1. More
    ties the subject to its place in the source."""
    loss: Literal["pairwise", "pairwise_cosine", "absolute"] = "pairwise"
    """pairwise: differences between frames (eq. 3). pairwise_cosine: their cosines, as the
    authors' code does. absolute: the features themselves, as in feature inversion."""
    guided: float = 0.4
    """Share of the levels, from the noisiest, at which x_t is optimised; 0 is no optimisation."""
    inner_steps: int = 30
    """Optimisation steps at each guided level, with a fresh Adam."""
    lr: float = 0.01
    """Adam's learning rate at the first guided level."""
    lr_end: float = 0.01
    """Adam's learning rate at the last guided level; between them it changes linearly."""
    initial_noise: initial_noise.Kind = "low_frequency"
    """What a sample starts from: random; inverted; low_frequency (eq. 4); blended;
    low_frequency_blended."""
    low_pass_factor: int = 4
    """How much the low-pass filter of eq. 4 shrinks a frame (ξ)."""
    align_corners: bool = False
    """Resize for eq. 4 with the corner pixels' centres aligned, as the authors' code does."""
    noise_share: float = 0.5
    """Share p of x_T in a blended initial noise."""
    restart: bool = True
    """Take every step but the last twice, with noise added anew in between."""
    inversion_steps: int = 1000
    """About how many steps the inversion takes; it stops at every sampling level."""
    prompt_prefix: str = ""
    """Put before the prompt, and before the source prompt if there is one."""
    negative_prompt: str = ""
    """Used where the call gives no negative prompt."""

    def __post_init__(self) -> None:
        if not self.taps:
            raise BadCall("taps is empty; name at least one role, such as motion")
        check_setting("cells", self.cells, self.cells >= 1, "at least 1")
        check_setting("guided", self.guided, 0 <= self.guided <= 1, "between 0 and 1")
        check_setting("inner_steps", self.inner_steps, self.inner_steps >= 1, "at least 1")
        check_setting("lr", self.lr, self.lr > 0, "above 0")
        check_setting("lr_end", self.lr_end, self.lr_end >= 0, "at least 0")
        check_setting(
            "low_pass_factor", self.low_pass_factor, self.low_pass_factor >= 1, "at least 1"
        )
        check_setting(
            "noise_share", self.noise_share, 0 <= self.noise_share <= 1, "between 0 and 1"
        )
        check_setting(
            "inversion_steps", self.inversion_steps, self.inversion_steps >= 1, "at least 1"
        )


PRESETS = {
    # Tuned on the shapes model (docs/log/dmt-on-shapes.md). One inversion step a level. From
    # eq. 4's noise the camera is lost there (docs/log/methods.md).
    "fast": Config(
        cells=2,
        loss="pairwise_cosine",
        guided=0.6,
        inner_steps=10,
        lr=0.04,
        lr_end=0.02,
        initial_noise="inverted",
        restart=False,
        inversion_steps=1,
    ),
    "paper": Config(),
    "reference": Config(
        taps=("motion", "decoder1.spatial_conv", "decoder1.temporal_conv"),
        loss="pairwise_cosine",
        inner_steps=10,
        lr=0.007,
        lr_end=0.004,
        align_corners=True,
        inversion_steps=999,
        prompt_prefix="Amazing quality, masterpiece, ",
        negative_prompt=(
            "bad quality, distortions, unrealistic, distorted image, watermark, signature"
        ),
    ),
}

_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pairwise": losses.pairwise_difference,
    "pairwise_cosine": losses.pairwise_cosine,
    "absolute": losses.squared_error,
}
# The settings that change what is learned.
_LEARNED = ("taps", "feature", "cells", "guided", "inversion_steps", "prompt_prefix")


@final
class Method(MotionMethod[Config]):
    """Learn once per clip, transfer for many prompts."""

    name = "dmt"
    takes_windows = True

    @property
    def roles(self) -> tuple[str, ...]:
        return self.config.taps

    def format_prompts(self, prompt: str, negative_prompt: str) -> tuple[str, str]:
        config = self.config
        return config.prompt_prefix + prompt, negative_prompt or config.negative_prompt

    def cache_key_settings(self) -> Mapping[str, Any]:
        return latent_guidance.json_settings(self.config, _LEARNED)

    @job
    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Motion]:
        """DDIM inversion at guidance scale 1. The motion holds x_T as "noise" and, for each tap,
        its features at the guided levels, (L, F, C·cells²) or (L, F, H, W, C)."""
        trace = yield from latent_guidance.record_inversion(
            backbone,
            video,
            self.config.prompt_prefix + prompt if prompt else "",
            sampling.steps,
            guided=latent_guidance.level_count(self.config.guided, sampling),
            steps=self.config.inversion_steps,
            taps=latent_guidance.select_taps(backbone, self.config.taps),
            keep=self._feature,
        )
        tensors = {"noise": trace.noise, **trace.features}
        times = self._times(backbone, trace.noise.shape, sampling)
        return latent_guidance.build_motion(self, backbone, tensors, prompt, sampling, times)

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample with guidance by the motion's features."""
        config = self.config
        self._check(backbone, motion, sampling)
        generator = torch.Generator().manual_seed(sampling.seed)
        inverted = motion.tensors["noise"][None].to(backbone.device)
        x = initial_noise.initial(
            config.initial_noise,
            inverted,
            generator,
            factor=config.low_pass_factor,
            align_corners=config.align_corners,
            share=config.noise_share,
        )
        prompt, negative = self.format_prompts(prompt, sampling.negative_prompt)
        history: dict[int, list[float]] = {}
        count = latent_guidance.level_count(config.guided, sampling)
        taps = latent_guidance.select_taps(backbone, config.taps)
        change = latent_guidance.change_in_windows(
            backbone,
            motion,
            taps if count else (),
            lambda part: self._change(backbone, part, prompt, count),
        )
        latents = yield from latent_guidance.sample_with_events(
            backbone,
            backbone.cfg_denoiser(prompt, negative, sampling.guidance_scale),
            x,
            sampling,
            edit=latent_guidance.edit_first_levels(count, sampling.steps, change, history),
            history=history,
            restart=config.restart,
            generator=generator,
        )
        return latents

    def _change(
        self, backbone: Backbone, motion: Motion, prompt: str, count: int
    ) -> latent_guidance.Change:
        """The inner optimisation of one of `count` guided levels.

        The features of x_t are taken under the target prompt, without classifier-free guidance.
        """
        config, taps = self.config, latent_guidance.select_taps(backbone, self.config.taps)
        plain = backbone.denoiser(backbone.encode_text([prompt]))
        distance = _LOSSES[config.loss]

        def change(x: Tensor, t: Tensor, index: int) -> tuple[Tensor, list[float]]:
            # One level's at a time: those of every position and level would fill the device.
            target = {tap.path: motion.tensors[tap.path][index].to(x.device) for tap in taps}

            def loss(x: Tensor) -> Tensor:
                seen = latent_guidance.read_features(backbone, plain, taps, x, t)
                terms = [
                    distance(_flat(self._feature(seen[path])), _flat(wanted[None]))
                    for path, wanted in target.items()
                ]
                return torch.stack(terms).mean()

            lr = latent_guidance.interpolate_rate(config.lr, config.lr_end, index, count)
            return minimize(loss, x, [lr] * config.inner_steps)

        return change

    def _feature(self, features: Tensor) -> Tensor:
        features = features.float()
        if self.config.feature == "full":
            return features
        return losses.spatial_marginal_mean(features, self.config.cells)

    def _times(self, backbone: Backbone, shape: Sequence[int], sampling: Sampling) -> list[float]:
        """The noisiest level and the guided ones: those at which a motion was taken."""
        count = max(1, latent_guidance.level_count(self.config.guided, sampling))
        return latent_guidance.first_times(backbone, shape, sampling, count)

    def _check(self, backbone: Backbone, motion: Motion, sampling: Sampling) -> None:
        """Raise `BadMotion` for a motion of other weights, levels or features.

        One with more taps than are asked for will do, and so will any prefix of its own prompt.
        """
        motion.check_made_for(backbone, self.name)
        asked = {"steps": sampling.steps, **self.cache_key_settings()}
        del asked["prompt_prefix"]
        latent_guidance.check_settings(motion, asked)
        count = latent_guidance.level_count(self.config.guided, sampling)
        taps = latent_guidance.select_taps(backbone, self.config.taps) if count else ()
        motion.check_holds("noise", *(tap.path for tap in taps))
        times = self._times(backbone, motion.tensors["noise"].shape, sampling)
        latent_guidance.check_times(motion, backbone, times)


def _flat(features: Tensor) -> Tensor:
    """(B, F, H, W, C) as (B, F, H·W·C), so that one loss serves both kinds of feature."""
    return features.flatten(2)
