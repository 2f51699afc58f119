"""Hybrid motion fidelity: agreement of the tracks' shapes and of their velocities.

From MTBench (Shi et al., "Decouple and Track", ICCV 2025): α·exp(−d_F) + (1 − α)·mean cosine of
velocities, where d_F is the discrete Fréchet distance between two tracks, as in the paper (its
released code uses the mean distance over all point pairs instead). Each track is compared with its
best counterpart in the other clip, in both directions, and the scores are averaged.
"""

from functools import reduce

import numpy as np

from recast.metrics.base import Array, Metric, MetricInput, Tracks, by_name, mean_cosines

ALPHA = 0.5
MAX_TRACKS = 256
"""Limit of tracks per clip, evenly subsampled; the comparison of one pair costs F² operations."""


def frechet(a: Array, b: Array) -> Array:
    """Discrete Fréchet distance (Eiter and Mannila 1994) of all pairs of paths.

    (N, F, 2) and (M, G, 2) to (N, M). Memory grows with N·M·G, because only two rows of the
    dynamic programme are stored.
    """
    size = (b.shape[1], len(a), len(b))
    row, previous_row = np.empty(size), np.empty(size)
    for i in range(a.shape[1]):
        previous_row, row = row, previous_row
        x, y = (a[None, :, None, i, axis] - b.T[axis][:, None] for axis in (0, 1))
        distance = np.sqrt(x * x + y * y)
        for j, d in enumerate(distance):
            predecessors = [previous_row[j]] if i else []
            predecessors += [row[j - 1]] if j else []
            predecessors += [previous_row[j - 1]] if i and j else []
            row[j] = np.maximum(reduce(np.minimum, predecessors), d) if predecessors else d
    return row[-1]


def hybrid(a: Tracks, b: Tracks, side: float) -> float:
    """The score in [-0.5, 1]; 0 if one of the clips has no track.

    Distances are measured in units of `side`, the frame's shorter side in pixels.
    """
    a, b = _subsample(a), _subsample(b)
    if not a.points.shape[1] or not b.points.shape[1]:
        return 0.0
    shape = np.exp(-frechet(_filled_paths(a) / side, _filled_paths(b) / side))
    velocity, _ = mean_cosines(a, b, side)
    score = ALPHA * shape + (1 - ALPHA) * velocity
    return float(score.max(1).mean() + score.max(0).mean()) / 2


def _subsample(tracks: Tracks) -> Tracks:
    usable = tracks.only(np.asarray((tracks.visible[1:] & tracks.visible[:-1]).any(0)))
    count = usable.points.shape[1]
    return usable.only(np.isin(np.arange(count), np.linspace(0, count - 1, MAX_TRACKS).round()))


def _filled_paths(tracks: Tracks) -> Array:
    """Paths (N, F, 2). Where a point is not visible, it has its last visible position, or else its
    first one. Such a pause does not change the Fréchet distance."""
    frames, count = tracks.visible.shape
    frame = np.arange(frames)[:, None]
    last = np.maximum.accumulate(np.where(tracks.visible, frame, -1), axis=0)
    first = tracks.visible.argmax(0)
    chosen = np.where(last < 0, first, last)
    return tracks.points[chosen, np.arange(count)].transpose(1, 0, 2)


def _hybrid(inputs: MetricInput) -> float:
    return hybrid(*inputs.tracks(), inputs.side)


METRICS = by_name(
    Metric(
        name="hybrid_motion_fidelity",
        title="hybrid motion fidelity",
        higher_is_better=True,
        unit="mean of exp(-distance) and cosine",
        needs=frozenset({"source", "tracks"}),
        score=_hybrid,
    ),
)
