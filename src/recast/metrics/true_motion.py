"""True motion: the position of the subject compared with its correct position, in rendered worlds.

The metrics that estimate motion are validated against these. The detector of a world finds the
subject in the pixels, so that these metrics do not depend on a tracker.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np

from recast.metrics.base import ATTRIBUTES, Array, Metric, MetricInput, Need, NoValue, by_name


def correlation(detected: Array, expected: Array) -> float:
    """Correlation in [-1, 1] of two paths (F, 2), each about its mean.

    NaN marks frames without a position; only frames in which both are known count. The value is 0
    if either path stands still, or if both are known in less than half of the frames.
    """
    known = ~(np.isnan(detected) | np.isnan(expected)).any(-1)
    if known.sum() < max(3, len(detected) // 2):
        return 0.0
    a = detected[known] - detected[known].mean(0)
    b = expected[known] - expected[known].mean(0)
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float((a * b).sum() / scale) if scale > 1e-9 else 0.0


def distance(detected: Array, expected: Array) -> float:
    """Mean distance of two paths (F, 2) in frame widths.

    A frame without a subject counts as 0.5, which is about the value of a random position. Frames
    without an expected position are left out; at least one must have one.
    """
    known = ~np.isnan(expected).any(-1)
    distances = np.linalg.norm(detected[known] - expected[known], axis=-1)
    return float(np.where(np.isnan(distances), 0.5, distances).mean())


def _correlation(inputs: MetricInput) -> float:
    assert inputs.ground_truth is not None
    return correlation(inputs.ground_truth.detected_path, inputs.ground_truth.expected_path)


def _distance(inputs: MetricInput) -> float:
    assert inputs.ground_truth is not None
    return distance(inputs.ground_truth.detected_path, inputs.ground_truth.expected_path)


def _overlap(inputs: MetricInput) -> float:
    assert inputs.ground_truth is not None
    return inputs.ground_truth.iou


def _camera(inputs: MetricInput) -> float | NoValue:
    assert inputs.ground_truth is not None
    return inputs.ground_truth.camera_error


def _attribute(name: str) -> Callable[[MetricInput], float]:
    def score(inputs: MetricInput) -> float:
        assert inputs.ground_truth is not None
        return float(inputs.ground_truth.attribute_correct[name])

    return score


def _appearance(inputs: MetricInput) -> float:
    assert inputs.ground_truth is not None
    return float(np.mean(list(inputs.ground_truth.attribute_correct.values())))


def _metric(
    name: str,
    title: str,
    unit: str,
    score: Callable[[MetricInput], float | NoValue],
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


def _attributes() -> Iterator[Metric]:
    """A metric for each attribute; one that a single world has needs a clip of this world."""
    for name in dict.fromkeys(chain.from_iterable(ATTRIBUTES.values())):
        worlds = [world for world, names in ATTRIBUTES.items() if name in names]
        needs = worlds if len(worlds) == 1 else ()
        yield _metric(f"{name}_right", f"correct {name}", "fraction", _attribute(name), needs=needs)


METRICS = by_name(
    _metric("true_motion", "true path correlation", "correlation", _correlation),
    _metric("true_distance", "true path distance", "frame widths", _distance, False),
    _metric("true_structure", "overlap with the subject of the source", "IoU", _overlap),
    _metric("camera_error", "camera error", "frame widths", _camera, False),
    _metric("true_look", "correct attributes", "fraction", _appearance),
    *_attributes(),
)
