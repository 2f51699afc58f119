"""`TrainingConfig`: the settings of every method that trains, and their checks.

Owns the settings of the training of an adapter and of sampling with it. Knows no method: the config
of a method inherits from this class and sets other defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recast.diffusion import initial_noise
from recast.motions.method import (
    SamplingDefaults,
    check_above_zero,
    check_at_least,
    check_fraction,
    check_setting,
)

Objective = Literal["mse", "vmc", "vmc_released", "debiased", "hybrid"]
ObjectiveWithoutLoRA = Literal["mse", "vmc", "vmc_released", "debiased"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig(SamplingDefaults):
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
    """mse: mean squared error of the network's output. vmc: cosine distance of the differences
    between frames. vmc_released: cosine distance over time of the absolute values of these
    differences, as in VMC's code. debiased: mse, plus mse without the content that frames share.
    hybrid: debiased, with a spatial LoRA that learns the appearance and is then discarded."""
    offset_noise: float = 0.0
    """Standard deviation of an additional noise that is constant within each frame and channel. 0
    turns it off."""
    training_seed: int = 0
    """Seed of the random numbers of the training. `seed` is the seed of the sample."""
    eight_bit: bool = False
    """Use the AdamW of bitsandbytes, whose 8-bit moments need a quarter of the memory."""
    checkpoint_every: int = 50
    """Number of iterations between checkpoints. Interrupted training resumes from the last
    checkpoint."""
    inversion_steps: int = 50
    """Approximate number of steps of the inversion, which computes the inverted noise."""
    initial_noise: initial_noise.Kind = "blended"
    """The noise that a sample starts from: random, inverted, low_frequency, blended or
    low_frequency_blended."""
    noise_share: float = 0.5
    """Fraction p of the inverted noise in a blended initial noise."""
    low_pass_factor: int = 4
    """Factor by which the low-pass filter of the low_frequency noises downsamples a frame."""
    strength: float = 1.0
    """Scale of the trained parameters. 0 is the original model; a value above 1 exaggerates the
    motion."""

    def __post_init__(self) -> None:
        SamplingDefaults.__post_init__(self)
        check_at_least(
            self, 1, "iterations", "checkpoint_every", "inversion_steps", "low_pass_factor"
        )
        check_at_least(self, 0, "weight_decay", "clip_gradient", "offset_noise", "training_seed")
        check_above_zero(self, "lr")
        check_fraction(self, "noise_share")
        check_setting("strength", self.strength, True, "a finite number")
