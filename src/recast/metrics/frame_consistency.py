"""Frame consistency: how alike CLIP finds a clip's own frames, the adjacent ones or all pairs."""

from recast.metrics.base import Judged, Metric, by_name


def _adjacent(judged: Judged) -> float:
    frames = judged.result.embeddings
    assert frames is not None
    return float((frames[1:] * frames[:-1]).sum(-1).mean()) if len(frames) > 1 else 1.0


def _all_pairs(judged: Judged) -> float:
    frames = judged.result.embeddings
    assert frames is not None
    count = len(frames)
    # Of all cosines without the diagonal, which is 1 for each frame.
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
