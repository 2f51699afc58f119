"""The trace of a source: x_T, x_t and features, recorded during its inversion.

Owns the recording during the inversion. Knows no method: a method selects what is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.ddim_inversion import inversion_grid, invert
from recast.diffusion.noise_schedule import Denoised, Denoiser
from recast.diffusion.temporal_windows import blend
from recast.events import Event, Step
from recast.feature_guidance.level_stack import LevelStack
from recast.feature_guidance.levels import noised_source
from recast.feature_guidance.taps import read_features
from recast.networks.feature_hooks import Tap, record


class Trace(NamedTuple):
    """The result of an inversion: x_T and the L guided levels, the noisiest first."""

    noise: Tensor
    """x_T, (C, F, H, W)."""
    latents: Tensor
    """x_t at the guided levels, (L, C, F, H, W)."""
    features: dict[str, Tensor]
    """Tap path -> reduced features (L, F, …). If there are several windows, F counts the frames of
    all windows. Large features lie in a memory-mapped file."""


def record_inversion(
    backbone: Backbone,
    x0: Tensor,
    prompt: str,
    sampling_steps: int,
    *,
    guided_steps: int,
    inversion_steps: int,
    taps: Sequence[Tap] = (),
    reduce: Callable[[Tensor], Tensor] = lambda features: features,
    change: Callable[[Denoiser], Denoiser] = lambda denoise: denoise,
) -> Generator[Event, None, Trace]:
    """Invert latents x0 (1, C, F, H, W) at guidance scale 1 in approximately `inversion_steps`
    steps of the backbone's kind.

    x_t and the features at `taps` are recorded at the noisiest `guided_steps` levels of a sampler
    with `sampling_steps`. `reduce` maps the features (1, F, H, W, C) of one level to what is
    recorded, (1, F, …). `change` maps the denoiser of the prompt to the one that inverts, such as
    one with an adapter. Raises `NotFinite`.
    """
    x, kind, schedule = x0, backbone.inversion, backbone.schedule.sized(x0.shape)
    grid = schedule.grid(sampling_steps)
    plain = change(backbone.denoiser(backbone.encode_text([prompt])))
    recorder = _Recorder(backbone, plain, grid[:guided_steps].tolist(), taps, reduce)
    fine_grid = inversion_grid(schedule, grid, inversion_steps, kind)
    if kind == "noised":
        x = noised_source(backbone, x, fine_grid[-1])
    for level in invert(recorder.denoise, schedule, fine_grid, x, kind):
        x = level.x
        yield Step(stage="invert", index=level.index + 1, total=len(fine_grid) - 1)
    if guided_steps:  # the inversion does not evaluate the noisiest level itself
        recorder.read(x, fine_grid[0])
    return recorder.trace(x)


class _Recorder:
    """A denoiser for the inversion that also records x_t and features at the guided times."""

    def __init__(
        self,
        backbone: Backbone,
        plain: Denoiser,
        times: Sequence[float],
        taps: Sequence[Tap],
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        self._backbone, self._plain, self._taps, self._reduce = backbone, plain, taps, reduce
        self._index = {time: index for index, time in enumerate(times)}
        self._latents = LevelStack(len(times))
        self._features = {tap.path: LevelStack(len(times)) for tap in taps}

    def denoise(self, x: Tensor, t: Tensor) -> Denoised:
        """Both estimates at x_t (1, C, F, H, W)."""
        if float(t) not in self._index:
            return self._plain(x, t)
        self._latents.put(self._index[float(t)], x[0])
        windows = self._backbone.windows(x.shape[2])
        estimates, features = [], []
        for window in windows:
            part = x[:, :, window]
            with record(self._backbone.network, self._taps, part.shape[2]) as window_features:
                estimates.append(self._plain(part, t))
            features.append(window_features)
        self._store(t, features)
        return Denoised(*(blend(parts, windows) for parts in zip(*estimates, strict=True)))

    def read(self, x: Tensor, t: Tensor) -> None:
        """Record a level at which the inversion needs no estimate."""
        self._latents.put(self._index[float(t)], x[0])
        if self._taps:
            self._store(
                t,
                [
                    read_features(self._backbone, self._plain, self._taps, x[:, :, window], t)
                    for window in self._backbone.windows(x.shape[2])
                ],
            )

    def trace(self, noise: Tensor) -> Trace:
        """The trace of the levels that were recorded."""
        latents = self._latents.stacked()
        stacks = {path: levels.stacked() for path, levels in self._features.items()}
        return Trace(
            noise=noise[0].cpu(),
            latents=noise[:0].cpu() if latents is None else latents,
            features={path: stack for path, stack in stacks.items() if stack is not None},
        )

    def _store(self, t: Tensor, windows: Sequence[Mapping[str, Tensor]]) -> None:
        for path, levels in self._features.items():
            reduced = [self._reduce(window[path])[0].cpu() for window in windows]
            levels.put(self._index[float(t)], torch.cat(reduced))
