"""Pixel error: how far a result is from being the source itself.

What DMT's feature inversion is judged by (its fig. 2). For an edit, low means that little was
edited.
"""

import numpy as np

from recast.metrics.base import Judged, Metric, by_name


def _error(judged: Judged) -> float:
    assert judged.source is not None
    difference = judged.result.frames.astype(float) - judged.source.frames
    inside = np.abs(difference) if judged.mask is None else np.abs(difference[judged.mask])
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
