"""The stages of Show-1 after its keyframes: interpolation of frames, then super-resolution.

Zhang et al., IJCV 2024. The order of the stages, the windows and the numbers are those of
`run_inference.py` in the released code. Each stage is sampled by this library's DDIM, with dynamic
thresholding if the config of its scheduler names it; the released code uses DPM-Solver++. Owns the
order of the stages and the frames on which each stage is conditioned. It refuses to know files and
devices. The backbone gives it the function that calls a network.
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
# (network, x, t in the network's unit, conditioning, noise level (B,) or None) -> raw output
Call = Callable[[nn.Module, Tensor, Tensor, Conditioning, Tensor | None], Tensor]

INTERPOLATION_FACTOR = 4
"""The factor by which interpolation increases the frame rate."""
UPSCALING_FACTOR = 4
"""The factor by which the first super-resolution increases height and width."""
_WINDOW = 8
"""The number of frames that the super-resolution enlarges at once. Neighbouring windows have one
frame in common."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSettings:
    """How a stage is run."""

    steps: int
    guidance_scale: float
    channels: int
    """Input channels of the network: three for x_t, and those of the conditioning frames."""
    level: int | None = None
    """The noise level, as an index of the schedule, to which a super-resolution noises its
    conditioning frames."""


STAGE_SETTINGS: Mapping[StageName, StageSettings] = {
    "interpolation": StageSettings(steps=75, guidance_scale=4.0, channels=7),
    "sr1": StageSettings(steps=125, guidance_scale=7.0, channels=6, level=250),
    "sr1_image": StageSettings(steps=70, guidance_scale=4.0, channels=6, level=150),
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stage:
    """One network of the cascade with its settings and schedules."""

    settings: StageSettings
    unet: nn.Module
    scheduler: Mapping[str, Any]
    noising: Mapping[str, Any] | None = None
    """The config of the schedule with which a super-resolution noises its conditioning frames."""

    def denoiser(self, call: Call, conditioning: Conditioning, frames: Tensor) -> Denoiser:
        """The denoiser with classifier-free guidance. `conditioning` is that of two prompts, the
        negative one first. `frames` (1, C, F, H, W) are the conditioning frames, which the network
        gets as additional channels of x_t."""
        schedule, level = from_diffusers(self.scheduler), self.settings.level

        def denoise(x: Tensor, t: Tensor) -> Denoised:
            inputs = torch.cat([x, frames.expand(len(x), -1, -1, -1, -1)], 1)
            levels = None if level is None else torch.full((len(x),), level)
            output = call(self.unet, inputs, schedule.network_time(t), conditioning, levels)
            return schedule.denoised(output[:, : x.shape[1]], x, t)

        with_cfg = cfg(denoise, self.settings.guidance_scale)
        if not self.scheduler.get("thresholding", False):
            return with_cfg
        quantile = self.scheduler.get("dynamic_thresholding_ratio", 0.995)  # diffusers' defaults
        return dynamic_thresholding(
            with_cfg, schedule, quantile, self.scheduler.get("sample_max_value", 1.0)
        )

    def noised(self, video: Tensor, generator: torch.Generator) -> Tensor:
        """Conditioning frames (1, 3, F, H, W) of a super-resolution, at the stage's noise level."""
        assert self.noising is not None
        assert self.settings.level is not None
        schedule: Schedule = from_diffusers(self.noising)
        noise = randn(tuple(video.shape), generator, video.device)
        return schedule.noised(video, noise, torch.tensor(float(self.settings.level)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cascade:
    """The stages of a model, for one prompt and seed. Videos are (1, 3, F, H, W) in [-1, 1]."""

    stages: Mapping[StageName, Stage]
    conditioning: Conditioning
    """The conditioning of two prompts: the empty prompt, and the prompt."""
    seed: int
    call: Call

    def run(self, video: Tensor) -> Generator[Event, None, Tensor]:
        """Run every stage of the model on keyframes."""
        if "interpolation" in self.stages:
            video = yield from self.interpolate(video)
        if "sr1" in self.stages:
            video = yield from self.enlarge(video)
        return video

    def interpolate(self, keyframes: Tensor) -> Generator[Event, None, Tensor]:
        """Insert three frames between neighbouring keyframes: F frames become 4·(F − 1) + 1."""
        stage, count, windows = self.stages["interpolation"], keyframes.shape[2] - 1, []
        shape = (*keyframes.shape[:2], INTERPOLATION_FACTOR + 1, *keyframes.shape[3:])
        noise = randn(shape, self._generator(), keyframes.device)  # the same in every window
        for index in range(count):
            ends = keyframes[:, :, [index, index + 1]]
            resized = interpolate(ends, shape[2:], mode="trilinear", align_corners=True)
            is_keyframe = torch.zeros_like(resized[:, :1])
            is_keyframe[:, :, [0, -1]] = 1
            frames = torch.cat([resized, is_keyframe], 1)
            window = Step(stage="interpolate", index=index, total=count)
            windows.append((yield from self._sample(stage, frames, noise, window)))
        last = windows[-1] if windows else keyframes
        return torch.cat(
            [*(window[:, :, :INTERPOLATION_FACTOR] for window in windows), last[:, :, -1:]], 2
        )

    def enlarge(self, small: Tensor) -> Generator[Event, None, Tensor]:
        """Increase height and width by four. If the model has a network for images, it enlarges the
        first frame. The first frame of every later window is the enlarged last frame of the window
        before."""
        starts, windows = range(0, max(small.shape[2] - 1, 1), _WINDOW - 1), []
        first = None
        if "sr1_image" in self.stages:
            window = Step(stage="enlarge the first frame", index=0, total=1)
            first = yield from self._enlarge_window("sr1_image", small[:, :, :1], None, window)
        for index, start in enumerate(starts):
            window = Step(stage="enlarge", index=index, total=len(starts))
            frames = small[:, :, start : start + _WINDOW]
            enlarged = yield from self._enlarge_window("sr1", frames, first, window)
            windows.append(enlarged[:, :, 1:] if index else enlarged)
            first = enlarged[:, :, -1:]
        return torch.cat(windows, 2)

    def _enlarge_window(
        self, name: StageName, frames: Tensor, first: Tensor | None, window: Step
    ) -> Generator[Event, None, Tensor]:
        """Enlarge the frames of a window. The conditioning frames are the resized and noised frames
        of the window, except that `first`, an enlarged frame, replaces the first."""
        stage, generator = self.stages[name], self._generator()
        size = (UPSCALING_FACTOR * frames.shape[3], UPSCALING_FACTOR * frames.shape[4])
        noise = randn((*frames.shape[:3], *size), generator, frames.device)
        images = rearrange(frames, "b c f h w -> (b f) c h w")
        images = interpolate(images, size, mode="bilinear", align_corners=True)
        resized = rearrange(images, "(b f) c h w -> b c f h w", b=len(frames))
        conditioning_frames = stage.noised(resized, generator)
        if first is not None:
            conditioning_frames = torch.cat([first, conditioning_frames[:, :, 1:]], 2)
        return (yield from self._sample(stage, conditioning_frames, noise, window))

    def _sample(
        self, stage: Stage, frames: Tensor, noise: Tensor, window: Step
    ) -> Generator[Event, None, Tensor]:
        """Sample one window from noise, with conditioning frames (1, C, F, H, W). `window` gives
        the stage's name for events, the index of the window from 0, and the number of windows."""
        steps, x = stage.settings.steps, noise
        schedule = from_diffusers(stage.scheduler)
        denoise = stage.denoiser(self.call, self.conditioning, frames)
        for level in sample(denoise, schedule, schedule.grid(steps), x):
            x = level.x
            done = window.index * steps + level.index + 1
            yield Step(stage=window.stage, index=done, total=window.total * steps)
        return x.clamp(-1, 1)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)
