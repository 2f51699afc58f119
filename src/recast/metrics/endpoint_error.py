"""End-point error: how far points of a result are from where given tracks say they should be.

The mean Euclidean distance between the given and the tracked positions, which MotionCtrl (Wang et
al., SIGGRAPH 2024) calls ObjMC. The tracker starts at the given points of the first frame. A point
that it loses counts at the position to which it was carried, because a result without the subject
should not score well.
"""

import numpy as np

from recast.metrics.base import Metric, MetricInput, NoValue, Tracks, by_name


def endpoint_error(found: Tracks, given: Tracks) -> float | NoValue:
    """Mean distance in pixels, over all points and frames after the first.

    Only points that the given tracks show in the first frame and in the frame itself count.
    """
    counted = given.visible[1:] & given.visible[:1]
    if not counted.any():
        return NoValue("no given point is visible in the first frame and in a later one")
    distance = np.linalg.norm(found.points[1:] - given.points[1:], axis=-1)
    return float(distance[counted].mean())


def _score(inputs: MetricInput) -> float | NoValue:
    assert inputs.given_tracks is not None
    assert inputs.result.given_tracks is not None
    error = endpoint_error(inputs.result.given_tracks, inputs.given_tracks)
    return error if isinstance(error, NoValue) else error / inputs.width


METRICS = by_name(
    Metric(
        name="endpoint_error",
        title="end-point error to given tracks",
        higher_is_better=False,
        unit="frame widths",
        needs=frozenset({"given_tracks"}),
        score=_score,
    ),
)
