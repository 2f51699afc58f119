"""The articulated subject of the menagerie: its gait, facing and size, its landscape, its outline.

DMT (Yatim et al., CVPR 2024) claims that the motion and the layout of the source go over to a
subject of another category, which keeps its own fine-grained motion. Here each part of this claim
is a number. The referee of the menagerie has found the subject in the pixels before.
"""

from collections.abc import Callable

import numpy as np

from recast.metrics.base import FigureTruth, Metric, MetricInput, NoValue, by_name

LOST = float(np.log(2))
"""The size error of a frame without a subject: as much as a subject of half the size has."""


def scale_error(figure: FigureTruth) -> float:
    """Mean distance of the logarithms of the subject's size and the expected size, after their
    median difference is removed; 0.1 is about 10 % of the size."""
    known = ~np.isnan(figure.expected_extent)
    difference = np.log(figure.extent[known]) - np.log(figure.expected_extent[known])
    seen = ~np.isnan(difference)
    if not seen.any():
        return LOST
    distance = np.abs(difference - np.median(difference[seen]))
    return float(np.where(seen, distance, LOST).mean())


def facing_right(figure: FigureTruth) -> float | NoValue:
    """Fraction of the frames with a source that is seen from the side in which the result faces the
    same side."""
    expected = figure.expected_facing
    if isinstance(expected, NoValue):
        return expected
    sideways = ~np.isnan(expected)
    if not sideways.any():
        return NoValue("the subject of the source is never seen from the side")
    return float((figure.facing[sideways] * expected[sideways] > 0).mean())


def silhouette_leakage(figure: FigureTruth) -> float | NoValue:
    """How much of the way from a correct target to the source the outline of the result is: 0 if it
    overlaps with the outline of the source as much as a correct target does, 1 if it is the outline
    of the source. It is below 0 if it overlaps less."""
    overlap, reference = figure.overlap, figure.target_overlap
    for value in (reference, overlap):
        if isinstance(value, NoValue):
            return value
    assert not isinstance(overlap, NoValue)
    assert not isinstance(reference, NoValue)
    return (overlap - reference) / max(1 - reference, 1e-6)


def _gait(figure: FigureTruth) -> float:
    return float(figure.gait_correct)


def _present(figure: FigureTruth) -> float:
    return float(figure.present.mean())


def _layout(figure: FigureTruth) -> float | NoValue:
    return figure.layout


def _metric(
    name: str,
    title: str,
    unit: str,
    score: Callable[[FigureTruth], float | NoValue],
    higher_is_better: bool = True,
) -> Metric:
    def of_input(inputs: MetricInput) -> float | NoValue:
        assert inputs.ground_truth is not None
        assert inputs.ground_truth.figure is not None
        return score(inputs.ground_truth.figure)

    return Metric(
        name=name,
        title=title,
        higher_is_better=higher_is_better,
        unit=unit,
        needs=frozenset({"truth", "menagerie"}),
        score=of_input,
    )


METRICS = by_name(
    _metric("gait_right", "correct gait", "fraction", _gait),
    _metric("facing_right", "correct facing", "fraction of frames", facing_right),
    _metric("scale_error", "size error", "log ratio", scale_error, False),
    _metric("subject_present", "frames with a subject", "fraction of frames", _present),
    _metric("layout_kept", "layout of the landscape", "correlation", _layout),
    _metric(
        "silhouette_leakage",
        "leakage of the source's silhouette",
        "fraction",
        silhouette_leakage,
        False,
    ),
)
