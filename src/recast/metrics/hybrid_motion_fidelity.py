"""Hybrid motion fidelity: tracks that run alike (their shape) and at the same pace (velocities).

MTBench's (Shi et al., "Decouple and Track", ICCV 2025): α·exp(−d_F) + (1 − α)·mean cosine of
velocities, with the discrete Fréchet distance of tracks d_F that the paper names (its released code
takes the mean of all point pairs). For each track its best counterpart, both ways, averaged.
"""

from functools import reduce

import numpy as np

from recast.metrics.base import Array, Judged, Metric, Tracks, by_name, headings

ALPHA = 0.5
MOST = 256
"""Tracks of each clip that are compared, evenly taken; a comparison costs F² for each pair."""


def frechet(a: Array, b: Array) -> Array:
    """Discrete Fréchet distance (Eiter and Mannila 1994) of all pairs of paths: (N, F, 2) and
    (M, G, 2) to (N, M). Takes memory for a few times N·M·G numbers."""
    count = (b.shape[1], len(a), len(b))
    reach, before = np.empty(count), np.empty(count)
    for i in range(a.shape[1]):
        before, reach = reach, before
        x, y = (a[None, :, None, i, axis] - b.T[axis][:, None] for axis in (0, 1))
        distance = np.sqrt(x * x + y * y)
        for j, here in enumerate(distance):
            ways = [before[j]] if i else []
            ways += [reach[j - 1]] if j else []
            ways += [before[j - 1]] if i and j else []
            reach[j] = np.maximum(reduce(np.minimum, ways), here) if ways else here
    return reach[-1]


def hybrid(a: Tracks, b: Tracks, side: float) -> float:
    """In [-0.5, 1]; lengths count in frame sides of `side` pixels; 0 where one has no track."""
    a, b = _few(a), _few(b)
    if not a.points.shape[1] or not b.points.shape[1]:
        return 0.0
    shape = np.exp(-frechet(_seen(a) / side, _seen(b) / side))
    (heading, seen), (others, others_seen) = headings(a, side), headings(b, side)
    together = seen.astype(float) @ others_seen.T.astype(float)
    pace = np.einsum("ntc,mtc->nm", heading, others, optimize=True) / np.maximum(together, 1)
    both = ALPHA * shape + (1 - ALPHA) * pace
    return float(both.max(1).mean() + both.max(0).mean()) / 2


def _few(tracks: Tracks) -> Tracks:
    known = tracks.only(np.asarray((tracks.visible[1:] & tracks.visible[:-1]).any(0)))
    count = known.points.shape[1]
    return known.only(np.isin(np.arange(count), np.linspace(0, count - 1, MOST).round()))


def _seen(tracks: Tracks) -> Array:
    """Paths (N, F, 2) that stay, while a point is not seen, where it was seen last (at first:
    where it will be seen). A stop does not change the Fréchet distance."""
    frames, count = tracks.visible.shape
    frame = np.arange(frames)[:, None]
    last = np.maximum.accumulate(np.where(tracks.visible, frame, -1), axis=0)
    first = tracks.visible.argmax(0)
    chosen = np.where(last < 0, first, last)
    return tracks.points[chosen, np.arange(count)].transpose(1, 0, 2)


def _hybrid(judged: Judged) -> float:
    return hybrid(*judged.tracks(), judged.side)


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
