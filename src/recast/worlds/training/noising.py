"""Inputs and targets of a denoiser in training, for both kinds of noise schedule.

This module owns how times and noise are drawn, and refuses to know networks and data. Papers: Ho et
al. 2020 and Salimans & Ho 2022 (diffusion, v-prediction), Lipman et al. 2023 (flow matching), Wan
Team 2025 (a clean first frame).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recast.worlds.training import networks
from recast.worlds.training.networks import Design

_LEVELS = 1000


class TrainingBatch(NamedTuple):
    """x_t and the target, both (B, C, F, h, w), and the times as the network reads them: (B,), or
    one for each token, (B, F·h·w / 4)."""

    x: Tensor
    target: Tensor
    time: Tensor


def diffusion(design: Design, x0: Tensor, rng: np.random.Generator) -> TrainingBatch:
    """x_t = √ᾱ·x0 + √(1 − ᾱ)·ε with the target v or ε. `design.high_noise` sets the distribution
    of t."""
    cumulative = networks.scheduler(design).alphas_cumprod
    t = torch.from_numpy(_LEVELS * rng.random(len(x0)) ** (1 / design.high_noise)).long()
    alpha, sigma = (
        _per_sample(table) for table in (cumulative[t].sqrt(), (1 - cumulative[t]).sqrt())
    )
    eps = _noise(x0, rng)
    if design.offset_noise:
        offset = rng.standard_normal((*x0.shape[:3], 1, 1), dtype=np.float32)
        eps = eps + design.offset_noise * torch.from_numpy(offset)
    v = alpha * eps - sigma * x0
    target = v if design.prediction == "v_prediction" else eps
    return TrainingBatch(alpha * x0 + sigma * eps, target, t)


def flow(design: Design, x0: Tensor, rng: np.random.Generator) -> TrainingBatch:
    """x_t = (1 − t)·x0 + t·ε with the target ε − x0. A uniform t is shifted to higher noise, as
    `design.shift` says."""
    u = torch.from_numpy(rng.random(len(x0), dtype=np.float32))
    t = design.shift * u / (1 + (design.shift - 1) * u)
    eps, sigma = _noise(x0, rng), _per_sample(t)
    return TrainingBatch((1 - sigma) * x0 + sigma * eps, eps - x0, _LEVELS * t)


def with_clean_first_frame(batch: TrainingBatch, x0: Tensor) -> TrainingBatch:
    """The batch of `flow` with its first frame given: x_t has the clean frame there, and the times
    of its tokens are 0, as in Wan 2.2 TI2V-5B. A loss must leave this frame out."""
    frames, height, width = x0.shape[2:]
    time = batch.time[:, None, None].repeat(1, frames, height * width // 4)
    time[:, 0] = 0
    return TrainingBatch(
        torch.cat([x0[:, :, :1], batch.x[:, :, 1:]], 2), batch.target, time.flatten(1)
    )


def _per_sample(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1, 1)


def _noise(x0: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
