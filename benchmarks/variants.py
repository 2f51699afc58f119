"""The variants of DMT that are measured on the shapes model, in groups of one change each."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoiser
from recast.feature_guidance import feature_matching, losses
from recast.methods import dmt, unguided
from recast.motions.method import MotionMethod

BASE = "eq. 3 on 2×2 cells"
COSINES = "by cosines on 2×2 cells"
COSINE = {"loss": "pairwise_cosine"}
_BASE = dataclasses.replace(dmt.PRESETS["shapes"], loss="pairwise", initial_noise="low_frequency")


@dataclass(frozen=True)
class Variant:
    """A method, how it is run, and a patch of one of its parts."""

    method: MotionMethod[Any]
    steps: int = 25
    guidance_scale: float | None = None
    """None is the model's default."""
    described: bool = False
    """Whether the source is learned with its own caption in place of an empty prompt."""
    patched: Callable[[], AbstractContextManager[Any]] = nullcontext
    """A context in which the variant runs."""


def around(changes: dict[str, Any] | None = None, **options: Any) -> Variant:
    """`BASE` with changed settings. `BASE` is the preset `shapes` with the paper's loss and initial
    noise."""
    return Variant(dmt.Method(dataclasses.replace(_BASE, **changes or {})), **options)


@contextmanager
def normalised_loss() -> Iterator[None]:
    """Eq. 3 with every channel divided by the source's standard deviation over the clip."""

    def loss(phi: Tensor, target: Tensor) -> Tensor:
        deviation = target.std(1, keepdim=True) + 1e-6
        return losses.pairwise_difference(phi / deviation, target / deviation)

    with mock.patch.dict(dmt._DISTANCES, {"pairwise": loss}):
        yield


def along_the_gradient(momentum: float) -> Callable[[], AbstractContextManager[None]]:
    """Steps along the gradient with RMS `lr` in place of Adam. The momentum is kept from level to
    level."""

    @contextmanager
    def patched() -> Iterator[None]:
        velocity = torch.zeros(())

        def minimize(
            loss: Callable[[Tensor], Tensor],
            start: Tensor,
            lrs: Sequence[float],
            scale: object,
        ) -> tuple[Tensor, list[float]]:
            nonlocal velocity
            x, history = start.detach(), []
            for lr in lrs:
                with torch.enable_grad():
                    leaf = x.clone().requires_grad_(True)
                    value = loss(leaf)
                    (gradient,) = torch.autograd.grad(value, leaf)
                history.append(float(value.detach()))
                unit = gradient / gradient.square().mean().sqrt().clamp_min(1e-20)
                velocity = momentum * velocity + (1 - momentum) * unit
                x = x - lr * velocity
            return x, history

        with mock.patch.object(feature_matching, "minimize", minimize):
            yield

    return patched


@contextmanager
def through_x0() -> Iterator[None]:
    """The gradient is taken through x̂_0. The features are still those of x_t, which is written as
    α·x̂_0 + σ·ε̂ with constant ε̂, so that the gradient passes the denoiser before it reaches x_t."""
    read_features = feature_matching.read_features

    def read_through_x0(
        backbone: Backbone, denoise: Denoiser, taps: Any, x: Tensor, t: Tensor
    ) -> Any:
        out, schedule = denoise(x, t), backbone.schedule.sized(x.shape)
        x = schedule.alpha(t) * out.x0 + schedule.sigma(t) * out.eps.detach()
        return read_features(backbone, denoise, taps, x.float(), t)

    with mock.patch.object(feature_matching, "read_features", read_through_x0):
        yield


# One inversion serves `paper` and `reference`: 999 and 1000 steps give the same refined grid of 50
# levels, and the taps of `reference` include that of `paper`. Both take the paper's 50 steps.
MAIN = {
    "unguided": Variant(unguided.Method(unguided.Config()), steps=50),
    "eq. 4's noise alone": around({"guided": 0.0}),
    BASE: around(),
    COSINES: around(COSINE),
    "SMM, pairwise (eq. 3)": around({"cells": 1}),
    "SMM, no differences": around({"cells": 1, "loss": "absolute"}),
    "full features": around({"feature": "full", "loss": "absolute"}),
    "random noise, guided": around({"initial_noise": "random"}),
    "DMT reference": Variant(dmt.Method(dmt.PRESETS["reference"]), steps=50),
    "DMT paper": Variant(dmt.Method(dmt.PRESETS["paper"]), steps=50),
}
LONG = ("DMT reference", "DMT paper")
BLOCK_1 = ("motion", "decoder1.spatial_conv", "decoder1.temporal_conv")
GROUPS: dict[str, dict[str, Variant]] = {
    "main": MAIN,
    "start": {
        **{f"ξ = {factor}": around({"low_pass_factor": factor}) for factor in (2, 8)},
        "ξ = 2, noise alone": around({"low_pass_factor": 2, "guided": 0.0}),
        "inverted noise": around({"initial_noise": "inverted"}),
        "inverted noise alone": around({"initial_noise": "inverted", "guided": 0.0}),
        "blended noise, p = 0.5": around({"initial_noise": "blended"}),
    },
    "levels": {
        f"guided on {share:.0%} of the levels": around({"guided": share})
        for share in (0.2, 0.4, 0.8, 1.0)
    },
    "inner steps": {
        **{f"{count} inner steps": around({"inner_steps": count}) for count in (2, 5, 20)},
        **{
            f"lr {lr} → {lr / 2}": around({"lr": lr, "lr_end": lr / 2}) for lr in (0.01, 0.02, 0.08)
        },
        "lr 0.04 → 0.005": around({"lr_end": 0.005}),
        "lr rising, 0.005 → 0.06": around({"lr": 0.005, "lr_end": 0.06}),
        "5 inner steps, 40 % of the levels": around({"inner_steps": 5, "guided": 0.4}),
        "gradient through x̂_0": around(patched=through_x0),
        "along the gradient": around(patched=along_the_gradient(0.0)),
        "along the gradient, momentum 0.9": around(patched=along_the_gradient(0.9)),
    },
    "cells": {f"{cells}×{cells} cells": around({"cells": cells}) for cells in (1, 3, 4)},
    "taps": {
        **{
            role: around({"taps": (role,)})
            for role in (
                "middle",
                "decoder0.upsampler",
                "decoder2.upsampler",
                "decoder1.temporal_conv",
                "decoder2.spatial_conv",
                "decoder3.spatial_conv",
            )
        },
        "block 1, three taps": around({"taps": BLOCK_1}),
        "upsamplers 0, 1 and 2": around(
            {"taps": ("decoder0.upsampler", "motion", "decoder2.upsampler")}
        ),
    },
    "loss": {
        "channels normalised": around(patched=normalised_loss),
        "eq. 3, channels normalised": around({"cells": 1}, patched=normalised_loss),
    },
    "cosine": {
        "cosine, one mean": around({**COSINE, "cells": 1}),
        "cosine, guided on 40% of the levels": around({**COSINE, "guided": 0.4}),
        "cosine, 5 inner steps": around({**COSINE, "inner_steps": 5}),
        "cosine, lr 0.08 → 0.04": around({**COSINE, "lr": 0.08, "lr_end": 0.04}),
        "cosine, lr 0.02 → 0.01": around({**COSINE, "lr": 0.02, "lr_end": 0.01}),
        "cosine, full features": around({**COSINE, "feature": "full"}),
    },
    "learning": {
        "100 inversion steps": around({"inversion_steps": 100}),
        "200 inversion steps": around({"inversion_steps": 200}),
        "inverted under the source's caption": around(described=True),
    },
    "sampling": {
        "restart": around({"restart": True}),
        "guidance scale 2": around(guidance_scale=2.0),
        "guidance scale 7": around(guidance_scale=7.0),
        "50 steps": around(steps=50),
    },
}
