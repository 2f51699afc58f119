"""The metrics of the menagerie's articulated subject, by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from recast.metrics import true_figure, true_motion
from recast.metrics.base import ClipView, FigureTruth, GroundTruth, MetricInput, NoValue

NAN = math.nan
FIGURE = FigureTruth(
    present=np.array([True, True, False, True]),
    gait_correct=True,
    extent=np.array([0.2, 0.2, NAN, 0.4]),
    expected_extent=np.array([0.1, 0.1, 0.1, 0.1]),
    facing=np.array([0.9, -0.5, NAN, 0.8]),
    expected_facing=np.array([1.0, 0.8, 0.5, NAN]),
    layout=0.75,
    overlap=0.7,
    target_overlap=0.4,
)


def score(name: str, figure: FigureTruth = FIGURE) -> float | NoValue:
    truth = GroundTruth(
        world="menagerie",
        expected_path=np.zeros((4, 2)),
        detected_path=np.zeros((4, 2)),
        attribute_correct={"kind": False, "colour": True, "scene": True},
        iou=0.0,
        camera_error=NoValue("unknown"),
        figure=figure,
    )
    view = ClipView(frames=np.zeros((4, 8, 8, 3), np.uint8))
    known = {**true_motion.METRICS, **true_figure.METRICS}
    return known[name].score(MetricInput(result=view, ground_truth=truth))


def test_values_agree_with_a_calculation_by_hand() -> None:
    assert score("subject_present") == 0.75
    assert score("gait_right") == 1
    assert score("layout_kept") == 0.75
    # Log ratios are ln 2, ln 2, lost, ln 4; their median is ln 2.
    assert score("scale_error") == pytest.approx(2 * math.log(2) / 4)
    # The last frame shows the source from the front; in the third there is no subject.
    assert score("facing_right") == pytest.approx(1 / 3)
    assert score("silhouette_leakage") == pytest.approx(0.5)
    assert score("true_look") == pytest.approx(2 / 3)
    assert [score(f"{name}_right") for name in ("kind", "colour", "scene")] == [0, 1, 1]
    assert score("camera_error") == NoValue("unknown")


def test_a_constant_factor_of_the_size_does_not_count() -> None:
    growing = np.geomspace(0.1, 0.2, 4)
    followed = replace(FIGURE, extent=3 * growing, expected_extent=growing)
    assert score("scale_error", followed) == pytest.approx(0)
    constant = replace(followed, extent=np.full(4, 0.3))
    assert score("scale_error", constant) == pytest.approx(math.log(2) / 3)


def test_a_clip_without_a_subject_has_the_worst_values() -> None:
    lost = np.full(4, NAN)
    nothing = replace(FIGURE, present=np.zeros(4, bool), extent=lost, facing=lost)
    assert score("subject_present", nothing) == 0
    assert score("facing_right", nothing) == 0
    assert score("scale_error", nothing) == pytest.approx(math.log(2))


def test_the_outline_of_the_source_leaks_wholly_and_that_of_a_target_not_at_all() -> None:
    for overlap, leakage in ((1.0, 1.0), (0.4, 0.0), (0.1, -0.5)):
        assert score("silhouette_leakage", replace(FIGURE, overlap=overlap)) == pytest.approx(
            leakage
        )


@pytest.mark.parametrize(
    ("metric", "field"),
    [
        ("facing_right", "expected_facing"),
        ("layout_kept", "layout"),
        ("silhouette_leakage", "overlap"),
        ("silhouette_leakage", "target_overlap"),
    ],
)
def test_what_is_not_known_has_a_reason(metric: str, field: str) -> None:
    reason = NoValue("the reason")
    assert score(metric, replace(FIGURE, **{field: reason})) == reason


def test_a_source_that_is_never_seen_from_the_side_faces_nowhere() -> None:
    front = replace(FIGURE, expected_facing=np.full(4, NAN))
    assert isinstance(score("facing_right", front), NoValue)
