"""Noise schedules: x_t = alpha(t)·x0 + sigma(t)·eps, for every kind of model.

Owns the functions alpha and sigma, the conversion of a network's raw output into the pair
(x0, eps), and the grids of times that samplers walk. Knows no network, no sampler and no file
format. All of it is computed in float32 or better.

Times are those that the model was trained with: 0 … 999 for DDPM-type models, 0 … 1 for flows. The
clean level lies below the first noisy one: alpha = 1, sigma = 0.
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
    """The clean and the noise estimate of one evaluation, each shaped as x_t: (B, C, F, H, W),
    float32."""

    x0: Tensor
    eps: Tensor


# (x_t, t) -> both estimates; the prompt and the adapters are already bound.
Denoiser = Callable[[Tensor, Tensor], Denoised]


class Schedule(ABC):
    """Alpha and sigma over time, and the meaning of the network's raw output."""

    prediction: Prediction
    clean: float
    """The time of the clean level."""
    length: float
    """The largest time: the number of levels, or 1."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The share of signal at times t (any shape), float64."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The share of noise at times t (any shape), float64."""

    def sized(self, shape: Sequence[int]) -> "Schedule":
        """The schedule for latents of shape (…, F, H, W). This is the schedule itself, unless its
        grids depend on the size."""
        return self

    @abstractmethod
    def grid(self, steps: int) -> Tensor:
        """The times (steps + 1,) that a sampler walks, noisiest first, clean last, float64."""

    @abstractmethod
    def refine(self, grid: Tensor, steps: int) -> Tensor:
        """A grid of about `steps` steps that contains every time of `grid`."""

    @abstractmethod
    def network_time(self, t: Tensor) -> Tensor:
        """The time as the network takes it. The clean level becomes the first noisy one."""

    def denoised(self, output: Tensor, x: Tensor, t: Tensor) -> Denoised:
        """Both estimates from the raw output at x_t. Predictions of v and flow need no division."""
        alpha, sigma = (per_sample(level, x) for level in (self.alpha(t), self.sigma(t)))
        out, x = output.to(torch.float32), x.to(torch.float32)
        if self.prediction == "epsilon":
            return Denoised((x - sigma * out) / alpha, out)
        if self.prediction == "v_prediction":
            return Denoised(alpha * x - sigma * out, sigma * x + alpha * out)
        return Denoised(x - sigma * out, x + alpha * out)

    def output(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The training target: the raw output that stands for x0 and eps at times t."""
        if self.prediction == "epsilon":
            return eps
        if self.prediction == "v_prediction":
            return per_sample(self.alpha(t), x0) * eps - per_sample(self.sigma(t), x0) * x0
        return eps - x0

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t of a clean x0 and its noise eps."""
        return per_sample(self.alpha(t), x0) * x0 + per_sample(self.sigma(t), x0) * eps


@final
class Discrete(Schedule):
    """DDPM-type levels from a table of cumulative alphas, index 0 the least noisy (T values)."""

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
        """`sampled` is the number of levels, from the least noisy one, that grids cover; None means
        all. Raises `BadModel` for a noise prediction whose last level has no signal."""
        table = alphas_cumprod.to(torch.float64)
        if prediction == "epsilon" and float(table[-1]) <= 0:
            raise BadModel(
                "the noise schedule has no signal at its last level, so a noise prediction there "
                "does not determine the clip; such a schedule needs v_prediction"
            )
        self.prediction: Prediction = prediction
        # Entry 0 is the clean level, so time t is at entry t + 1. Models that were not trained to
        # end at a clean level end at their first level (diffusers' set_alpha_to_one = False).
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
            # With as many steps as levels the offset would lead past the last level.
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

    def network_time(self, t: Tensor) -> Tensor:
        return t.clamp_min(0).round().to(torch.int64)

    def _cumulative(self, t: Tensor) -> Tensor:
        """The cumulative alphas at times t, interpolated linearly between levels."""
        position = (t.to(torch.float64) + 1).clamp(0, len(self._table) - 1)
        low = position.floor().long()
        high = position.ceil().long()
        return torch.lerp(
            self._table.to(t.device)[low], self._table.to(t.device)[high], position - low
        )


@final
class Flow(Schedule):
    """Straight lines between clip and noise: alpha = 1 - t, sigma = t.

    `shift` moves the grid towards noise, which models for large clips need:
    t' = shift·t / (1 + (shift - 1)·t). The network takes times of 0 … `scale`. A shift may be a
    function of the number of positions in the latents; such a schedule has grids only after
    `sized`.
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
        """`last` is the last noisy time of every grid, to which grids are stretched; None means
        that they are not stretched."""
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
    """The variance-preserving quarter circle in continuous time: alpha = cos(πt/2), sigma =
    sin(πt/2). No released model uses it. Tests measure the order of convergence on it."""

    clean, length = 0.0, 1.0

    def __init__(self, *, prediction: Literal["epsilon", "v_prediction"] = "v_prediction") -> None:
        self.prediction: Prediction = prediction

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t.to(torch.float64) * torch.pi / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t.to(torch.float64) * torch.pi / 2)

    def grid(self, steps: int) -> Tensor:
        _check_steps(steps, 10_000)
        # A noise prediction does not determine x0 where there is no signal, so the grid starts a
        # little later.
        noisiest = 0.99 if self.prediction == "epsilon" else 1.0
        return torch.linspace(noisiest, 0, steps + 1, dtype=torch.float64)

    def refine(self, grid: Tensor, steps: int) -> Tensor:
        return _subdivided(grid, max(1, round(steps / (len(grid) - 1))))

    def network_time(self, t: Tensor) -> Tensor:
        return t.to(torch.float32)


def _subdivided(grid: Tensor, pieces: int) -> Tensor:
    """The grid with every interval cut into equal pieces."""
    share = torch.arange(pieces, dtype=grid.dtype) / pieces
    inner = grid[:-1, None] + share * (grid[1:, None] - grid[:-1, None])
    return torch.cat([inner.flatten(), grid[-1:]])


def _check_steps(steps: int, most: int) -> None:
    if not 1 <= steps <= most:
        raise BadCall(f"`steps` must be 1 to {most} for this model, got {steps}")


def per_sample(level: Tensor, x: Tensor) -> Tensor:
    """Alpha or sigma, () or (B,), as float32 in a shape that multiplies x (B, C, F, H, W)."""
    level = level.to(device=x.device, dtype=torch.float32)
    return level.reshape(-1, *[1] * (x.ndim - 1)) if level.ndim else level
