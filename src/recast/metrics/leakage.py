"""Leakage: how much of the source's appearance remains in the result.

One metric is the CLIP cosine between frames at the same time (as in DisMo), the other the distance
between the colours of the moving regions. A prompt that asks for the source's own appearance scores
like a leak, so these numbers only compare methods on the same prompts.
"""

import numpy as np
from numpy.typing import NDArray

from recast.metrics.base import STILL, Array, ClipView, Metric, MetricInput, by_name

BINS = 8
"""Bins of the histogram per colour channel."""


def colour_distance(a: Array, b: Array) -> float:
    """Hellinger distance of two normalised histograms: 0 if equal, 1 if disjoint."""
    return float(np.sqrt(max(0.0, 1 - np.sqrt(a * b).sum())))


def histogram(frames: NDArray[np.uint8], region: NDArray[np.bool_]) -> Array:
    """Normalised colour histogram (BINS³,) of the pixels in a region (F, H, W)."""
    levels = frames[region].astype(int) * BINS // 256
    index = (levels * (BINS**2, BINS, 1)).sum(-1)
    return np.bincount(index, minlength=BINS**3) / max(1, len(index))


def moving_region(view: ClipView, side: int) -> NDArray[np.bool_]:
    """The region that moves, (F, H, W): a square around each visible track that does not stand
    still. If nothing moves, it is the whole clip."""
    assert view.tracks is not None
    frames, height, width = view.frames.shape[:3]
    points, visible = view.tracks.points, view.tracks.visible
    step = np.linalg.norm(np.diff(points, axis=0, append=points[-1:]), axis=-1)
    moving = visible & (np.maximum(step, np.roll(step, 1, 0)) >= STILL * side)
    region = np.zeros((frames, height, width), bool)
    cell = max(1, round(side / 32))
    offsets = np.arange(cell) - cell // 2
    frame, point = np.nonzero(moving)
    x, y = (points[frame, point] // 1).astype(int).T
    rows = (y[:, None, None] + offsets[:, None]).clip(0, height - 1)
    columns = (x[:, None, None] + offsets[None, :]).clip(0, width - 1)
    region[frame[:, None, None], rows, columns] = True
    return region if region.any() else np.ones_like(region)


def _clip(inputs: MetricInput) -> float:
    assert inputs.source is not None
    assert inputs.result.embeddings is not None
    assert inputs.source.embeddings is not None
    return float((inputs.result.embeddings * inputs.source.embeddings).sum(-1).mean())


def _colour(inputs: MetricInput) -> float:
    assert inputs.source is not None
    histograms = []
    for view in (inputs.result, inputs.source):
        region = moving_region(view, inputs.side)
        if inputs.mask is not None:
            region = inputs.mask if inputs.mask.any() else np.ones_like(region)
        histograms.append(histogram(view.frames, region))
    return colour_distance(*histograms)


METRICS = by_name(
    Metric(
        name="leakage",
        title="appearance leakage",
        higher_is_better=False,
        unit="CLIP cosine",
        needs=frozenset({"source", "clip", "source_clip"}),
        score=_clip,
    ),
    Metric(
        name="colour_distance",
        title="colour distance, moving regions",
        higher_is_better=True,
        unit="Hellinger distance",
        needs=frozenset({"source", "tracks"}),
        score=_colour,
    ),
)
