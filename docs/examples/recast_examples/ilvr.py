"""ILVR: sampling under the low frequencies of a source (Choi et al., ICCV 2021).

The method takes the coarse layout of the source and leaves all details to the prompt. It needs no
feature of the network, so it runs on every backbone.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional

from recast.backbones.base import Backbone
from recast.diffusion.sampling import randn, sample
from recast.events import Event, Job, Step, job
from recast.motions.method import MotionMethod, Sampling, check_at_least, check_fraction
from recast.motions.motion import Motion


# --8<-- [start:config]
@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """How much of the source the result keeps."""

    factor: int = 2
    """How many times the low-pass filter shrinks a frame of the latents (N of the paper)."""
    share: float = 0.6
    """Share of the noise levels, from the noisiest, at which the source is imposed."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "factor")
        check_fraction(self, "share")


PRESETS = {"fine": Config(), "coarse": Config(factor=4)}
# --8<-- [end:config]


def low_pass(x: Tensor, factor: int) -> Tensor:
    """The low frequencies of each frame of x (B, C, F, H, W)."""
    height, width = x.shape[-2:]
    size = (max(1, height // factor), max(1, width // factor))
    frames = x.transpose(1, 2).flatten(0, 1)
    small = functional.interpolate(frames, size, mode="area")
    large = functional.interpolate(small, (height, width), mode="bilinear")
    return large.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


# --8<-- [start:method]
@final
class Method(MotionMethod[Config]):
    """Keeps the latents of the source, and imposes their low frequencies while it samples."""

    name = "ilvr"

    def cache_key_settings(self) -> Mapping[str, Any]:
        """No setting changes what `learn` returns."""
        return {}

    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Job[Motion]:
        """Encode the clip (1, 3, F, H, W) into latents (C, F, H, W)."""
        motion = Motion(
            method=self.name,
            backbone=backbone.fingerprint,
            tensors={"latents": backbone.encode(video)[0]},
            metadata={"backbone_name": backbone.name, "source_prompt": prompt},
        )
        return Job.finished(motion)

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample a clip, and return its latents (1, C, F, H, W)."""
        motion.check_compatible(backbone, self.name)
        motion.check_holds("latents")
        source = motion.tensors["latents"][None].to(backbone.device)
        schedule = backbone.schedule.sized(source.shape)
        generator = torch.Generator().manual_seed(sampling.seed)
        levels = round(self.config.share * sampling.steps)

        def impose(x: Tensor, t: Tensor, index: int) -> Tensor:
            if index >= levels:
                return x
            eps = randn(tuple(x.shape), generator, x.device)
            noised = schedule.noised(source, eps, t)  # alpha(t)·x0 + sigma(t)·eps
            factor = self.config.factor
            return x + low_pass(noised, factor) - low_pass(x, factor)  # eq. 8

        scale, negative = sampling.guidance_scale, sampling.negative_prompt
        denoise = backbone.cfg_denoiser(prompt, negative, scale)
        x = randn(tuple(source.shape), generator, backbone.device)
        grid = schedule.grid(sampling.steps)
        for level in sample(denoise, schedule, grid, x, edit=impose):
            x = level.x
            yield Step(stage="sample", index=level.index + 1, total=sampling.steps)
        return x


# --8<-- [end:method]
