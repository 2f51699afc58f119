"""Frame consistency: mean CLIP cosine between the frames of a result.

The adjacent frames are compared in one metric, and all pairs of frames in the other. Frames that
repeat the previous frame are left out, because they would agree with it whatever the result shows.
"""

from recast.metrics.base import Array, Metric, MetricInput, by_name


def _distinct(inputs: MetricInput) -> Array:
    """The embeddings of the result's frames without repeats, (F, D)."""
    view = inputs.result
    assert view.embeddings is not None
    return view.embeddings if view.repeats is None else view.embeddings[~view.repeats]


def _adjacent(inputs: MetricInput) -> float:
    frames = _distinct(inputs)
    return float((frames[1:] * frames[:-1]).sum(-1).mean()) if len(frames) > 1 else 1.0


def _all_pairs(inputs: MetricInput) -> float:
    frames = _distinct(inputs)
    count = len(frames)
    # The sum without the diagonal, which is 1 for each frame.
    return float(((frames @ frames.T).sum() - count) / (count * (count - 1))) if count > 1 else 1.0


METRICS = by_name(
    Metric(
        name="frame_consistency",
        title="frame consistency, adjacent",
        higher_is_better=True,
        unit="CLIP cosine",
        needs=frozenset({"clip"}),
        score=_adjacent,
    ),
    Metric(
        name="frame_consistency_all",
        title="frame consistency, all pairs",
        higher_is_better=True,
        unit="CLIP cosine",
        needs=frozenset({"clip"}),
        score=_all_pairs,
    ),
)
