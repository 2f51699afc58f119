"""Noise levels: x_t = alpha(t)·x0 + sigma(t)·eps, for every model there is.

Owns the two functions alpha and sigma, the way from a network's raw output to the pair
(x0, eps), and the grids of times that samplers walk. Knows no network and no sampler. All of it
is computed in float32 or better.

Time runs as the model was trained to read it: 0 … 999 for DDPM-type models, 0 … 1 for flows. The
level before the first is clean: alpha = 1, sigma = 0.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, final, get_args

import numpy as np
import torch
from torch import Tensor

from recast.errors import BadCall, BadModel

Prediction = Literal["epsilon", "v_prediction", "flow"]
Spacing = Literal["leading", "trailing", "linspace"]


class Denoised(NamedTuple):
    """Both estimates of one evaluation, each shaped as x_t: (B, C, F, H, W), float32."""

    x0: Tensor
    eps: Tensor


# (x_t, t) -> both estimates; prompt and adapters are already bound.
Denoiser = Callable[[Tensor, Tensor], Denoised]


class Schedule(ABC):
    """Alpha and sigma over time, and what the network's raw output means."""

    prediction: Prediction
    clean: float
    """The time of the clean level."""
    length: float
    """How far its times reach: the number of levels, or 1."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The share of signal at times t (any shape), float64."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The share of noise at times t (any shape), float64."""

    def sized(self, shape: Sequence[int]) -> "Schedule":
        """The schedule for latents of shape (…, F, H, W): itself, unless its grids depend on it."""
        return self

    @abstractmethod
    def grid(self, steps: int) -> Tensor:
        """The times (steps + 1,) that a sampler walks, noisiest first, clean last, float64."""

    @abstractmethod
    def refine(self, grid: Tensor, steps: int) -> Tensor:
        """A grid of about `steps` steps that contains every time of `grid`."""

    @abstractmethod
    def network_time(self, t: Tensor) -> Tensor:
        """The time as the network takes it; the clean level is read as the first noisy one."""

    def denoised(self, output: Tensor, x: Tensor, t: Tensor) -> Denoised:
        """Both estimates from the raw output at x_t. From v and flow without a division."""
        alpha, sigma = (per_sample(level, x) for level in (self.alpha(t), self.sigma(t)))
        out, x = output.to(torch.float32), x.to(torch.float32)
        if self.prediction == "epsilon":
            return Denoised((x - sigma * out) / alpha, out)
        if self.prediction == "v_prediction":
            return Denoised(alpha * x - sigma * out, sigma * x + alpha * out)
        return Denoised(x - sigma * out, x + alpha * out)

    def output(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The raw output that says x0 and eps at times t: what the network was trained to give."""
        if self.prediction == "epsilon":
            return eps
        if self.prediction == "v_prediction":
            return per_sample(self.alpha(t), x0) * eps - per_sample(self.sigma(t), x0) * x0
        return eps - x0

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t of a clean x0 and its noise."""
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
        """`sampled`: so many levels, from the least noisy on, are walked by grids; None is all."""
        table = alphas_cumprod.to(torch.float64)
        if prediction == "epsilon" and float(table[-1]) <= 0:
            raise BadModel(
                "the schedule has no signal at its last level, where a noise prediction says "
                "nothing of the clip; such a schedule needs v_prediction"
            )
        self.prediction: Prediction = prediction
        # Entry 0 is the clean level, so that time t stands at entry t + 1. Models that were not
        # trained to end clean end at their first level (diffusers' set_alpha_to_one = False).
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
            # With as many steps as levels the offset would lead past the last one.
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
        place = (t.to(torch.float64) + 1).clamp(0, len(self._table) - 1)
        low = place.floor().long()
        high = place.ceil().long()
        return torch.lerp(
            self._table.to(t.device)[low], self._table.to(t.device)[high], place - low
        )


@final
class Flow(Schedule):
    """Straight lines between clip and noise: alpha = 1 - t, sigma = t.

    `shift` moves the grid toward noise, as models for large clips want it:
    t' = shift·t / (1 + (shift - 1)·t). The network reads times of 0 … `scale`. A shift may grow
    with the number of places in the latents; such a schedule has grids once it is `sized`.
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
        """`last`: grids are stretched so that this is their last noisy time; None is none."""
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
                "the noise levels of this model depend on the clip's size; take those of "
                "schedule.sized(latents.shape)"
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
    sin(πt/2). No released model uses it; the order of steps is measured on it."""

    clean, length = 0.0, 1.0

    def __init__(self, *, prediction: Literal["epsilon", "v_prediction"] = "v_prediction") -> None:
        self.prediction: Prediction = prediction

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t.to(torch.float64) * torch.pi / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t.to(torch.float64) * torch.pi / 2)

    def grid(self, steps: int) -> Tensor:
        _check_steps(steps, 10_000)
        # A noise prediction says nothing where there is no signal, so it starts a little later.
        noisiest = 0.99 if self.prediction == "epsilon" else 1.0
        return torch.linspace(noisiest, 0, steps + 1, dtype=torch.float64)

    def refine(self, grid: Tensor, steps: int) -> Tensor:
        return _subdivided(grid, max(1, round(steps / (len(grid) - 1))))

    def network_time(self, t: Tensor) -> Tensor:
        return t.to(torch.float32)


def from_diffusers(config: Mapping[str, Any]) -> Schedule:
    """The schedule of a diffusers scheduler's config, `scheduler_config.json`.

    Raises `BadModel` for what the config asks and this house does not have.
    """
    if config.get("use_flow_sigmas") or ("shift" in config and "beta_schedule" not in config):
        return _flow(config)
    if "num_train_timesteps" not in config or "beta_schedule" not in config:
        raise BadModel("the scheduler's config names no num_train_timesteps and beta_schedule")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise BadModel(f"prediction_type {prediction!r}; epsilon and v_prediction are supported")
    spacing = config.get("timestep_spacing", "leading")
    if spacing not in get_args(Spacing):
        raise BadModel(
            f"timestep_spacing {spacing!r}; {', '.join(get_args(Spacing))} are supported"
        )
    table = torch.cumprod(1 - _betas(config), 0)
    # CogVideoX divides the signal-to-noise ratio of every level by this.
    shift = config.get("snr_shift_scale", 1.0)
    table = table / (shift + (1 - shift) * table)
    if config.get("rescale_betas_zero_snr", False):
        table = _without_terminal_signal(table)
    return Discrete(
        table,
        prediction=prediction,
        spacing=spacing,
        offset=config.get("steps_offset", 0),
        ends_clean=config.get("set_alpha_to_one", True),
        # A cosine schedule's last levels hold so little signal that a noise prediction there is
        # divided by nearly nothing; such configs say from which log(alpha/sigma) on to sample.
        sampled=int((_log_ratio(table) >= config.get("lambda_min_clipped", -math.inf)).sum()),
    )


def _flow(config: Mapping[str, Any]) -> Flow:
    """Of diffusers' solvers told to follow flows (UniPC, DPM++), or of its Euler for flows. Their
    own grids stop a thousandth short of where these would have the next step; these do not."""
    prediction = config.get("prediction_type", "flow_prediction")
    if prediction != "flow_prediction":
        raise BadModel(f"prediction_type {prediction!r}; flows need flow_prediction")
    shift = config.get("flow_shift" if config.get("use_flow_sigmas") else "shift", 1.0)
    return Flow(
        shift=_growing_shift(config) if config.get("use_dynamic_shifting") else shift,
        scale=float(config.get("num_train_timesteps", 1000)),
        last=config.get("shift_terminal"),
    )


def _growing_shift(config: Mapping[str, Any]) -> Callable[[int], float]:
    """e^μ, where μ is linear in the number of places: `base_shift` at `base_image_seq_len` of them,
    `max_shift` at `max_image_seq_len`, and on from there."""
    kind = config.get("time_shift_type", "exponential")
    if kind != "exponential":
        raise BadModel(f"time_shift_type {kind!r}; a shift that grows is exponential")
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    slope = (high - low) / (many - few)
    return lambda places: math.exp(low + slope * (places - few))


def _betas(config: Mapping[str, Any]) -> Tensor:
    kind, total = config["beta_schedule"], config["num_train_timesteps"]
    if config.get("trained_betas") is not None:
        raise BadModel(
            "the scheduler's config has trained_betas; only a beta_schedule is supported"
        )
    low, high = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    # In float32, as diffusers computes them and as the models were trained.
    if kind == "linear":
        return torch.linspace(low, high, total, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(low**0.5, high**0.5, total, dtype=torch.float32) ** 2
    if kind == "squaredcos_cap_v2":
        # Nichol & Dhariwal 2021, eq. 17: a squared cosine, with betas of at most 0.999.
        t = torch.linspace(0, 1, total + 1, dtype=torch.float64)
        cumulative = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
        return (1 - cumulative[1:] / cumulative[:-1]).clamp_max(0.999).to(torch.float32)
    known = "linear, scaled_linear and squaredcos_cap_v2"
    raise BadModel(f"beta_schedule {kind!r}; {known} are supported")


def _log_ratio(table: Tensor) -> Tensor:
    """log(alpha / sigma) of cumulative alphas."""
    return (table / (1 - table)).log() / 2


def _without_terminal_signal(table: Tensor) -> Tensor:
    """Shift and stretch √ᾱ so that it ends at zero (Lin et al. 2024, algorithm 1)."""
    root = table.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * first / (first - last)) ** 2


def _subdivided(grid: Tensor, pieces: int) -> Tensor:
    share = torch.arange(pieces, dtype=grid.dtype) / pieces
    inner = grid[:-1, None] + share * (grid[1:, None] - grid[:-1, None])
    return torch.cat([inner.flatten(), grid[-1:]])


def _check_steps(steps: int, most: int) -> None:
    if not 1 <= steps <= most:
        raise BadCall(f"{steps} steps; this schedule has 1 to {most}")


def per_sample(level: Tensor, x: Tensor) -> Tensor:
    """Levels () or (B,) as float32 that multiply x (B, C, F, H, W)."""
    level = level.to(device=x.device, dtype=torch.float32)
    return level.reshape(-1, *[1] * (x.ndim - 1)) if level.ndim else level
