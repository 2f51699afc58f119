"""What Show-1 does after its keyframes: frames between them, then four times the size.

Zhang et al., IJCV 2024; order, windows and numbers are those of `run_inference.py` in its released
code. Every stage is sampled by the library's own DDIM with the dynamic thresholding that its
scheduler's config asks for, where the released code takes DPM-Solver++. Knows no files; the
backbone lends the call of a network.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import interpolate

from recast.diffusion.cfg import cfg, thresholded
from recast.diffusion.noise_schedule import Denoised, Denoiser, Schedule
from recast.diffusion.sampling import randn, sample
from recast.diffusion.scheduler_config import from_diffusers
from recast.events import Event, Step

Name = Literal["interpolation", "sr1", "sr1_image"]
# (network, x, t as the network reads it, text, noise level or None) -> raw output, float32
Call = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None], Tensor]

BETWEEN = 4
"""Steps from one keyframe to the next after interpolation."""
LARGER = 4
"""How many times as high and wide the first super-resolution makes a frame."""
_WINDOW = 8
"""Frames that are enlarged at once; the first of them is the last of the window before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """How a stage is run."""

    steps: int
    guidance_scale: float
    channels: int
    """Of the network's input: the noisy frames' three, and those of what is given."""
    level: int | None = None
    """The noise level, in the schedule's steps, to which what is to be enlarged is noised."""


NUMBERS: Mapping[Name, Numbers] = {
    "interpolation": Numbers(steps=75, guidance_scale=4.0, channels=7),
    "sr1": Numbers(steps=125, guidance_scale=7.0, channels=6, level=250),
    "sr1_image": Numbers(steps=70, guidance_scale=4.0, channels=6, level=150),
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stage:
    """One network of the cascade with its tables."""

    numbers: Numbers
    unet: nn.Module
    scheduler: Mapping[str, Any]
    noising: Mapping[str, Any] | None = None
    """The schedule of the noise in what is to be enlarged."""

    def denoiser(self, call: Call, pair: Tensor, given: Tensor) -> Denoiser:
        """Guided from the first to the second text of `pair`, beside frames that are given."""
        schedule, level = from_diffusers(self.scheduler), self.numbers.level

        def denoise(x: Tensor, t: Tensor) -> Denoised:
            beside = torch.cat([x, given.expand(len(x), -1, -1, -1, -1)], 1)
            labels = None if level is None else torch.full((len(x),), level)
            output = call(self.unet, beside, schedule.network_time(t), pair, labels)
            return schedule.denoised(output[:, : x.shape[1]], x, t)

        guided = cfg(denoise, self.numbers.guidance_scale)
        if not self.scheduler.get("thresholding", False):
            return guided
        share = self.scheduler.get("dynamic_thresholding_ratio", 0.995)  # diffusers' defaults
        return thresholded(guided, schedule, share, self.scheduler.get("sample_max_value", 1.0))

    def noised(self, video: Tensor, generator: torch.Generator) -> Tensor:
        """What is to be enlarged, at the stage's noise level."""
        assert self.noising is not None
        assert self.numbers.level is not None
        schedule: Schedule = from_diffusers(self.noising)
        noise = randn(tuple(video.shape), generator, video.device)
        return schedule.noised(video, noise, torch.tensor(float(self.numbers.level)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cascade:
    """The stages that are there, for one prompt and seed. Clips are (1, 3, F, H, W) in [-1, 1]."""

    stages: Mapping[Name, Stage]
    pair: Tensor
    """The empty text and the prompt, encoded."""
    seed: int
    call: Call

    def finished(self, video: Tensor) -> Generator[Event, None, Tensor]:
        """Keyframes through every stage there is."""
        if "interpolation" in self.stages:
            video = yield from self.interpolated(video)
        if "sr1" in self.stages:
            video = yield from self.enlarged(video)
        return video

    def interpolated(self, keyframes: Tensor) -> Generator[Event, None, Tensor]:
        """Three frames between every two, so that F become 4·(F − 1) + 1."""
        stage, count, made = self.stages["interpolation"], keyframes.shape[2] - 1, []
        shape = (*keyframes.shape[:2], BETWEEN + 1, *keyframes.shape[3:])
        noise = randn(shape, self._generator(), keyframes.device)  # the same in every gap
        for index in range(count):
            ends = keyframes[:, :, [index, index + 1]]
            between = interpolate(ends, shape[2:], mode="trilinear", align_corners=True)
            known = torch.zeros_like(between[:, :1])
            known[:, :, [0, -1]] = 1
            given = torch.cat([between, known], 1)
            told = Step(stage="interpolate", index=index, total=count)
            made.append((yield from self._sampled(stage, given, noise, told)))
        last = made[-1] if made else keyframes
        return torch.cat([*(window[:, :, :BETWEEN] for window in made), last[:, :, -1:]], 2)

    def enlarged(self, small: Tensor) -> Generator[Event, None, Tensor]:
        """Four times as high and wide; the very first frame by the network for images, if there is
        one, and every window beside the last frame of the one before."""
        starts, made = range(0, max(small.shape[2] - 1, 1), _WINDOW - 1), []
        known = None
        if "sr1_image" in self.stages:
            told = Step(stage="enlarge the first frame", index=0, total=1)
            known = yield from self._larger("sr1_image", small[:, :, :1], None, told)
        for index, start in enumerate(starts):
            told = Step(stage="enlarge", index=index, total=len(starts))
            window = small[:, :, start : start + _WINDOW]
            larger = yield from self._larger("sr1", window, known, told)
            made.append(larger[:, :, 1:] if index else larger)
            known = larger[:, :, -1:]
        return torch.cat(made, 2)

    def _larger(
        self, name: Name, frames: Tensor, known: Tensor | None, told: Step
    ) -> Generator[Event, None, Tensor]:
        """A window enlarged beside itself, resized and noised, but with its first frame as it is
        known."""
        stage, generator = self.stages[name], self._generator()
        size = (LARGER * frames.shape[3], LARGER * frames.shape[4])
        noise = randn((*frames.shape[:3], *size), generator, frames.device)
        images = rearrange(frames, "b c f h w -> (b f) c h w")
        images = interpolate(images, size, mode="bilinear", align_corners=True)
        resized = rearrange(images, "(b f) c h w -> b c f h w", b=len(frames))
        given = stage.noised(resized, generator)
        if known is not None:
            given = torch.cat([known, given[:, :, 1:]], 2)
        return (yield from self._sampled(stage, given, noise, told))

    def _sampled(
        self, stage: Stage, given: Tensor, noise: Tensor, told: Step
    ) -> Generator[Event, None, Tensor]:
        """Sample a window from noise; `told` says which of how many it is."""
        steps, x = stage.numbers.steps, noise
        schedule = from_diffusers(stage.scheduler)
        denoise = stage.denoiser(self.call, self.pair, given)
        for level in sample(denoise, schedule, schedule.grid(steps), x):
            x = level.x
            done = told.index * steps + level.index + 1
            yield Step(stage=told.stage, index=done, total=told.total * steps)
        return x.clamp(-1, 1)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)
