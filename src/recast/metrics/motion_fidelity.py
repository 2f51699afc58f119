"""Motion fidelity: whether two clips contain the same motions, wherever in the frame.

DMT's eq. 5 (Yatim et al., CVPR 2024) on tracklets from any tracker: for each tracklet the best
correlation with a tracklet of the other clip, where the correlation is the mean cosine between
their displacements. The paper does not say what the cosine of a step without displacement is, and
this decides the value on real clips. Hence three forms, all in [-1, 1]:

- `motion_fidelity_plain`: eq. 5, averaged over both directions (result to source and back). Steps
  without displacement have no direction and are left out.
- `moving_fidelity`: only tracklets that move look for their like.
- `motion_fidelity_legacy`: the script that the authors released.

`motion_fidelity`, in which still tracklets agree with each other, is no longer computed, but rows
of earlier versions have it.
"""

import numpy as np
from numpy.typing import NDArray

from recast.metrics.base import Array, Metric, MetricInput, Tracks, by_name, headings, mean_cosines

MIN_VISIBLE = 0.5
"""Smallest fraction of steps in which a tracklet, or both tracklets of a pair, must be visible."""
MIN_SHARED = 0.5
"""Smallest fraction of a tracklet's steps with a direction that a match must share with it."""
MIN_DISPLACED = 0.25
"""Smallest fraction of a tracklet's visible steps that must have a direction in the plain form."""
MIN_TRACKLETS = 0.01
"""Smallest fraction of the tracklets of a clip that must have directions in the plain form; a clip
with fewer is still. Of 1024 tracklets of a still clip that was coded as mp4, none or one had."""
NO_DISPLACEMENT = 5e-4
"""Fraction of the frame's shorter side below which a step has no direction in the plain form: 0.03
pixels of 64, 0.16 of 320. It is above the error of the tracker `flow` on most coded clips that
stand still: 99 of 100 steps are below 0.1 pixels of 256. Chosen with the two fractions above on
four real clips (docs/log/metrics.md)."""


def plain_fidelity(a: Tracks, b: Tracks, side: float) -> float:
    """Eq. 5, averaged over both directions, in [-1, 1]. `side` is the frame's shorter side in
    pixels.

    A step has a direction if the point is visible before and after it and is displaced. Of a pair
    of tracklets only the steps count in which both have a direction. A tracklet with a direction in
    less than a quarter of its visible steps is left out. If less than one in a hundred tracklets of
    a clip remains, the clip is still: these are noise, and one of them could be the match of every
    tracklet of the other clip. A match must share at least half of the tracklet's own steps with a
    direction; a tracklet without a match counts as 0, so a moving clip and a still one score 0. Two
    still clips score 1, and a clip whose tracklets were all lost scores 0.
    """
    a, b = _usable(a), _usable(b)
    if not a.points.shape[1] or not b.points.shape[1]:
        return 0.0
    (steps_a, known_a), (steps_b, known_b) = _directions(a, side), _directions(b, side)
    shared = known_a.astype(float) @ known_b.T.astype(float)
    cosines = np.einsum("ntc,mtc->nm", steps_a, steps_b, optimize=True) / np.maximum(shared, 1)
    values = [
        _mean_of_matched(cosines, shared, known_a.sum(1)),
        _mean_of_matched(cosines.T, shared.T, known_b.sum(1)),
    ]
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else 1.0


def moving_fidelity(a: Tracks, b: Tracks, side: float) -> float:
    """Eq. 5 restricted to moving tracklets, averaged over both directions, in [-1, 1].

    Only tracklets that move in at least half of their visible steps are matched, but each is
    matched against all tracklets of the other clip. A still step has the cosine 1 with a still
    step and 0 with a moving one. The value is 1 if neither clip has a moving tracklet, and 0 if one
    has no tracklet at all.
    """
    a, b = _usable(a), _usable(b)
    if not a.points.shape[1] or not b.points.shape[1]:
        return 0.0
    scores = _correlations(a, b, side)
    directions = [
        _mean_best(best[moves])
        for best, moves in ((scores.max(1), _moves(a, side)), (scores.max(0), _moves(b, side)))
        if moves.any()
    ]
    return sum(directions) / len(directions) if directions else 1.0


def legacy(result: Tracks, source: Tracks) -> float:
    """The score of DMT's released script, for comparison with published tables, in [-1, 1].

    It differs from eq. 5: it matches tracklets of the result to those of the source only, uses
    all frames whether a point is visible or not, and subtracts an identity matrix, so that a clip
    against itself scores below 1. A step without displacement makes the whole score of the script
    NaN (`is_undefined`); here it has the cosine 0. The value is 0 if the source has fewer than two
    tracklets, for which the subtracted matrix leaves nothing to match.
    """
    a, b = (_unit_steps(np.diff(tracks.points, axis=0)) for tracks in (result, source))
    if not a.shape[1] or b.shape[1] < 2:
        return 0.0
    cosines = np.einsum("tnc,tmc->nm", a, b, optimize=True) / len(a)
    diagonal = np.arange(min(cosines.shape))
    cosines[diagonal, diagonal] -= 1
    return float(cosines.max(1).mean().clip(-1, 1))


def is_undefined(tracks: Tracks) -> bool:
    """Whether DMT's released script gives NaN for these tracks: a point does not move at all in
    some step."""
    return bool((np.diff(tracks.points, axis=0) == 0).all(-1).any())


def still_agrees(a: Tracks, b: Tracks, side: float) -> float:
    """The retired form: eq. 5 over all tracklets, where a still step has the cosine 1 with a still
    step and 0 with a moving one; in [-1, 1], and 0 if one of the clips has no tracklet.

    Real clips that are not related score high in it, because still points agree.
    """
    a, b = _usable(a), _usable(b)
    if not a.points.shape[1] or not b.points.shape[1]:
        return 0.0
    scores = _correlations(a, b, side)
    return (_mean_best(scores.max(1)) + _mean_best(scores.max(0))) / 2


def _mean_of_matched(cosines: Array, shared: Array, own: NDArray[np.int_]) -> float | None:
    """One direction of the plain form: the mean over the tracklets (N,) with `own` steps that have
    a direction; None if there is no such tracklet. `cosines` and `shared` steps are (N, M)."""
    if not own.any():
        return None
    is_match = shared >= np.maximum(1, MIN_SHARED * own)[:, None]
    return _mean_best(np.where(is_match, cosines, -np.inf).max(1)[own > 0])


def _directions(tracks: Tracks, side: float) -> tuple[Array, NDArray[np.bool_]]:
    """Unit displacements (N, F − 1, 2), zero for a step without a direction, and whether a step has
    one, (N, F − 1)."""
    step = np.diff(tracks.points, axis=0).transpose(1, 0, 2)
    visible = (tracks.visible[1:] & tracks.visible[:-1]).T
    known = visible & (np.linalg.norm(step, axis=-1) >= NO_DISPLACEMENT * side)
    moves = known.any(1) & (known.sum(1) >= MIN_DISPLACED * visible.sum(1))
    known = known & moves[:, None] & (moves.mean() >= MIN_TRACKLETS)
    return np.where(known[..., None], _unit_steps(step), 0.0), known


def _unit_steps(step: Array) -> Array:
    return step / np.maximum(np.linalg.norm(step, axis=-1, keepdims=True), 1e-12)


def _correlations(a: Tracks, b: Tracks, side: float) -> Array:
    """Mean cosine between the displacements of every tracklet of a and of b, (N, M) in [-1, 1].

    A pair that is visible together in too few steps has the value -inf.
    """
    cosines, shared_steps = mean_cosines(a, b, side)
    enough = shared_steps >= max(1, MIN_VISIBLE * (len(a.points) - 1))
    return np.where(enough, cosines.clip(-1, 1), -np.inf)


def _usable(tracks: Tracks) -> Tracks:
    visible = tracks.visible[1:] & tracks.visible[:-1]
    return tracks.only(visible.any(0) & (visible.mean(0) >= MIN_VISIBLE))


def _moves(tracks: Tracks, side: float) -> NDArray[np.bool_]:
    heading, visible = headings(tracks, side)
    still_steps = heading[..., -1].sum(1)
    return np.asarray(2 * still_steps <= visible.sum(1))


def _mean_best(best: Array) -> float:
    """The mean over tracklets; a tracklet without a match counts as 0."""
    return float(np.where(np.isfinite(best), best, 0).mean().clip(-1, 1))


def _plain(inputs: MetricInput) -> float:
    return plain_fidelity(*inputs.tracks(), inputs.side)


def _moving(inputs: MetricInput) -> float:
    return moving_fidelity(*inputs.tracks(), inputs.side)


def _legacy(inputs: MetricInput) -> float:
    return legacy(*inputs.released_tracks())


def _still_agrees(inputs: MetricInput) -> float:
    return still_agrees(*inputs.tracks(), inputs.side)


METRICS = by_name(
    Metric(
        name="motion_fidelity_plain",
        title="motion fidelity, plain",
        higher_is_better=True,
        unit="cosine",
        needs=frozenset({"source", "tracks"}),
        score=_plain,
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
RETIRED = by_name(
    Metric(
        name="motion_fidelity",
        title="motion fidelity, still tracklets agree (retired)",
        higher_is_better=True,
        unit="cosine",
        needs=frozenset({"source", "tracks"}),
        score=_still_agrees,
    ),
)
"""Metrics of earlier rows, which reports show and nothing computes any more."""
