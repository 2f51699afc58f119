"""The pose of a figure at one moment. Every kind of figure is a function from a pose to parts."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Pose:
    """Where a figure is in its gait."""

    phase: float
    """Number of gait cycles since some start; only the fraction shows, except for wheels."""
    stride: float = 1.0
    """Amplitude of the gait, from 0 (it stands still) to 1."""
    airborne: float = 0.0
    """How far the figure has left its gait for a leap, from 0 (on the ground) to 1."""
    climb: float = 0.0
    """Vertical direction of a leap, from -1 (falling) to 1 (rising)."""
    coat: str = "plain"
    """plain, spotted or striped."""

    def swing(self, offset: float = 0.0) -> float:
        """The sine of the gait, `offset` cycles ahead, with the amplitude of the stride."""
        return self.stride * float(np.sin(2 * np.pi * (self.phase + offset)))
