"""Noise schedules: x_t = alpha(t)·x0 + sigma(t)·eps, for every kind of model.

Owns the functions alpha and sigma, the conversion of a network's raw output into the pair
(x0, eps), and the grids of times that a sampler visits. Knows no network, no sampler and no file
format. It computes in float32 or float64.

A time t has the unit of the model's training: 0 to 999 for DDPM-type models, 0 to 1 for flow
models. The clean level, where alpha = 1 and sigma = 0, lies below the least noisy training level.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from recast.errors import BadCall, BadModel

Prediction = Literal["epsilon", "v_prediction", "flow"]
Spacing = Literal["leading", "trailing", "linspace"]


class Denoised(NamedTuple):
    """The clean estimate x0 and the noise estimate eps at x_t, each (B, C, F, H, W) in float32."""

    x0: Tensor
    eps: Tensor


# (x_t (B, C, F, H, W), scalar t) -> both estimates. The prompt and the adapters are already bound.
Denoiser = Callable[[Tensor, Tensor], Denoised]


class Schedule(ABC):
    """Alpha and sigma as functions of time, and the meaning of the network's raw output."""

    prediction: Prediction
    """What the network predicts: eps, v = alpha·eps − sigma·x0, or the velocity eps − x0."""
    clean: float
    """The time of the clean level."""
    length: float
    """The length of the time axis: the number of training levels, or 1 in continuous time."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The factor of x0 in x_t, for times t of any shape; the same shape in float64."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The factor of eps in x_t, for times t of any shape; the same shape in float64."""

    def sized(self, shape: Sequence[int]) -> "Schedule":
        """The schedule for latents of shape (…, F, H, W). The schedule returns itself unless its
        grids depend on the size of the latents."""
        return self

    def less_noisy(self, t: Tensor) -> Tensor:
        """The time of the training level that is one less noisy. In continuous time there are no
        training levels, and t is returned."""
        return t

    @abstractmethod
    def grid(self, steps: int) -> Tensor:
        """The times (steps + 1,) of a sampler in float64: the noisiest level first, the clean level
        last. Raises `BadCall` for a number of steps that the schedule does not have."""

    @abstractmethod
    def refine(self, grid: Tensor, steps: int) -> Tensor:
        """A grid of approximately `steps` steps that contains every time of `grid`."""

    @abstractmethod
    def network_time(self, t: Tensor) -> Tensor:
        """The time in the unit that the network reads. Discrete levels replace the clean level,
        for which no network was trained, by the least noisy one."""

    def denoised(self, output: Tensor, x: Tensor, t: Tensor) -> Denoised:
        """Both estimates from the raw output at x_t, (B, C, F, H, W). Only a prediction of eps
        needs a division, which is by alpha."""
        alpha, sigma = (per_sample(value, x) for value in (self.alpha(t), self.sigma(t)))
        out, x = output.to(torch.float32), x.to(torch.float32)
        if self.prediction == "epsilon":
            return Denoised((x - sigma * out) / alpha, out)
        if self.prediction == "v_prediction":
            return Denoised(alpha * x - sigma * out, sigma * x + alpha * out)
        return Denoised(x - sigma * out, x + alpha * out)

    def output(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The training target: the raw output at times t, () or (B,), that corresponds to x0 and
        eps, (B, C, F, H, W)."""
        if self.prediction == "epsilon":
            return eps
        if self.prediction == "v_prediction":
            return per_sample(self.alpha(t), x0) * eps - per_sample(self.sigma(t), x0) * x0
        return eps - x0

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t at times t, () or (B,), of a clean x0 and a noise eps, (B, C, F, H, W)."""
        return per_sample(self.alpha(t), x0) * x0 + per_sample(self.sigma(t), x0) * eps


@final
class Discrete(Schedule):
    """DDPM-type levels from a table of ᾱ (T,), whose entry 0 is the least noisy level."""

    clean = -1.0

    def __init__(
        self,
        alphas_cumprod: Tensor,
        *,
        prediction: Literal["epsilon", "v_prediction"],
        spacing: Spacing = "leading",
        offset: int = 0,
        ends_clean: bool = True,
        sampled: int | None = None,
    ) -> None:
        """`spacing` and `offset` select the times of a grid as diffusers does (timestep_spacing,
        steps_offset). With `ends_clean` the clean level has alpha = 1; without it, that level has
        the alpha of the least noisy training level. `sampled` is the number of levels that grids
        cover, counted from the least noisy one; None means all levels. Raises `BadModel` if the
        network predicts eps and the noisiest level has no signal."""
        table = alphas_cumprod.to(torch.float64)
        if prediction == "epsilon" and float(table[-1]) <= 0:
            raise BadModel(
                "the noisiest level of this schedule has no signal, so a prediction of the noise "
                "does not determine the clip there; such a schedule needs v_prediction"
            )
        self.prediction: Prediction = prediction
        # Entry 0 is the clean level, so time t is at entry t + 1. If a scheduler's config has
        # set_alpha_to_one = False, the clean level is a copy of the least noisy training level.
        first = torch.ones(1, dtype=torch.float64) if ends_clean else table[:1]
        self._table = torch.cat([first, table])
        self._spacing, self._offset = spacing, offset
        self._sampled = len(table) if sampled is None else sampled
        self.length = float(len(table))

    def alpha(self, t: Tensor) -> Tensor:
        return self._cumulative(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self._cumulative(t)).clamp_min(0).sqrt()

    def grid(self, steps: int) -> Tensor:
        total = self._sampled
        _check_steps(steps, total)
        if self._spacing == "leading":
            ratio = total // steps
            # If there are as many steps as levels, the full offset would exceed the last level.
            offset = min(self._offset, total - 1 - (steps - 1) * ratio)
            times = np.arange(steps)[::-1] * ratio + offset
        elif self._spacing == "trailing":
            times = np.round(np.arange(total, 0, -total / steps))[:steps] - 1
        else:
            times = np.round(np.linspace(0, total - 1, steps)[::-1])
        return torch.tensor([*times.tolist(), self.clean], dtype=torch.float64)

    def refine(self, grid: Tensor, steps: int) -> Tensor:
        pieces = max(1, round(steps / (len(grid) - 1)))
        return torch.unique(_subdivided(grid, pieces).round()).flip(0)

    def less_noisy(self, t: Tensor) -> Tensor:
        return (t - 1).clamp_min(self.clean)

    def network_time(self, t: Tensor) -> Tensor:
        return t.clamp_min(0).round().to(torch.int64)

    def _cumulative(self, t: Tensor) -> Tensor:
        """ᾱ at times t, interpolated linearly between levels."""
        position = (t.to(torch.float64) + 1).clamp(0, len(self._table) - 1)
        low = position.floor().long()
        high = position.ceil().long()
        return torch.lerp(
            self._table.to(t.device)[low], self._table.to(t.device)[high], position - low
        )


@final
class Flow(Schedule):
    """Flow matching on straight lines between clip and noise: alpha = 1 − t, sigma = t.

    `shift` moves the times of a grid towards noise, as models for large clips need:
    t' = shift·t / (1 + (shift − 1)·t). A shift may be a function of the number of positions in the
    latents; such a schedule has grids only after `sized`. The network reads `scale`·t.
    """

    clean, length = 0.0, 1.0
    prediction: Prediction = "flow"

    def __init__(
        self,
        *,
        shift: float | Callable[[int], float] = 1.0,
        scale: float = 1000.0,
        last: float | None = None,
    ) -> None:
        """`last` is the least noisy time of every grid before the clean level. Grids are stretched
        so that they contain it; None means no stretching."""
        self._shift, self._scale, self._last = shift, scale, last

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.to(torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        return t.to(torch.float64)

    def sized(self, shape: Sequence[int]) -> "Flow":
        if not callable(self._shift):
            return self
        return Flow(shift=self._shift(math.prod(shape[-3:])), scale=self._scale, last=self._last)

    def grid(self, steps: int) -> Tensor:
        _check_steps(steps, 10_000)
        if callable(self._shift):
            raise BadCall(
                "the noise levels of this model depend on the size of the clip; call "
                "schedule.sized(latents.shape) first"
            )
        t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        t = self._shift * t / (1 + (self._shift - 1) * t)
        if self._last is not None and steps > 1:
            t[:-1] = 1 - (1 - t[:-1]) * (1 - self._last) / (1 - t[-2])
        return t

    def refine(self, grid: Tensor, steps: int) -> Tensor:
        return _subdivided(grid, max(1, round(steps / (len(grid) - 1))))

    def network_time(self, t: Tensor) -> Tensor:
        return (t * self._scale).to(torch.float32)


@final
class Cosine(Schedule):
    """A variance-preserving schedule in continuous time: alpha = cos(πt/2), sigma = sin(πt/2).

    No released model uses it. The tests measure the sampler's order of convergence with it.
    """

    clean, length = 0.0, 1.0

    def __init__(self, *, prediction: Literal["epsilon", "v_prediction"] = "v_prediction") -> None:
        self.prediction: Prediction = prediction

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t.to(torch.float64) * torch.pi / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t.to(torch.float64) * torch.pi / 2)

    def grid(self, steps: int) -> Tensor:
        _check_steps(steps, 10_000)
        # At alpha = 0 a prediction of eps does not determine x0, so that grid starts at 0.99.
        noisiest = 0.99 if self.prediction == "epsilon" else 1.0
        return torch.linspace(noisiest, 0, steps + 1, dtype=torch.float64)

    def refine(self, grid: Tensor, steps: int) -> Tensor:
        return _subdivided(grid, max(1, round(steps / (len(grid) - 1))))

    def network_time(self, t: Tensor) -> Tensor:
        return t.to(torch.float32)


def _subdivided(grid: Tensor, pieces: int) -> Tensor:
    """The grid with every interval divided into `pieces` equal intervals."""
    fraction = torch.arange(pieces, dtype=grid.dtype) / pieces
    inner = grid[:-1, None] + fraction * (grid[1:, None] - grid[:-1, None])
    return torch.cat([inner.flatten(), grid[-1:]])


def _check_steps(steps: int, maximum: int) -> None:
    if not 1 <= steps <= maximum:
        raise BadCall(f"`steps` must be 1 to {maximum} for this model, got {steps}")


def per_sample(value: Tensor, x: Tensor) -> Tensor:
    """Alpha or sigma, () or (B,), in float32 and in a shape that multiplies x (B, C, F, H, W). A
    scalar stays on the CPU, from which it multiplies a tensor of any device without a copy."""
    value = value.to(torch.float32)
    return value.to(x.device).reshape(-1, *[1] * (x.ndim - 1)) if value.ndim else value
