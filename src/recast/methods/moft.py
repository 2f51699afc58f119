"""MOFT: what moves in the features, without what stays, as guidance.

Xiao, Zhou, Yang, Pan: "Video Diffusion Models are Training-free Motion Interpreter and Controller",
NeurIPS 2024. A motion feature is a feature less its mean over frames, on the few channels that
weigh most in the first principal direction. The form of the loss and its numbers are those in which
DiTFlow's authors run MOFT; the sources are read along an inversion, as MOFT's own are. Not here:
MOFT's masks and dragged points, and its attention to an unguided sample beside the guided one.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import cosine_similarity

from recast.backbones.base import Backbone
from recast.diffusion import initial_noise
from recast.diffusion.optimize import minimize
from recast.errors import BadCall
from recast.events import Event, job
from recast.feature_guidance import latent_guidance
from recast.motions.method import MotionMethod, Sampling, check_setting
from recast.motions.motion import Motion


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """MOFT's settings."""

    taps: tuple[str, ...] = ("motion",)
    """Roles whose features are matched; their losses are averaged."""
    channels: float = 0.04
    """Share of the channels that are compared: those that weigh most in the first principal
    direction."""
    guided: float = 0.2
    """Share of the levels, from the noisiest, at which x_t is optimised; 0 is no optimisation."""
    inner_steps: int = 5
    """Optimisation steps at each guided level, with a fresh Adam."""
    lr: float = 0.002
    """Adam's learning rate at the first guided level."""
    lr_end: float = 0.001
    """Adam's learning rate at the last guided level; between them it changes linearly."""
    initial_noise: initial_noise.Kind = "random"
    """What a sample starts from: random; inverted; low_frequency; blended;
    low_frequency_blended."""
    inversion_steps: int = 1
    """About how many steps the inversion takes; it stops at every sampling level."""

    def __post_init__(self) -> None:
        if not self.taps:
            raise BadCall("taps is empty; name at least one role, such as motion")
        check_setting("channels", self.channels, 0 < self.channels <= 1, "above 0 and at most 1")
        check_setting("guided", self.guided, 0 <= self.guided <= 1, "between 0 and 1")
        check_setting("inner_steps", self.inner_steps, self.inner_steps >= 1, "at least 1")
        check_setting("lr", self.lr, self.lr > 0, "above 0")
        check_setting("lr_end", self.lr_end, self.lr_end >= 0, "at least 0")
        rule = "at least 1"
        check_setting("inversion_steps", self.inversion_steps, self.inversion_steps >= 1, rule)


PRESETS = {
    "fast": Config(
        channels=0.25,
        guided=0.6,
        inner_steps=10,
        lr=0.04,
        lr_end=0.02,
        initial_noise="inverted",
    ),
    # 4 % of the channels, 5 steps at each of the first 10 of 50 levels.
    "paper": Config(),
}
_LEARNED = ("taps", "channels", "guided", "inversion_steps")


def motion_feature(features: Tensor) -> Tensor:
    """A feature (B, F, H, W, C) less its mean over frames: content correlation removed."""
    return features - features.mean(1, keepdim=True)


def motion_channels(feature: Tensor, share: float) -> Tensor:
    """The numbers of the channels that weigh most in the first principal direction of a motion
    feature (1, F, H, W, C), in rising order: `share` of them, at least one."""
    # Its mean over frames is zero at every position, so that the second moments are the covariance.
    points = rearrange(feature, "1 f h w c -> (f h w) c").double()
    direction = torch.linalg.eigh(points.mT @ points).eigenvectors[:, -1]
    count = max(1, int(share * len(direction)))
    return direction.abs().topk(count).indices.sort().values


def distance(feature: Tensor, target: Tensor) -> Tensor:
    """1 − cosine over channels, (B, F, H, W, C), the mean of all positions and frames."""
    return (1 - cosine_similarity(feature, target, dim=-1)).mean()


@final
class Method(MotionMethod[Config]):
    """Learn once per clip, transfer for many prompts."""

    name = "moft"
    takes_windows = True

    @property
    def roles(self) -> tuple[str, ...]:
        return self.config.taps

    def cache_key_settings(self) -> Mapping[str, Any]:
        return latent_guidance.json_settings(self.config, _LEARNED)

    @job
    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Motion]:
        """DDIM inversion at guidance scale 1. The motion holds x_T as "noise" and, for each tap,
        its motion feature at the guided levels, (L, F, H, W, C'), on "…/channels", (L, C')."""
        trace = yield from latent_guidance.record_inversion(
            backbone,
            video,
            prompt,
            sampling.steps,
            guided=latent_guidance.level_count(self.config.guided, sampling),
            steps=self.config.inversion_steps,
            taps=latent_guidance.select_taps(backbone, self.config.taps),
            keep=lambda features: motion_feature(features.float()),
        )
        tensors = {"noise": trace.noise}
        for path, levels in trace.features.items():
            chosen = [motion_channels(one[None], self.config.channels) for one in levels]
            tensors[f"{path}/channels"] = torch.stack(chosen)
            kept = [one[..., numbers] for one, numbers in zip(levels, chosen, strict=True)]
            tensors[path] = torch.stack(kept)
        times = self._times(backbone, trace.noise.shape, sampling)
        return latent_guidance.build_motion(self, backbone, tensors, prompt, sampling, times)

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample with guidance by the motion features."""
        self._check(backbone, motion, sampling)
        generator = torch.Generator().manual_seed(sampling.seed)
        inverted = motion.tensors["noise"][None].to(backbone.device)
        history: dict[int, list[float]] = {}
        count = latent_guidance.level_count(self.config.guided, sampling)
        taps = latent_guidance.select_taps(backbone, self.config.taps)
        change = latent_guidance.change_in_windows(
            backbone,
            motion,
            taps if count else (),
            lambda part: self._change(backbone, part, prompt, count),
        )
        latents = yield from latent_guidance.sample_with_events(
            backbone,
            backbone.cfg_denoiser(prompt, sampling.negative_prompt, sampling.guidance_scale),
            initial_noise.initial(self.config.initial_noise, inverted, generator),
            sampling,
            edit=latent_guidance.edit_first_levels(count, sampling.steps, change, history),
            history=history,
        )
        return latents

    def _change(
        self, backbone: Backbone, motion: Motion, prompt: str, count: int
    ) -> latent_guidance.Change:
        config, taps = self.config, latent_guidance.select_taps(backbone, self.config.taps)
        plain = backbone.denoiser(backbone.encode_text([prompt]))

        def change(x: Tensor, t: Tensor, index: int) -> tuple[Tensor, list[float]]:
            def of(name: str) -> Tensor:
                return motion.tensors[name][index].to(x.device)

            def loss(x: Tensor) -> Tensor:
                seen = latent_guidance.read_features(backbone, plain, taps, x, t)
                terms = [
                    distance(
                        motion_feature(seen[tap.path].float()[..., of(f"{tap.path}/channels")]),
                        of(tap.path)[None],
                    )
                    for tap in taps
                ]
                return torch.stack(terms).mean()

            lr = latent_guidance.interpolate_rate(config.lr, config.lr_end, index, count)
            return minimize(loss, x, [lr] * config.inner_steps)

        return change

    def _times(self, backbone: Backbone, shape: Sequence[int], sampling: Sampling) -> list[float]:
        """The noisiest level and the guided ones: those at which a motion was taken."""
        count = max(1, latent_guidance.level_count(self.config.guided, sampling))
        return latent_guidance.first_times(backbone, shape, sampling, count)

    def _check(self, backbone: Backbone, motion: Motion, sampling: Sampling) -> None:
        motion.check_made_for(backbone, self.name)
        latent_guidance.check_settings(
            motion, {"steps": sampling.steps, **self.cache_key_settings()}
        )
        count = latent_guidance.level_count(self.config.guided, sampling)
        taps = latent_guidance.select_taps(backbone, self.config.taps) if count else ()
        paths = [tap.path for tap in taps]
        motion.check_holds("noise", *paths, *(f"{path}/channels" for path in paths))
        times = self._times(backbone, motion.tensors["noise"].shape, sampling)
        latent_guidance.check_times(motion, backbone, times)
