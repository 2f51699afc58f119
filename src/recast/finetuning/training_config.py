"""`TrainingConfig`: the settings of every method that trains, and their checks.

Owns how an adapter is trained and how clips are sampled with it. Knows no method: a method's config
inherits from it and sets its own numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recast.diffusion import initial_noise
from recast.motions.method import (
    check_above_zero,
    check_at_least,
    check_fraction,
    check_setting,
)

Objective = Literal["mse", "vmc", "vmc_released", "debiased", "hybrid"]
ObjectiveWithoutLoRA = Literal["mse", "vmc", "vmc_released", "debiased"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How an adapter is trained, and how clips are sampled with it."""

    iterations: int = 400
    """Number of AdamW steps."""
    lr: float = 5e-4
    """AdamW's learning rate."""
    weight_decay: float = 1e-2
    """AdamW's weight decay."""
    clip_gradient: float = 0.0
    """Maximum norm of the gradient. 0 turns clipping off."""
    objective: Objective = "mse"
    """mse: mean squared error of the network's output. vmc: cosine of the differences between
    frames. vmc_released: cosine over time of the absolute values of these differences, as in VMC's
    code. debiased: mse, plus mse without the part that frames share. hybrid: debiased, with a
    spatial LoRA that learns the appearance and is discarded."""
    offset_noise: float = 0.0
    """Standard deviation of a noise that is constant over each frame and channel. 0 turns it
    off."""
    training_seed: int = 0
    """Seed of the random numbers during learning. The seed of the result is `seed`."""
    eight_bit: bool = False
    """Use AdamW with 8-bit moments from bitsandbytes, which take a quarter of the memory."""
    checkpoint_every: int = 50
    """Iterations between checkpoints. Interrupted learning resumes from the last checkpoint."""
    inversion_steps: int = 50
    """Approximate number of steps of the inversion, which computes the clip's own noise."""
    initial_noise: initial_noise.Kind = "blended"
    """The noise that a sample starts from: random, inverted, low_frequency, blended or
    low_frequency_blended."""
    noise_share: float = 0.5
    """Fraction p of the clip's own noise in a blended initial noise."""
    low_pass_factor: int = 4
    """Factor by which the filter of the low_frequency noises reduces a frame."""
    strength: float = 1.0
    """Scale of the learned parameters: 0 is the original model, above 1 exaggerates the motion."""

    def __post_init__(self) -> None:
        check_at_least(
            self, 1, "iterations", "checkpoint_every", "inversion_steps", "low_pass_factor"
        )
        check_at_least(self, 0, "weight_decay", "clip_gradient", "offset_noise", "training_seed")
        check_above_zero(self, "lr")
        check_fraction(self, "noise_share")
        check_setting("strength", self.strength, True, "a finite number")
