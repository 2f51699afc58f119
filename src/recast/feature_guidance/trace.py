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
    all windows."""


def record_inversion(
    backbone: Backbone,
    video: Tensor,
    prompt: str,
    sampling_steps: int,
    *,
    guided_steps: int,
    inversion_steps: int,
    taps: Sequence[Tap] = (),
    reduce: Callable[[Tensor], Tensor] = lambda features: features,
) -> Generator[Event, None, Trace]:
    """Invert video (1, 3, F, H, W) at guidance scale 1 in approximately `inversion_steps` steps of
    the backbone's kind.

    x_t and the features at `taps` are recorded at the noisiest `guided_steps` levels of a sampler
    with `sampling_steps`. `reduce` maps the features (1, F, H, W, C) of one level to what is
    recorded, (1, F, …). Raises `NotFinite`.
    """
    x = backbone.encode(video)
    kind, schedule = backbone.inversion, backbone.schedule.sized(x.shape)
    grid = schedule.grid(sampling_steps)
    plain = backbone.denoiser(backbone.encode_text([prompt]))
    recorder = _Recorder(backbone, plain, {float(t) for t in grid[:guided_steps]}, taps, reduce)
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
        times: set[float],
        taps: Sequence[Tap],
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        self._backbone, self._plain, self._times = backbone, plain, times
        self._taps, self._reduce = taps, reduce
        self._latents: list[Tensor] = []
        self._features: dict[str, list[Tensor]] = {tap.path: [] for tap in taps}

    def denoise(self, x: Tensor, t: Tensor) -> Denoised:
        """Both estimates at x_t (1, C, F, H, W)."""
        if float(t) not in self._times:
            return self._plain(x, t)
        self._latents.append(x[0].cpu())
        windows = self._backbone.windows(x.shape[2])
        estimates, features = [], []
        for window in windows:
            part = x[:, :, window]
            with record(self._backbone.network, self._taps, part.shape[2]) as window_features:
                estimates.append(self._plain(part, t))
            features.append(window_features)
        self._store(features)
        return Denoised(*(blend(parts, windows) for parts in zip(*estimates, strict=True)))

    def read(self, x: Tensor, t: Tensor) -> None:
        """Record a level at which the inversion needs no estimate."""
        self._latents.append(x[0].cpu())
        if self._taps:
            self._store(
                [
                    read_features(self._backbone, self._plain, self._taps, x[:, :, window], t)
                    for window in self._backbone.windows(x.shape[2])
                ]
            )

    def trace(self, noise: Tensor) -> Trace:
        """The trace. The inversion goes from clean to noisy, so its levels are reversed."""
        return Trace(
            noise=noise[0].cpu(),
            latents=torch.stack(self._latents[::-1]) if self._latents else noise[:0].cpu(),
            features={path: torch.stack(f[::-1]) for path, f in self._features.items() if f},
        )

    def _store(self, windows: Sequence[Mapping[str, Tensor]]) -> None:
        for path, levels in self._features.items():
            levels.append(torch.cat([self._reduce(window[path])[0].cpu() for window in windows]))
