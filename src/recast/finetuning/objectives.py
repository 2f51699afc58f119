"""What an adapter is trained on: the settings, and the loss of every iteration.

The clips' latents and the prompt's encoding are made once; each iteration draws a clip, a noise
level and a noise from the seed and its own number, so that training goes on exactly where it was
broken off. Knows no layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from recast.backbones.base import Backbone
from recast.diffusion import initial_noise
from recast.diffusion.noise_schedule import Denoiser
from recast.diffusion.optimize import Group
from recast.diffusion.sampling import generator_of, randn
from recast.feature_guidance import losses
from recast.motions.method import check_setting
from recast.networks.adapters import Adapter

_LEVELS = 100
"""Into so many noise levels the schedule is cut; one of them is drawn at every iteration."""
_WITHOUT_SPATIAL = 0.2
"""Share of the iterations without the spatial LoRA (MotionDirector's released code)."""
Objective = Literal["mse", "vmc", "vmc_released", "debiased", "hybrid"]
WithoutLoRA = Literal["mse", "vmc", "vmc_released", "debiased"]
_DISTANCES: dict[Objective, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": mse_loss,
    "vmc": losses.residual_cosine,
    "vmc_released": losses.residual_cosine_over_time,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How an adapter is trained, and how clips are drawn with it."""

    iterations: int = 400
    """Steps of AdamW."""
    lr: float = 5e-4
    """Its learning rate."""
    weight_decay: float = 1e-2
    """Its weight decay."""
    clip_gradient: float = 0.0
    """Cut the gradient to this norm; 0 does not."""
    objective: Objective = "mse"
    """mse: what the network says against what it should. vmc: the cosine of differences between
    frames. vmc_released: of their absolute values, over time, as VMC's code has it. debiased: mse
    with and without what the frames share. hybrid: debiased, beside a spatial LoRA for the
    appearance, which is dropped."""
    offset_noise: float = 0.0
    """Deviation of a noise that all of a frame and channel get in common; 0 is none."""
    training_seed: int = 0
    """Seed of all that is drawn while learning; --seed is that of the result."""
    eight_bit: bool = False
    """AdamW with 8-bit moments, by bitsandbytes: a quarter of the optimiser's memory."""
    checkpoint_every: int = 50
    """Learning that is broken off goes on from the last of every so many iterations."""
    inversion_steps: int = 50
    """About how many steps the inversion takes that finds the clip's own noise."""
    initial_noise: initial_noise.Kind = "blended"
    """What a sample starts from: random; inverted; low_frequency; blended;
    low_frequency_blended."""
    noise_share: float = 0.5
    """Share p of the clip's own noise in a blended one."""
    low_pass_factor: int = 4
    """How much the filter of low_frequency noises shrinks a frame."""
    strength: float = 1.0
    """Scales what was learned: 0 is the untouched model, above 1 exaggerates."""

    def __post_init__(self) -> None:
        for name in ("iterations", "checkpoint_every", "inversion_steps", "low_pass_factor"):
            check_setting(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("weight_decay", "clip_gradient", "offset_noise", "training_seed"):
            check_setting(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        check_setting("lr", self.lr, self.lr > 0, "above 0")
        check_setting(
            "noise_share", self.noise_share, 0 <= self.noise_share <= 1, "between 0 and 1"
        )
        check_setting("strength", self.strength, True, "a number")


@dataclass(frozen=True, slots=True, eq=False)
class _Lesson:
    """What one iteration draws: a clip's latents (1, C, F, h, w), their noise and its level."""

    x0: Tensor
    eps: Tensor
    t: Tensor
    anchor: int
    frame: int
    """The one of which the spatial LoRA learns."""
    with_spatial: bool


@dataclass(frozen=True, slots=True, eq=False)
class Lessons:
    """The losses of all iterations over clips with latents (N, C, F, h, w)."""

    config: Training
    backbone: Backbone
    latents: Tensor
    plain: Denoiser
    temporal: Adapter
    spatial: Adapter | None = None
    """Learns the appearance from single frames, so that `temporal` need not."""

    def groups(self, spatial_lr: float) -> list[Group]:
        """What is trained, first the temporal adapter."""
        found = [Group(list(self.temporal.tensors.values()), self.config.lr, self._of_clip)]
        if self.spatial is not None:
            parameters = list(self.spatial.tensors.values())
            found.append(Group(parameters, spatial_lr, self._of_frame))
        return found

    @contextmanager
    def _of_clip(self, index: int) -> Iterator[Tensor]:
        lesson = self._drawn(index)
        with ExitStack() as stack:
            stack.enter_context(self.temporal.applied())
            if self.spatial is not None and lesson.with_spatial:
                stack.enter_context(self.spatial.applied())
            predicted, wanted = self._outputs(lesson.x0, lesson.eps, lesson.t)
            if self.config.objective in _DISTANCES:
                yield _DISTANCES[self.config.objective](predicted, wanted)
            else:
                yield losses.debiased(predicted, wanted, lesson.anchor)

    @contextmanager
    def _of_frame(self, index: int) -> Iterator[Tensor | None]:
        lesson = self._drawn(index)
        if not lesson.with_spatial:
            yield None
            return
        assert self.spatial is not None
        one = slice(lesson.frame, lesson.frame + 1)
        with self.spatial.applied():
            yield mse_loss(*self._outputs(lesson.x0[:, :, one], lesson.eps[:, :, one], lesson.t))

    def _outputs(self, x0: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network says of the noised clip, and what it should say."""
        schedule = self.backbone.schedule
        out = self.plain(schedule.noised(x0, eps, t), t)
        return schedule.output(out.x0, out.eps, t), schedule.output(x0, eps, t)

    def _drawn(self, index: int) -> _Lesson:
        generator = generator_of(self.config.training_seed, index)

        def below(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        x0, frames = self.latents, self.latents.shape[2]
        grid = self.backbone.schedule.sized(x0.shape).grid(_LEVELS)
        chosen, t, anchor, frame = (
            below(len(x0)),
            grid[below(_LEVELS)],
            below(frames),
            below(frames),
        )
        with_spatial = float(torch.rand((), generator=generator)) >= _WITHOUT_SPATIAL
        eps = randn(tuple(x0[:1].shape), generator, x0.device)
        if self.config.offset_noise:
            common = randn((*eps.shape[:3], 1, 1), generator, x0.device)
            eps = eps + self.config.offset_noise * common
        return _Lesson(x0[chosen : chosen + 1], eps, t, anchor, frame, with_spatial)
