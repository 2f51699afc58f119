"""Frame-LPIPS: mean LPIPS (Zhang et al., CVPR 2018) between the frames of result and source.

How much of the source's look and layout the result keeps: low for a method that should keep it.
"""

from recast.metrics.base import Judged, Metric, by_name


def _score(judged: Judged) -> float:
    assert judged.lpips is not None
    return float(judged.lpips.mean())


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
