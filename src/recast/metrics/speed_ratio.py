"""Speed ratio: does the result move as fast as the source?

The median speed of the moving tracks of the result, divided by that of the source. Motion fidelity
compares directions and does not see that a result moves at half the speed, as results of few-step
models often do. 1 is the speed of the source, and 0 means that nothing moves.
"""

import numpy as np

from recast.metrics.base import Metric, MetricInput, NoValue, Tracks, by_name, moving


def median_speed(tracks: Tracks, side: float) -> float:
    """Median over the moving tracks of their mean displacement from frame to frame, in pixels; 0 if
    none moves. `side` is the frame's shorter side in pixels."""
    chosen = moving(tracks, side)
    if not chosen.points.shape[1]:
        return 0.0
    steps = np.linalg.norm(np.diff(chosen.points, axis=0), axis=-1)
    visible = chosen.visible[1:] & chosen.visible[:-1]
    return float(np.median((steps * visible).sum(0) / visible.sum(0)))


def ratio(result: Tracks, source: Tracks, side: float) -> float | NoValue:
    """The speed of the result divided by that of the source."""
    speed = median_speed(source, side)
    if not speed:
        return NoValue("no point moves in the source")
    return median_speed(result, side) / speed


def _score(inputs: MetricInput) -> float | NoValue:
    return ratio(*inputs.tracks(), inputs.side)


METRICS = by_name(
    Metric(
        name="speed_ratio",
        title="speed of moving tracks, result to source",
        higher_is_better=None,
        unit="ratio",
        needs=frozenset({"source", "tracks"}),
        score=_score,
    ),
)
