"""Pixel error: mean absolute difference between result and source.

It measures the quality of feature inversion (DMT, fig. 2). For an edit, a low value means that
little was edited.
"""

import numpy as np

from recast.metrics.base import Metric, MetricInput, by_name


def _error(inputs: MetricInput) -> float:
    assert inputs.source is not None
    difference = inputs.result.frames.astype(float) - inputs.source.frames
    inside = np.abs(difference) if inputs.mask is None else np.abs(difference[inputs.mask])
    return float(inside.mean() / 255) if inside.size else 0.0


METRICS = by_name(
    Metric(
        name="pixel_error",
        title="pixel error to the source",
        higher_is_better=False,
        unit="mean absolute difference, 1 is black to white",
        needs=frozenset({"source"}),
        score=_error,
    ),
)
