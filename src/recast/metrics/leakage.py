"""Leakage: how much of the source's appearance is left in the result.

CLIP's cosine between frames at the same time (as in DisMo), and the distance between the colours
of what moves. Neither tells a leak from a prompt that asks for the same look: compare methods.
"""

import numpy as np
from numpy.typing import NDArray

from recast.metrics.base import STILL, Array, ClipView, Judged, Metric, by_name

BINS = 8
"""Bins of the histogram along each of red, green and blue."""


def colour_distance(a: Array, b: Array) -> float:
    """Hellinger distance of two histograms that sum to 1: 0 for equal ones, 1 for disjoint ones."""
    return float(np.sqrt(max(0.0, 1 - np.sqrt(a * b).sum())))


def histogram(frames: NDArray[np.uint8], region: NDArray[np.bool_]) -> Array:
    """Colours of the pixels of a region (F, H, W), (BINS³,) summing to 1."""
    levels = frames[region].astype(int) * BINS // 256
    index = (levels * (BINS**2, BINS, 1)).sum(-1)
    return np.bincount(index, minlength=BINS**3) / max(1, len(index))


def tracked_region(look: ClipView, side: int) -> NDArray[np.bool_]:
    """Where a clip moves: the cells of its tracks that are seen and do not stand still, (F, H, W).
    All of it where nothing does."""
    assert look.tracks is not None
    frames, height, width = look.frames.shape[:3]
    points, visible = look.tracks.points, look.tracks.visible
    step = np.linalg.norm(np.diff(points, axis=0, append=points[-1:]), axis=-1)
    moving = visible & (np.maximum(step, np.roll(step, 1, 0)) >= STILL * side)
    region = np.zeros((frames, height, width), bool)
    cell = max(1, round(side / 32))
    reach = np.arange(cell) - cell // 2
    frame, point = np.nonzero(moving)
    x, y = (points[frame, point] // 1).astype(int).T
    rows = (y[:, None, None] + reach[:, None]).clip(0, height - 1)
    columns = (x[:, None, None] + reach[None, :]).clip(0, width - 1)
    region[frame[:, None, None], rows, columns] = True
    return region if region.any() else np.ones_like(region)


def _clip(judged: Judged) -> float:
    assert judged.source is not None
    assert judged.result.embeddings is not None
    assert judged.source.embeddings is not None
    return float((judged.result.embeddings * judged.source.embeddings).sum(-1).mean())


def _colour(judged: Judged) -> float:
    assert judged.source is not None
    found = []
    for look in (judged.result, judged.source):
        region = tracked_region(look, judged.side)
        if judged.mask is not None:
            region = judged.mask if judged.mask.any() else np.ones_like(region)
        found.append(histogram(look.frames, region))
    return colour_distance(found[0], found[1])


METRICS = by_name(
    Metric(
        name="leakage",
        title="appearance leakage",
        higher_is_better=False,
        unit="CLIP cosine",
        needs=frozenset({"source", "clip"}),
        score=_clip,
    ),
    Metric(
        name="colour_distance",
        title="colour distance of what moves",
        higher_is_better=True,
        unit="Hellinger distance",
        needs=frozenset({"source", "tracks"}),
        score=_colour,
    ),
)
