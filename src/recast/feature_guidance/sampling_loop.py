"""The sampling loop of a job: it yields a `Step` and a `Preview` event after every level.

Owns the conversion of the sampler's levels into events. Knows no method.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoiser
from recast.diffusion.sampling import Edit, Restart, sample
from recast.events import Event, Preview, Step
from recast.motions.method import Sampling


def sample_with_events(
    backbone: Backbone,
    denoise: Denoiser,
    x: Tensor,
    sampling: Sampling,
    *,
    edit: Edit | None = None,
    losses: Mapping[int, Sequence[float]] | None = None,
    restart: Restart | None = None,
    generator: torch.Generator | None = None,
    stage: str = "sample",
    part: slice = slice(None),
) -> Generator[Event, None, Tensor]:
    """Sample from x (1, C, F, H, W) and return the latents, of the same shape.

    `losses` maps the index of a level to the losses of its inner steps. The `Step` event reports
    the last one as "loss" and the first one as "loss_before". `part` selects a part of the grid
    (steps + 1,): x is at the first selected time, and the loop ends at the last one. `edit`,
    `restart` and `generator` are those of `diffusion.sampling.sample`. Raises `NotFinite`.
    """
    schedule = backbone.schedule.sized(x.shape)
    grid = schedule.grid(sampling.steps)[part]
    for level in sample(
        denoise, schedule, grid, x, edit=edit, restart=restart, generator=generator
    ):
        inner = (losses or {}).get(level.index)
        metrics = {"loss": inner[-1], "loss_before": inner[0]} if inner else {}
        index = level.index + 1
        yield Step(stage=stage, index=index, total=len(grid) - 1, metrics=metrics)
        yield Preview(stage=stage, index=index, latents=level.x0)
        x = level.x
    return x
