"""Text similarity: mean cosine between the CLIP embeddings of each frame and of the prompt."""

from recast.metrics.base import Metric, MetricInput, by_name


def _score(inputs: MetricInput) -> float:
    assert inputs.result.embeddings is not None
    assert inputs.text is not None
    return float((inputs.result.embeddings @ inputs.text).mean())


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
