"""Training objectives: losses between the output of a network and its training target.

Owns the losses of the papers and the objective of one training iteration. The latents of the clips
and the conditioning are computed once. Each iteration draws a clip, a noise level and a noise from
the seed and the number of the iteration, so that interrupted training resumes with the same draws.
Knows no layer and no optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import final

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoiser
from recast.diffusion.sampling import generator_of, randn
from recast.diffusion.training import Group
from recast.finetuning.training_config import Objective, TrainingConfig
from recast.networks.adapters import Adapter

_LEVELS = 100
"""Number of noise levels from which each iteration draws one."""
WITHOUT_SPATIAL = 0.2
"""Fraction of the iterations without the spatial LoRA (MotionDirector's released code)."""


def residual_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """The mean over n of 1 − cos(δ̂_n, δ_n), where δ_n is the difference between frames n + 1 and n
    as one vector: VMC's residual vectors (Jeong et al. 2024; Motion Inversion, eq. 2). Both tensors
    (B, C, F, h, w) -> scalar."""
    a, b = (rearrange(x.diff(dim=2), "b c f h w -> b f (c h w)") for x in (predicted, target))
    return 1 - cosine_similarity(a, b, dim=-1).mean()


def residual_cosine_over_time(predicted: Tensor, target: Tensor) -> Tensor:
    """1 − the mean of cos(|δ̂|, |δ|), with the cosine over time at every position and channel, as in
    VMC's released code. The absolute values lose the direction of a change. Both tensors
    (B, C, F, h, w) -> scalar."""
    a, b = (x.diff(dim=2).abs() for x in (predicted, target))
    return 1 - cosine_similarity(a, b, dim=2).mean()


def debiased(predicted: Tensor, target: Tensor, anchor: int, beta: float = 1.0) -> Tensor:
    """The appearance-debiased loss: the mean squared error of ε plus that of
    φ(ε_i) = √(β² + 1)·ε_i − β·ε_anchor, from which the content that frames share is removed (Zhao
    et al. 2024; Motion Inversion, eq. 3 to 5). Both tensors (B, C, F, h, w) -> scalar."""
    error = predicted - target  # φ is linear, so it may be applied to the difference
    phi = (beta**2 + 1) ** 0.5 * error - beta * error[:, :, anchor : anchor + 1]
    return mse_loss(predicted, target) + phi.square().mean()


_DISTANCES: dict[Objective, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": mse_loss,
    "vmc": residual_cosine,
    "vmc_released": residual_cosine_over_time,
}


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSample:
    """The random draw of one iteration."""

    x0: Tensor
    """The latents of one clip, (1, C, F, h, w)."""
    eps: Tensor
    """The noise, of the same shape."""
    t: Tensor
    """The scalar time of the noise level."""
    anchor: int
    """The anchor frame of the debiased objective."""
    frame: int
    """The frame from which the spatial LoRA learns."""
    with_spatial: bool
    """Whether the spatial LoRA is applied in this iteration."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class TrainingObjective:
    """The losses of all iterations."""

    config: TrainingConfig
    backbone: Backbone
    latents: Tensor
    """The latents of the N clips, (N, C, F, h, w)."""
    plain: Denoiser
    """The denoiser of the clips' prompt, without classifier-free guidance."""
    temporal: Adapter
    """The adapter that learns the motion."""
    spatial: Adapter | None = None
    """The adapter that learns the appearance from single frames, so that `temporal` does not learn
    it; None for an objective without it."""

    def groups(self, spatial_lr: float) -> list[Group]:
        """The parameters with their learning rates and losses, the temporal adapter first."""
        temporal = list(self.temporal.tensors.values())
        groups = [Group(temporal, self.config.lr, self.loss_of_clip)]
        if self.spatial is not None:
            groups.append(
                Group(list(self.spatial.tensors.values()), spatial_lr, self.loss_of_frame)
            )
        return groups

    @contextmanager
    def loss_of_clip(self, index: int) -> Iterator[Tensor]:
        """The temporal adapter's loss in iteration `index`. The adapters are applied inside this
        context, so the gradient must be computed inside it too."""
        sample = self._draw(index)
        with ExitStack() as stack:
            stack.enter_context(self.temporal.applied(sample.x0.shape[2]))
            if self.spatial is not None and sample.with_spatial:
                stack.enter_context(self.spatial.applied())
            output, target = self._output_and_target(sample.x0, sample.eps, sample.t)
            if self.config.objective in _DISTANCES:
                yield _DISTANCES[self.config.objective](output, target)
            else:
                yield debiased(output, target, sample.anchor)

    @contextmanager
    def loss_of_frame(self, index: int) -> Iterator[Tensor | None]:
        """The spatial adapter's loss in iteration `index`; None if the iteration does not use
        it."""
        sample = self._draw(index)
        if not sample.with_spatial:
            yield None
            return
        assert self.spatial is not None
        frame = slice(sample.frame, sample.frame + 1)
        x0, eps = sample.x0[:, :, frame], sample.eps[:, :, frame]
        with self.spatial.applied():
            yield mse_loss(*self._output_and_target(x0, eps, sample.t))

    def _output_and_target(self, x0: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The network's raw output for the noised clip, and its training target."""
        schedule = self.backbone.schedule
        out = self.plain(schedule.noised(x0, eps, t), t)
        return schedule.output(out.x0, out.eps, t), schedule.output(x0, eps, t)

    def _draw(self, index: int) -> TrainingSample:
        generator = generator_of(self.config.training_seed, index)

        def draw(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        x0, frames = self.latents, self.latents.shape[2]
        grid = self.backbone.schedule.sized(x0.shape).grid(_LEVELS)
        # Another order of these draws would change the result.
        clip, t = draw(len(x0)), grid[draw(_LEVELS)]
        anchor, frame = draw(frames), draw(frames)
        with_spatial = float(torch.rand((), generator=generator)) >= WITHOUT_SPATIAL
        eps = randn(tuple(x0[:1].shape), generator, x0.device)
        if self.config.offset_noise:
            constant = randn((*eps.shape[:3], 1, 1), generator, x0.device)
            eps = eps + self.config.offset_noise * constant
        return TrainingSample(x0[clip : clip + 1], eps, t, anchor, frame, with_spatial)
