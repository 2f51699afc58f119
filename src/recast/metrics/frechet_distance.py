"""Fréchet distance: how far the paths of a result are from those of the source, in the frame.

The discrete Fréchet distance (Eiter and Mannila 1994) compares the shapes and positions of two
paths and not their speeds. Each moving track is compared with the nearest moving track of the other
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
    """Mean distance in pixels of the moving tracks of each clip from the nearest moving track of
    the other, or from the nearest point if nothing moves there. `side` is the frame's shorter side
    in pixels."""
    everything = [tracks.only(np.asarray(tracks.visible.any(0))) for tracks in (a, b)]
    if not all(tracks.points.shape[1] for tracks in everything):
        return NoValue("no point of one of the clips is visible")
    movers = [moving(tracks, side) for tracks in everything]
    if not any(tracks.points.shape[1] for tracks in movers):
        return NoValue("no point moves in either clip")
    paths = [
        filled_paths(subsampled(chosen if chosen.points.shape[1] else whole, MAX_TRACKS))
        for chosen, whole in zip(movers, everything, strict=True)
    ]
    distances = frechet(*paths)
    nearest = [
        distances.min(axis).mean()
        for axis, chosen in zip((1, 0), movers, strict=True)
        if chosen.points.shape[1]
    ]
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
