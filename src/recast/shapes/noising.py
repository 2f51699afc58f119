"""What a denoiser is given in training and what it should answer, by the kind of its schedule."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recast.shapes import networks
from recast.shapes.networks import Design

_LEVELS = 1000


class Lesson(NamedTuple):
    """A batch: x_t and the target, (B, C, F, h, w), and the times as the network reads them."""

    x: Tensor
    target: Tensor
    time: Tensor


def diffusion(design: Design, x0: Tensor, rng: np.random.Generator) -> Lesson:
    """x_t = √ᾱ·x0 + √(1 − ᾱ)·ε, to be answered by v or ε; t is drawn as the design says."""
    cumulative = networks.scheduler(design).alphas_cumprod
    t = torch.from_numpy(_LEVELS * rng.random(len(x0)) ** (1 / design.high_noise)).long()
    alpha, sigma = (_levels(table) for table in (cumulative[t].sqrt(), (1 - cumulative[t]).sqrt()))
    eps = _noise(x0, rng)
    if design.offset_noise:
        offset = rng.standard_normal((*x0.shape[:3], 1, 1), dtype=np.float32)
        eps = eps + design.offset_noise * torch.from_numpy(offset)
    v = alpha * eps - sigma * x0
    target = v if design.prediction == "v_prediction" else eps
    return Lesson(alpha * x0 + sigma * eps, target, t)


def flow(design: Design, x0: Tensor, rng: np.random.Generator) -> Lesson:
    """x_t = (1 − t)·x0 + t·ε, to be answered by ε − x0; a uniform t is shifted to high noise."""
    u = torch.from_numpy(rng.random(len(x0), dtype=np.float32))
    t = design.shift * u / (1 + (design.shift - 1) * u)
    eps, share = _noise(x0, rng), _levels(t)
    return Lesson((1 - share) * x0 + share * eps, eps - x0, _LEVELS * t)


def _levels(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1, 1)


def _noise(x0: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
