"""The passes of the parts that methods share: an inversion, and sampling with guidance.

Owns how many clips pass through the network in each of them, for `MotionMethod.passes`. Knows no
method and runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from recast.backbones.base import Backbone
from recast.diffusion.ddim_inversion import inversion_grid
from recast.diffusion.sampling import Restart
from recast.motions.method import Sampling
from recast.motions.passes import Passes


def inversion_passes(
    backbone: Backbone, shape: Sequence[int], sampling: Sampling, inversion_steps: int
) -> Passes:
    """The passes of an inversion in approximately `inversion_steps` steps, for latents of shape
    (…, F, H, W)."""
    schedule = backbone.schedule.sized(shape)
    grid = schedule.grid(sampling.steps)
    fine_grid = inversion_grid(schedule, grid, inversion_steps, backbone.inversion)
    return Passes(full=len(fine_grid) - 1)


def sampling_passes(
    backbone: Backbone,
    shape: Sequence[int],
    sampling: Sampling,
    negative_prompt: str,
    *,
    restart: Restart | None = None,
    part: slice = slice(None),
) -> Passes:
    """The passes of sampling with classifier-free guidance. The arguments are those of
    `sample_with_events`, and the negative prompt that the method gives to the model."""
    schedule = backbone.schedule.sized(shape)
    grid = schedule.grid(sampling.steps)[part]
    steps = len(grid) - 1
    if restart is not None:
        steps += sum(restart.applies(schedule, t) for t, _ in list(pairwise(grid))[:-1])
    return Passes(full=steps * clips_of_guidance(backbone, negative_prompt, sampling))


def clips_of_guidance(backbone: Backbone, negative_prompt: str, sampling: Sampling) -> int:
    """The clips that pass through the network for one estimate of `Backbone.cfg_denoiser`."""
    reads_scale = backbone.guidance_distilled and not negative_prompt
    return 1 if sampling.guidance_scale == 1 or reads_scale else 2
