"""Fréchet distance: how far the paths of a result are from those of the source, in the frame.

The discrete Fréchet distance (Eiter and Mannila 1994) compares the shapes and positions of two
paths and not their speeds. Each moving track is compared with its nearest counterpart in the other
clip, in both directions, as in hybrid motion fidelity. Unlike motion fidelity, which compares
directions, it sees that a subject moves somewhere else, or not as far.
"""

import numpy as np

from recast.metrics.base import (
    Metric,
    MetricInput,
    NoValue,
    Tracks,
    by_name,
    filled_paths,
    frechet,
    moving,
    subsampled,
)

MAX_TRACKS = 256
"""Limit of tracks per clip, evenly subsampled; the comparison of one pair costs F² operations."""


def distance(a: Tracks, b: Tracks, side: float) -> float | NoValue:
    """Mean distance in pixels of the moving tracks of each clip from the nearest track of the
    other. `side` is the frame's shorter side in pixels."""
    nearest = []
    for clip, other in ((a, b), (b, a)):
        tracks = subsampled(moving(clip, side), MAX_TRACKS)
        candidates = subsampled(other.only(np.asarray(other.visible.any(0))), MAX_TRACKS)
        if not candidates.points.shape[1]:
            return NoValue("no point of one of the clips is visible")
        if tracks.points.shape[1]:
            nearest.append(frechet(filled_paths(tracks), filled_paths(candidates)).min(1).mean())
    if not nearest:
        return NoValue("no point moves in either clip")
    return float(sum(nearest) / len(nearest))


def _score(inputs: MetricInput) -> float | NoValue:
    value = distance(*inputs.tracks(), inputs.side)
    return value if isinstance(value, NoValue) else value / inputs.width


METRICS = by_name(
    Metric(
        name="frechet_distance",
        title="Fréchet distance of moving tracks",
        higher_is_better=False,
        unit="frame widths",
        needs=frozenset({"source", "tracks"}),
        score=_score,
    ),
)
