"""Motion fidelity: do both clips hold the same motions, wherever they are?

DMT's eq. 5 (Yatim et al., CVPR 2024), on tracklets from any tracker, with what the paper leaves
open said here: both ways, averaged; a tracklet that stands still has no direction, so two still
ones agree and a still and a moving one do not; only frames count in which both points are seen.
"""

import numpy as np
from numpy.typing import NDArray

from recast.metrics.base import Array, Judged, Metric, Tracks, by_name, headings

LEAST_SEEN = 0.5
"""A tracklet counts if it is seen in this share of the steps, as does a pair of tracklets."""


def correlations(a: Tracks, b: Tracks, side: float) -> Array:
    """Mean cosine between the displacements of every tracklet of a and of b, (N, M) in [-1, 1].

    `side` is the frames' shorter side in pixels. A pair that is not seen together for long enough
    is -inf.
    """
    (heading, seen), (others, others_seen) = headings(a, side), headings(b, side)
    together = seen.astype(float) @ others_seen.T.astype(float)
    agreement = np.einsum("ntc,mtc->nm", heading, others, optimize=True) / np.maximum(together, 1)
    enough = together >= max(1, LEAST_SEEN * seen.shape[1])
    return np.where(enough, agreement.clip(-1, 1), -np.inf)


def fidelity(a: Tracks, b: Tracks, side: float) -> float:
    """Eq. 5, the average of both directions, in [-1, 1]; 0 where one has no tracklet at all."""
    a, b = _known(a), _known(b)
    if not a.points.shape[1] or not b.points.shape[1]:
        return 0.0
    found = correlations(a, b, side)
    return (_best(found.max(1)) + _best(found.max(0))) / 2


def moving_fidelity(a: Tracks, b: Tracks, side: float) -> float:
    """Eq. 5 over what moves: only tracklets that move in at least half of the steps in which they
    are seen look for their like, among all of the other clip. In eq. 5 itself a background that
    stands still in both clips agrees with itself, however little the subjects do.

    1 where neither clip has a tracklet that moves."""
    a, b = _known(a), _known(b)
    if not a.points.shape[1] or not b.points.shape[1]:
        return 0.0
    found = correlations(a, b, side)
    ways = [
        _best(best[moves])
        for best, moves in ((found.max(1), _moves(a, side)), (found.max(0), _moves(b, side)))
        if moves.any()
    ]
    return sum(ways) / len(ways) if ways else 1.0


def legacy(result: Tracks, source: Tracks) -> float:
    """What DMT's released script computes, for comparison with published tables: from the result's
    tracklets to the source's only, all frames whether seen or not, and with an identity matrix
    subtracted, so that a clip against itself scores below 1. Where the script has NaN, for a point
    that does not move at all, 0 stands here."""
    a, b = (_directions(np.diff(tracks.points, axis=0)) for tracks in (result, source))
    if not a.shape[1] or not b.shape[1]:
        return 0.0
    cosines = np.einsum("tnc,tmc->nm", a, b) / len(a) - np.eye(a.shape[1], b.shape[1])
    return float(cosines.max(1).mean())


def _directions(step: Array) -> Array:
    return step / np.maximum(np.linalg.norm(step, axis=-1, keepdims=True), 1e-12)


def _known(tracks: Tracks) -> Tracks:
    seen = tracks.visible[1:] & tracks.visible[:-1]
    return tracks.only(seen.any(0) & (seen.mean(0) >= LEAST_SEEN))


def _moves(tracks: Tracks, side: float) -> NDArray[np.bool_]:
    heading, seen = headings(tracks, side)
    resting = heading[..., -1].sum(1)
    return np.asarray(2 * resting <= seen.sum(1))


def _best(found: Array) -> float:
    """The mean over tracklets; one that was never seen together with another scores 0."""
    return float(np.where(np.isfinite(found), found, 0).mean())


def _fidelity(judged: Judged) -> float:
    return fidelity(*judged.tracks(), judged.side)


def _moving(judged: Judged) -> float:
    return moving_fidelity(*judged.tracks(), judged.side)


def _legacy(judged: Judged) -> float:
    return legacy(*judged.tracks())


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
        title="motion fidelity of what moves",
        higher_is_better=True,
        unit="cosine",
        needs=frozenset({"source", "tracks"}),
        score=_moving,
    ),
    Metric(
        name="motion_fidelity_legacy",
        title="motion fidelity, as DMT released it",
        higher_is_better=True,
        unit="cosine",
        needs=frozenset({"source", "tracks"}),
        score=_legacy,
    ),
)
