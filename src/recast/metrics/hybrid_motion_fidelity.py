"""Hybrid motion fidelity: agreement of the tracks' shapes and of their velocities.

From MTBench (Shi et al., "Decouple and Track", ICCV 2025): α·exp(−d_F) + (1 − α)·mean cosine of
velocities, where d_F is the discrete Fréchet distance between two tracks, as in the paper (its
released code uses the mean distance over all point pairs instead). Each track is compared with its
best counterpart in the other clip, in both directions, and the scores are averaged.
"""

import numpy as np

from recast.metrics.base import (
    Metric,
    MetricInput,
    Tracks,
    by_name,
    filled_paths,
    frechet,
    mean_cosines,
    subsampled,
)

ALPHA = 0.5
MAX_TRACKS = 256
"""Limit of tracks per clip, evenly subsampled; the comparison of one pair costs F² operations."""


def hybrid(a: Tracks, b: Tracks, side: float) -> float:
    """The score in [-0.5, 1]; 0 if one of the clips has no track.

    Distances are measured in units of `side`, the frame's shorter side in pixels.
    """
    a, b = _subsample(a), _subsample(b)
    if not a.points.shape[1] or not b.points.shape[1]:
        return 0.0
    shape = np.exp(-frechet(filled_paths(a) / side, filled_paths(b) / side))
    velocity, _ = mean_cosines(a, b, side)
    score = ALPHA * shape + (1 - ALPHA) * velocity
    return float(score.max(1).mean() + score.max(0).mean()) / 2


def _subsample(tracks: Tracks) -> Tracks:
    usable = tracks.only(np.asarray((tracks.visible[1:] & tracks.visible[:-1]).any(0)))
    return subsampled(usable, MAX_TRACKS)


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
