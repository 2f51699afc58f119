"""Frame-LPIPS: mean LPIPS (Zhang et al., CVPR 2018) between the frames of result and source.

It measures how much of the source's appearance and layout the result keeps. For a method that
should keep them, lower is better.
"""

from recast.metrics.base import Metric, MetricInput, by_name


def _score(inputs: MetricInput) -> float:
    assert inputs.lpips is not None
    return float(inputs.lpips.mean())


METRICS = by_name(
    Metric(
        name="frame_lpips",
        title="Frame-LPIPS",
        higher_is_better=False,
        unit="LPIPS",
        needs=frozenset({"source", "lpips"}),
        score=_score,
    ),
)
