"""Motion fidelity: whether two clips contain the same motions, wherever in the frame.

DMT's eq. 5 (Yatim et al., CVPR 2024) on tracklets from any tracker. The paper leaves three choices
open, which are made as follows. The two directions (result to source and back) are averaged. A
tracklet that stands still has no direction, so two still tracklets agree, and a still and a moving
one do not. Only steps in which both points are visible count.
"""

import numpy as np
from numpy.typing import NDArray

from recast.metrics.base import Array, Metric, MetricInput, Tracks, by_name, headings, mean_cosines

MIN_VISIBLE = 0.5
"""Smallest fraction of steps in which a tracklet, or both tracklets of a pair, must be visible."""


def correlations(a: Tracks, b: Tracks, side: float) -> Array:
    """Mean cosine between the displacements of every tracklet of a and of b, (N, M) in [-1, 1].

    `side` is the frame's shorter side in pixels. A pair that is visible together in too few steps
    has the value -inf.
    """
    cosines, shared_steps = mean_cosines(a, b, side)
    enough = shared_steps >= max(1, MIN_VISIBLE * (len(a.points) - 1))
    return np.where(enough, cosines.clip(-1, 1), -np.inf)


def fidelity(a: Tracks, b: Tracks, side: float) -> float:
    """Eq. 5, averaged over both directions, in [-1, 1]; 0 if one of the clips has no tracklet."""
    a, b = _usable(a), _usable(b)
    if not a.points.shape[1] or not b.points.shape[1]:
        return 0.0
    scores = correlations(a, b, side)
    return (_mean_best(scores.max(1)) + _mean_best(scores.max(0))) / 2


def moving_fidelity(a: Tracks, b: Tracks, side: float) -> float:
    """Eq. 5 restricted to moving tracklets, in [-1, 1].

    Only tracklets that move in at least half of their visible steps are matched, but each is
    matched against all tracklets of the other clip. In eq. 5 itself a background that stands still
    in both clips agrees with itself, however badly the subjects agree. The value is 1 if neither
    clip has a moving tracklet, and 0 if one has no tracklet at all.
    """
    a, b = _usable(a), _usable(b)
    if not a.points.shape[1] or not b.points.shape[1]:
        return 0.0
    scores = correlations(a, b, side)
    directions = [
        _mean_best(best[moves])
        for best, moves in ((scores.max(1), _moves(a, side)), (scores.max(0), _moves(b, side)))
        if moves.any()
    ]
    return sum(directions) / len(directions) if directions else 1.0


def legacy(result: Tracks, source: Tracks) -> float:
    """The score of DMT's released script, for comparison with published tables.

    It differs from eq. 5: it matches tracklets of the result to those of the source only, uses
    all frames whether a point is visible or not, and subtracts an identity matrix, so that a clip
    against itself scores below 1. The script gives NaN for a point that never moves; here that is
    0.
    """
    a, b = (_unit_steps(np.diff(tracks.points, axis=0)) for tracks in (result, source))
    if not a.shape[1] or not b.shape[1]:
        return 0.0
    cosines = np.einsum("tnc,tmc->nm", a, b) / len(a) - np.eye(a.shape[1], b.shape[1])
    return float(cosines.max(1).mean())


def _unit_steps(step: Array) -> Array:
    return step / np.maximum(np.linalg.norm(step, axis=-1, keepdims=True), 1e-12)


def _usable(tracks: Tracks) -> Tracks:
    visible = tracks.visible[1:] & tracks.visible[:-1]
    return tracks.only(visible.any(0) & (visible.mean(0) >= MIN_VISIBLE))


def _moves(tracks: Tracks, side: float) -> NDArray[np.bool_]:
    heading, visible = headings(tracks, side)
    still_steps = heading[..., -1].sum(1)
    return np.asarray(2 * still_steps <= visible.sum(1))


def _mean_best(best: Array) -> float:
    """The mean over tracklets; a tracklet that was never visible with any other counts as 0."""
    return float(np.where(np.isfinite(best), best, 0).mean())


def _fidelity(inputs: MetricInput) -> float:
    return fidelity(*inputs.tracks(), inputs.side)


def _moving(inputs: MetricInput) -> float:
    return moving_fidelity(*inputs.tracks(), inputs.side)


def _legacy(inputs: MetricInput) -> float:
    return legacy(*inputs.tracks())


METRICS = by_name(
    Metric(
        name="motion_fidelity",
        title="motion fidelity",
        higher_is_better=True,
        unit="cosine",
        needs=frozenset({"source", "tracks"}),
        score=_fidelity,
    ),
    Metric(
        name="moving_fidelity",
        title="motion fidelity, moving tracklets",
        higher_is_better=True,
        unit="cosine",
        needs=frozenset({"source", "tracks"}),
        score=_moving,
    ),
    Metric(
        name="motion_fidelity_legacy",
        title="motion fidelity, released script of DMT",
        higher_is_better=True,
        unit="cosine",
        needs=frozenset({"source", "tracks"}),
        score=_legacy,
    ),
)
