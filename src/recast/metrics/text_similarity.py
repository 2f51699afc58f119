"""Text similarity: mean cosine between CLIP's embeddings of every frame and of the prompt."""

from recast.metrics.base import Judged, Metric, by_name


def _score(judged: Judged) -> float:
    assert judged.result.embeddings is not None
    assert judged.text is not None
    return float((judged.result.embeddings @ judged.text).mean())


METRICS = by_name(
    Metric(
        name="text_similarity",
        title="text similarity",
        higher_is_better=True,
        unit="CLIP cosine",
        needs=frozenset({"prompt", "clip"}),
        score=_score,
    ),
)
