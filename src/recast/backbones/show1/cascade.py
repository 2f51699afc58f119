"""The stages of Show-1 after its keyframes: frames between them, then four times the size.

Zhang et al., IJCV 2024; order, windows and numbers are those of `run_inference.py` in its released
code. Every stage is sampled by the library's own DDIM with the dynamic thresholding that the config
of its scheduler asks for, where the released code uses DPM-Solver++. Owns the order of the stages
and the frames that each is given. It refuses to know files, devices and how a network is called:
the backbone passes that in.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import interpolate

from recast.backbones.base import Conditioning
from recast.diffusion.cfg import cfg, dynamic_thresholding
from recast.diffusion.noise_schedule import Denoised, Denoiser, Schedule
from recast.diffusion.sampling import randn, sample
from recast.diffusion.scheduler_config import from_diffusers
from recast.events import Event, Step

StageName = Literal["interpolation", "sr1", "sr1_image"]
# (network, x, t in its own unit, conditioning, noise level (B,) or None) -> raw output, float32
Call = Callable[[nn.Module, Tensor, Tensor, Conditioning, Tensor | None], Tensor]

INTERPOLATION_FACTOR = 4
"""The number of steps from one keyframe to the next after interpolation."""
UPSCALING_FACTOR = 4
"""The factor by which the first super-resolution enlarges height and width."""
_WINDOW = 8
"""The number of frames that are enlarged at once; the first is the last of the window before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSettings:
    """How a stage is run."""

    steps: int
    guidance_scale: float
    channels: int
    """Input channels of the network: three of the noisy frames, and those of the given frames."""
    level: int | None = None
    """The noise level, in steps of the schedule, to which the frames to enlarge are noised."""


STAGE_SETTINGS: Mapping[StageName, StageSettings] = {
    "interpolation": StageSettings(steps=75, guidance_scale=4.0, channels=7),
    "sr1": StageSettings(steps=125, guidance_scale=7.0, channels=6, level=250),
    "sr1_image": StageSettings(steps=70, guidance_scale=4.0, channels=6, level=150),
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stage:
    """One network of the cascade with its schedules."""

    settings: StageSettings
    unet: nn.Module
    scheduler: Mapping[str, Any]
    noising: Mapping[str, Any] | None = None
    """The config of the schedule by which the frames to enlarge are noised."""

    def denoiser(self, call: Call, conditioning: Conditioning, given: Tensor) -> Denoiser:
        """The denoiser under classifier-free guidance, for the conditioning of two prompts, the
        negative one first, and given frames (1, C, F, H, W) that the network reads beside x_t."""
        schedule, level = from_diffusers(self.scheduler), self.settings.level

        def denoise(x: Tensor, t: Tensor) -> Denoised:
            inputs = torch.cat([x, given.expand(len(x), -1, -1, -1, -1)], 1)
            levels = None if level is None else torch.full((len(x),), level)
            output = call(self.unet, inputs, schedule.network_time(t), conditioning, levels)
            return schedule.denoised(output[:, : x.shape[1]], x, t)

        guided = cfg(denoise, self.settings.guidance_scale)
        if not self.scheduler.get("thresholding", False):
            return guided
        share = self.scheduler.get("dynamic_thresholding_ratio", 0.995)  # diffusers' defaults
        return dynamic_thresholding(
            guided, schedule, share, self.scheduler.get("sample_max_value", 1.0)
        )

    def noised(self, video: Tensor, generator: torch.Generator) -> Tensor:
        """Frames to enlarge, at the noise level of the stage."""
        assert self.noising is not None
        assert self.settings.level is not None
        schedule: Schedule = from_diffusers(self.noising)
        noise = randn(tuple(video.shape), generator, video.device)
        return schedule.noised(video, noise, torch.tensor(float(self.settings.level)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cascade:
    """The stages of a model, for one prompt and seed. Clips are (1, 3, F, H, W) in [-1, 1]."""

    stages: Mapping[StageName, Stage]
    conditioning: Conditioning
    """Of the empty prompt and the prompt."""
    seed: int
    call: Call

    def run(self, video: Tensor) -> Generator[Event, None, Tensor]:
        """Take keyframes through every stage of the model."""
        if "interpolation" in self.stages:
            video = yield from self.interpolate(video)
        if "sr1" in self.stages:
            video = yield from self.enlarge(video)
        return video

    def interpolate(self, keyframes: Tensor) -> Generator[Event, None, Tensor]:
        """Three frames between every two, so that F frames become 4·(F − 1) + 1."""
        stage, count, windows = self.stages["interpolation"], keyframes.shape[2] - 1, []
        shape = (*keyframes.shape[:2], INTERPOLATION_FACTOR + 1, *keyframes.shape[3:])
        noise = randn(shape, self._generator(), keyframes.device)  # the same in every gap
        for index in range(count):
            ends = keyframes[:, :, [index, index + 1]]
            between = interpolate(ends, shape[2:], mode="trilinear", align_corners=True)
            known = torch.zeros_like(between[:, :1])
            known[:, :, [0, -1]] = 1
            given = torch.cat([between, known], 1)
            window = Step(stage="interpolate", index=index, total=count)
            windows.append((yield from self._sample(stage, given, noise, window)))
        last = windows[-1] if windows else keyframes
        return torch.cat(
            [*(window[:, :, :INTERPOLATION_FACTOR] for window in windows), last[:, :, -1:]], 2
        )

    def enlarge(self, small: Tensor) -> Generator[Event, None, Tensor]:
        """Four times the height and width. The network for images enlarges the very first frame, if
        the model has one; every window begins with the last frame of the window before."""
        starts, windows = range(0, max(small.shape[2] - 1, 1), _WINDOW - 1), []
        known = None
        if "sr1_image" in self.stages:
            window = Step(stage="enlarge the first frame", index=0, total=1)
            known = yield from self._enlarge_window("sr1_image", small[:, :, :1], None, window)
        for index, start in enumerate(starts):
            window = Step(stage="enlarge", index=index, total=len(starts))
            frames = small[:, :, start : start + _WINDOW]
            larger = yield from self._enlarge_window("sr1", frames, known, window)
            windows.append(larger[:, :, 1:] if index else larger)
            known = larger[:, :, -1:]
        return torch.cat(windows, 2)

    def _enlarge_window(
        self, name: StageName, frames: Tensor, known: Tensor | None, window: Step
    ) -> Generator[Event, None, Tensor]:
        """Enlarge a window, given its own frames resized and noised, but the first one as `known`,
        which is already large."""
        stage, generator = self.stages[name], self._generator()
        size = (UPSCALING_FACTOR * frames.shape[3], UPSCALING_FACTOR * frames.shape[4])
        noise = randn((*frames.shape[:3], *size), generator, frames.device)
        images = rearrange(frames, "b c f h w -> (b f) c h w")
        images = interpolate(images, size, mode="bilinear", align_corners=True)
        resized = rearrange(images, "(b f) c h w -> b c f h w", b=len(frames))
        given = stage.noised(resized, generator)
        if known is not None:
            given = torch.cat([known, given[:, :, 1:]], 2)
        return (yield from self._sample(stage, given, noise, window))

    def _sample(
        self, stage: Stage, given: Tensor, noise: Tensor, window: Step
    ) -> Generator[Event, None, Tensor]:
        """Sample one window from noise; `window.index` counts from 0."""
        steps, x = stage.settings.steps, noise
        schedule = from_diffusers(stage.scheduler)
        denoise = stage.denoiser(self.call, self.conditioning, given)
        for level in sample(denoise, schedule, schedule.grid(steps), x):
            x = level.x
            done = window.index * steps + level.index + 1
            yield Step(stage=window.stage, index=done, total=window.total * steps)
        return x.clamp(-1, 1)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)
