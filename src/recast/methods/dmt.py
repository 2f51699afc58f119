"""DMT: space-time diffusion features as guidance, for motion transfer without training.

Yatim, Fridman, Bar-Tal, Kasten, Dekel: "Space-Time Diffusion Features for Zero-Shot Text-Driven
Motion Transfer", CVPR 2024. `learn` inverts the clip once and records its features at the guided
levels. `transfer` starts from a noise with the low frequencies of the inverted noise (eq. 4). At
the noisiest levels it optimises x_t until its features change over time like those of the clip
(eq. 3).

Owns the paper's settings, features and losses. Knows no model. `FeatureMatchingMethod` has the
algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, final

import torch
from torch import Tensor

from recast.diffusion import initial_noise
from recast.diffusion.optimize import Minimizer, minimize, minimize_by_lbfgs
from recast.diffusion.sampling import Restart
from recast.feature_guidance import losses
from recast.feature_guidance.feature_matching import (
    FeatureMatchingMethod,
    check_feature_matching,
)
from recast.motions.method import SamplingDefaults, check_at_least, check_fraction


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(SamplingDefaults):
    """DMT's settings, including those that the paper ablates."""

    taps: tuple[str, ...] = ("motion",)
    """Roles whose features are matched. The losses of their layers are averaged."""
    feature: Literal["smm", "full"] = "smm"
    """smm: the spatial marginal mean of each frame (eq. 1). full: the features at every
    position."""
    cells: int = 1
    """With smm, compute the mean in each cell of a grid of cells × cells. 1 is eq. 1. More cells
    bind the subject more closely to its position in the source."""
    loss: Literal["pairwise", "pairwise_cosine", "absolute"] = "pairwise"
    """pairwise: squared error of the differences between frames (eq. 3). pairwise_cosine: cosine
    distance of these differences, as in the authors' code. absolute: squared error of the features
    themselves, as in feature inversion."""
    guided: float = 0.4
    """Fraction of the levels, from the noisiest, at which x_t is optimised. 0 turns guidance
    off."""
    inner_steps: int = 30
    """Number of optimisation steps at each guided level."""
    optimizer: Literal["adam", "lbfgs"] = "adam"
    """adam: the paper's optimizer. lbfgs: L-BFGS, which needs fewer steps. Both start anew at each
    level."""
    lr: float = 0.01
    """Adam's learning rate at the first guided level; with lbfgs, the largest root mean square of
    a step's change of x_t there."""
    lr_end: float = 0.01
    """The same at the last guided level. It changes linearly in between."""
    early_stop: float = 0.0
    """The inner steps of a level end when one of them lowers the loss by less than this fraction.
    0 takes all steps."""
    initial_noise: initial_noise.Kind = "low_frequency"
    """The noise that a sample starts from: random, inverted, low_frequency (eq. 4), blended or
    low_frequency_blended."""
    low_pass_factor: int = 4
    """Factor ξ by which the low-pass filter of eq. 4 downsamples a frame."""
    align_corners: bool = False
    """Resize with aligned corner pixels in eq. 4, as in the authors' code."""
    noise_share: float = 0.5
    """Fraction p of the inverted noise in a blended initial noise."""
    restart: bool = True
    """Use Restart sampling: take every step except the last twice, and add new noise before the
    second time."""
    restart_without_signal: bool = False
    """With restart, also take the step from a level without signal twice, as in the authors' code.
    There the new noise replaces x_t, with its initial noise and its optimisation. Only the noisiest
    level of some models has no signal."""
    restart_noise: Literal["exact", "released"] = "exact"
    """exact: the noise of Restart sampling separates the two levels of the step. released: it
    separates the training levels that are one less noisy, as in the authors' code, whose betas
    begin one level too early. Flow models have no betas, and the noise is exact there."""
    inversion_steps: int = 1000
    """Approximate number of inversion steps. The inversion visits every sampling level."""
    prompt_prefix: str = ""
    """Text that is put before the prompt, and before the source prompt if there is one."""
    negative_prompt: str = ""
    """The negative prompt that is used if the call gives none."""

    def __post_init__(self) -> None:
        SamplingDefaults.__post_init__(self)
        check_feature_matching(self)
        check_at_least(self, 1, "cells", "low_pass_factor")
        check_fraction(self, "noise_share", "early_stop")


PRESETS = {
    # The paper's text, which gives all numbers. "reference" has those of the released code.
    "paper": Config(steps=50, guidance_scale=10.0),
    "reference": Config(
        steps=50,
        guidance_scale=10.0,
        taps=("motion", "decoder1.spatial_conv", "decoder1.temporal_conv"),
        loss="pairwise_cosine",
        inner_steps=10,
        lr=0.007,
        lr_end=0.004,
        align_corners=True,
        restart_without_signal=True,
        restart_noise="released",
        inversion_steps=999,
        prompt_prefix="Amazing quality, masterpiece, ",
        negative_prompt=(
            "bad quality, distortions, unrealistic, distorted image, watermark, signature"
        ),
    ),
    # The paper's supplement, for edits whose structure differs much from that of the source.
    "paper-large-change": Config(
        steps=50, guidance_scale=10.0, inner_steps=10, lr=0.005, lr_end=0.002
    ),
    # Tuned on the shapes model (docs/log/dmt-on-shapes.md). The inversion takes one step for each
    # sampling level. With the initial noise of eq. 4 the shapes model loses the motion of the
    # camera (docs/log/methods.md).
    "shapes": Config(
        cells=2,
        loss="pairwise_cosine",
        guided=0.6,
        inner_steps=10,
        lr=0.04,
        lr_end=0.02,
        initial_noise="inverted",
        restart=False,
        inversion_steps=1,
    ),
}
# Few steps at many levels, after an inversion in small steps, whose cost is paid once for a motion
# (docs/log/few-steps.md).
PRESETS["quick"] = replace(
    PRESETS["shapes"],
    steps=12,
    optimizer="lbfgs",
    guided=0.75,
    inner_steps=3,
    lr=0.15,
    lr_end=0.08,
    inversion_steps=50,
)
PRESETS["draft"] = replace(PRESETS["quick"], steps=6, guided=0.8, inner_steps=1, lr=0.3, lr_end=0.1)
# For models that sample in four steps (docs/log/few-step-models.md): three levels are guided.
PRESETS["shapes@4steps"] = replace(
    PRESETS["quick"], steps=None, inner_steps=6, lr=0.06, lr_end=0.04
)
PRESETS["shapes-dit@4steps"] = replace(PRESETS["quick"], steps=None, lr=0.1, lr_end=0.06)

_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pairwise": losses.pairwise_difference,  # eq. 3
    "pairwise_cosine": losses.pairwise_cosine,
    "absolute": losses.squared_error,
}
_MINIMIZERS: dict[str, Minimizer] = {"adam": minimize, "lbfgs": minimize_by_lbfgs}


@final
class Method(FeatureMatchingMethod[Config]):
    """Match space-time features. For each tap the motion holds the features at the L guided levels:
    (L, F, C·cells²) for smm, (L, F, H, W, C) for full."""

    name = "dmt"
    learned_settings = ("taps", "feature", "cells", "guided", "inversion_steps", "prompt_prefix")
    unchecked_settings = frozenset({"prompt_prefix"})

    def reduce(self, features: Tensor) -> Tensor:
        if self.config.feature == "full":
            return features  # in the precision of the network, which needs no more memory
        return losses.spatial_marginal_mean(features.float(), self.config.cells)  # eq. 1

    def motion_tensors(self, levels: Tensor) -> tuple[Tensor, ...]:
        return (levels,)

    def distance(self, features: Tensor, target: Sequence[Tensor]) -> Tensor:
        phi, phi_source = self.reduce(features).float(), target[0][None].float()
        # Full features (B, F, H, W, C) become (B, F, H·W·C), so that the losses serve both kinds.
        return _DISTANCES[self.config.loss](phi.flatten(2), phi_source.flatten(2))  # eq. 3

    def initial_latents(self, inverted: Tensor, generator: torch.Generator) -> Tensor:
        config = self.config
        return initial_noise.initial(  # eq. 4
            config.initial_noise,
            inverted,
            generator,
            factor=config.low_pass_factor,
            align_corners=config.align_corners,
            share=config.noise_share,
        )

    @property
    def minimizer(self) -> Minimizer:
        return partial(_MINIMIZERS[self.config.optimizer], early_stop=self.config.early_stop)

    @property
    def restart(self) -> Restart | None:
        config = self.config
        if not config.restart:
            return None
        return Restart(config.restart_without_signal, shifted=config.restart_noise == "released")

    def format_source_prompt(self, prompt: str) -> str:
        return self.config.prompt_prefix + prompt if prompt else ""

    def format_prompts(self, prompt: str, negative_prompt: str) -> tuple[str, str]:
        config = self.config
        return config.prompt_prefix + prompt, negative_prompt or config.negative_prompt
