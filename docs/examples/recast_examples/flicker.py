"""Flicker: how much the mean brightness changes from one frame to the next.

Needs the result alone, so that it also evaluates clips without a source.
"""

import numpy as np

from recast.metrics.base import Metric, MetricInput, by_name


def _flicker(inputs: MetricInput) -> float:
    """The mean absolute change of brightness between neighbouring frames, 1 is black to white."""
    brightness = inputs.result.frames.mean(axis=(1, 2, 3)) / 255  # (F, H, W, 3) -> (F,)
    return float(np.abs(np.diff(brightness)).mean()) if len(brightness) > 1 else 0.0


METRICS = by_name(
    Metric(
        name="flicker",
        title="flicker of the brightness",
        higher_is_better=False,
        unit="mean absolute change, 1 is black to white",
        score=_flicker,
    ),
)
