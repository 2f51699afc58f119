"""Exact denoisers of Gaussian mixtures, whose trajectories have a closed form."""

import torch

from recast.backbones.gaussian import Gaussian
from recast.diffusion.noise_schedule import Denoiser, Schedule

MEANS = torch.tensor([[0.8, -0.3, 0.1], [-0.6, 0.5, 0.4], [0.1, 0.7, -0.9]])
STD = 0.5
ALPHAS_CUMPROD = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2, 0)
"""The signal levels of Stable Diffusion."""


def mixture(schedule: Schedule, components: int = 3) -> Denoiser:
    """The denoiser of the first `components` of `MEANS` with standard deviation `STD`."""
    model = Gaussian(MEANS[:components], STD, schedule)
    return model.denoiser(model.encode_text([""]))
