"""Null-text inversion: an unconditional embedding for each step, with which classifier-free
guidance returns to the inverted clip.

Mokady et al.: "Null-text Inversion for Editing Real Images using Guided Diffusion Models", CVPR
2023. All frames of a clip share an embedding (Liu et al., CVPR 2024). Owns the optimisation. Knows
no method.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from recast.backbones.base import Backbone
from recast.diffusion.cfg import cfg
from recast.diffusion.noise_schedule import Denoised
from recast.diffusion.optimize import LossScale, descend
from recast.diffusion.sampling import check_finite, ddim
from recast.events import Event, Step

_TOLERANCE, _TOLERANCE_GROWTH = 1e-5, 1e-3
"""The optimisation of a step ends at a loss below the first number, which grows by the second one
from the first to the last step."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class NullText:
    """How a clip is reconstructed from its inverted noise."""

    guidance_scale: float
    """The scale of classifier-free guidance."""
    inner_steps: int
    """The maximum number of Adam steps for each embedding. With 0 the clip is reconstructed without
    guidance, and without any embedding."""
    lr: float
    """Adam's learning rate at the first step. It falls to half of it at the last one."""


def reconstruct(
    settings: NullText,
    backbone: Backbone,
    prompt: str,
    levels: Tensor,
    applied: Callable[[], AbstractContextManager[None]],
) -> Generator[Event, None, Tensor]:
    """Sample from the inverted noise levels[:1] and return x_t at all levels, of the same shape as
    `levels` (steps + 1, C, F, H, W), which are those of the inversion, from the noisiest level to
    the clean clip. `applied` is a context in which the network is called. Raises `NotFinite`."""
    x, steps = levels[:1].to(backbone.device), len(levels) - 1
    schedule, path = backbone.schedule.sized(x.shape), [x]
    plain = backbone.denoiser(backbone.encode_text([prompt]))
    is_guided = settings.inner_steps > 0 and settings.guidance_scale != 1
    guidance = _Guidance(settings, backbone) if is_guided else None
    for index, (t, s) in enumerate(pairwise(schedule.grid(steps))):
        target = levels[index + 1 : index + 2].to(x)
        with applied():
            with torch.no_grad():
                estimate = plain(x, t)
            if guidance is not None:
                guidance.optimize(estimate, x, target, (t, s), done=index / steps)
                with torch.no_grad():
                    estimate = guidance.guided(estimate, guidance.text, x, t)
        x = ddim(schedule, estimate, s)
        check_finite(x, f"step {index + 1} of the reconstruction")
        path.append(x)
        metrics = {"loss": float(mse_loss(x, target))}
        yield Step(stage="reconstruct", index=index + 1, total=steps, metrics=metrics)
    return torch.cat(path).cpu()


@final
class _Guidance:
    """Classifier-free guidance with an unconditional embedding that is optimised. It is that of the
    last step, from which the optimisation of the next one starts."""

    def __init__(self, settings: NullText, backbone: Backbone) -> None:
        self._settings, self._backbone = settings, backbone
        self._empty = backbone.encode_text([""])
        self._weight = backbone.guidance_weight(settings.guidance_scale)
        self._loss_scale = LossScale()
        self.text = self._empty.text.float()

    def guided(self, estimate: Denoised, text: Tensor, x: Tensor, t: Tensor) -> Denoised:
        """Both guided estimates at x_t (1, C, F, H, W), from those of the prompt."""
        given = replace(self._empty, text=text.to(self._empty.text))
        negative = self._backbone.denoiser(given)(x, t)
        both = Denoised(*(torch.cat(pair) for pair in zip(negative, estimate, strict=True)))
        return cfg(lambda x, t: both, self._weight)(x, t)

    def optimize(
        self,
        estimate: Denoised,
        x: Tensor,
        target: Tensor,
        step: tuple[Tensor, Tensor],
        done: float,
    ) -> None:
        """Optimize the embedding so that the step from t to s leads from x to the target. `done` is
        the fraction of the steps that were taken before."""
        t, s = step
        schedule = self._backbone.schedule.sized(x.shape)

        def loss(text: Tensor) -> Tensor:
            return mse_loss(ddim(schedule, self.guided(estimate, text, x, t), s), target)

        lrs = [self._settings.lr * (1 - done / 2)] * self._settings.inner_steps
        for text, value in descend(loss, self.text, lrs, scale=self._loss_scale):
            self.text = text
            if value < _TOLERANCE + _TOLERANCE_GROWTH * done:
                break
