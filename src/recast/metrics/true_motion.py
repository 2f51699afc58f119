"""True motion: where the subject is against where it should be, in a world that knows both.

What every estimated metric is measured by. The shapes world's oracle finds the subject in the
pixels; nothing is tracked.
"""

from collections.abc import Callable, Sequence

import numpy as np

from recast.metrics.base import Array, Judged, Metric, Need, by_name

LOOKS = ("colour", "shape", "background")


def correlation(found: Array, path: Array) -> float:
    """Correlation in [-1, 1] of two paths (F, 2), each about its own mean, over the frames in which
    both are known; 0 where either stands still or is hardly ever seen."""
    both = ~(np.isnan(found) | np.isnan(path)).any(-1)
    if both.sum() < max(3, len(found) // 2):
        return 0.0
    a, b = found[both] - found[both].mean(0), path[both] - path[both].mean(0)
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float((a * b).sum() / scale) if scale > 1e-9 else 0.0


def distance(found: Array, path: Array) -> float:
    """Mean distance of two paths (F, 2), in frame widths; frames without a subject count as half
    a frame, about what a random place would give."""
    apart = np.linalg.norm(found - path, axis=-1)
    return float(np.where(np.isnan(apart), 0.5, apart).mean())


def _correlation(judged: Judged) -> float:
    assert judged.truth is not None
    return correlation(judged.truth.found, judged.truth.path)


def _distance(judged: Judged) -> float:
    assert judged.truth is not None
    return distance(judged.truth.found, judged.truth.path)


def _overlap(judged: Judged) -> float:
    assert judged.truth is not None
    return judged.truth.overlap


def _camera(judged: Judged) -> float:
    assert judged.truth is not None
    assert judged.truth.camera is not None
    return judged.truth.camera


def _right(name: str) -> Callable[[Judged], float]:
    def score(judged: Judged) -> float:
        assert judged.truth is not None
        return float(judged.truth.right[name])

    return score


def _look(judged: Judged) -> float:
    assert judged.truth is not None
    return float(np.mean([judged.truth.right[name] for name in LOOKS]))


def _metric(
    name: str,
    title: str,
    unit: str,
    score: Callable[[Judged], float],
    higher_is_better: bool = True,
    needs: Sequence[Need] = (),
) -> Metric:
    return Metric(
        name=name,
        title=title,
        higher_is_better=higher_is_better,
        unit=unit,
        needs=frozenset({"truth", *needs}),
        score=score,
    )


METRICS = by_name(
    _metric("true_motion", "true path correlation", "correlation", _correlation),
    _metric("true_distance", "true path distance", "frame widths", _distance, False),
    _metric("true_structure", "overlap of the subject with the source's", "IoU", _overlap),
    _metric("camera_error", "camera's error", "frame widths", _camera, False, ["camera"]),
    _metric("true_look", "what the prompt names is shown", "share", _look),
    *(
        _metric(f"{name}_right", f"the prompt's {name} is shown", "share", _right(name))
        for name in LOOKS
    ),
)
