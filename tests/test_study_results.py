"""The results of a study with a simulated panel whose preferences are known."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from recast.errors import BadCall
from recast.study import design, panel, results
from recast.study.answers import Answers, Judgment
from recast.study.design import SHUFFLED, SOURCE
from recast.study.panel import Panel
from recast.study.results import Results

from .studies import clipless

# DMT (arXiv 2311.17009), table 1: judgments in favour of DMT.
TABLE_1 = {"TokenFlow": 0.7257, "Control-A-Video": 0.8450, "Tune-A-Video": 0.7780}
STRENGTHS = {"DMT": [0.0]} | {
    name: [math.log((1 - fraction) / fraction)] for name, fraction in TABLE_1.items()
}


def computed(folder: Path, mistakes: int = 0) -> Results:
    answers = Answers(folder / design.ANSWERS)
    return results.compute(design.read(folder), answers.judgments(), answers.raters(), mistakes)


def two_afc(folder: Path, opinions: Panel, raters: int) -> Results:
    """The study of DMT, with 54 clips and prompts."""
    clipless(folder, "2afc", list(STRENGTHS), 54, items_per_rater=47)
    panel.simulate(folder, opinions, raters)
    return computed(folder)


def expected_rating(value: float, noise: float) -> float:
    """The mean of a normal opinion that is rounded to 1, 2, 3, 4 or 5."""
    ends = norm.cdf(np.array([1.5, 2.5, 3.5, 4.5]), value, noise)
    return float(np.diff([0, *ends, 1]) @ np.arange(1, 6))


@pytest.mark.slow
def test_150_raters_are_recovered_within_their_intervals(tmp_path: Path) -> None:
    """The design of DMT: 150 people, 7000 judgments, here 7050."""
    found = two_afc(tmp_path, Panel(strengths=STRENGTHS), 150)
    assert len(found.counted) == 7050
    assert {one.other: (one.system, one.raters) for one in found.preferences} == dict.fromkeys(
        TABLE_1, ("DMT", 150)
    )
    for one in found.preferences:
        expected = TABLE_1[one.other]
        assert one.exact[0] <= expected <= one.exact[1]
        assert one.fraction.interval is not None
        assert one.fraction.interval[0] <= expected <= one.fraction.interval[1]
        assert one.exact[1] - one.exact[0] < 0.04
    assert list(found.strengths) == sorted(STRENGTHS, key=lambda name: -STRENGTHS[name][0])
    mean = np.mean(list(STRENGTHS.values()))
    for name, score in found.strengths.items():
        assert score.interval is not None
        assert score.interval[0] <= STRENGTHS[name][0] - mean <= score.interval[1]
    assert found.first_place is not None
    assert found.first_place.exact[0] < 0.5 < found.first_place.exact[1]


def test_raters_who_differ_widen_the_interval_over_raters(tmp_path: Path) -> None:
    """The exact interval does not know that judgments of one rater are alike."""
    found = two_afc(tmp_path, Panel(strengths=STRENGTHS, spread=2), 25)
    for one in found.preferences:
        assert one.fraction.interval is not None
        clustered = one.fraction.interval[1] - one.fraction.interval[0]
        assert clustered > 1.3 * (one.exact[1] - one.exact[0])


def test_careless_raters_are_left_out_and_counted(tmp_path: Path) -> None:
    found = two_afc(tmp_path, Panel(strengths=STRENGTHS, careless=8), 20)
    statuses = [one.status for one in found.raters]
    wrong = [one.mistakes for one in found.raters]
    assert wrong[8:] == [0] * 12
    assert statuses == ["failed" if count else "counted" for count in wrong]
    assert statuses.count("failed") >= 5  # a guess passes 3 checks in one of 8 cases
    failed = {one.rater.pseudonym for one in found.raters if one.status == "failed"}
    assert not failed & {one.rater for one in found.counted}
    assert len(found.counted) == 47 * (20 - len(failed))
    allowed = [one.status for one in computed(tmp_path, mistakes=3).raters]
    assert allowed == ["counted"] * 20


@pytest.mark.slow
def test_three_questions_are_recovered_within_their_intervals(tmp_path: Path) -> None:
    """In six studies of 15 raters: 95 % of 54 intervals, up to what chance allows."""
    opinions = {"ours": [4.2, 4.0, 4.4], "a": [3.1, 2.5, 2.0], "b": [2.2, 4.3, 3.0]}
    inside = 0
    for seed in range(6):
        folder = tmp_path / str(seed)
        names = [
            one.name for one in clipless(folder, "three-questions", list(opinions), 6).questions
        ]
        panel.simulate(folder, Panel(strengths=opinions, noise=0.8), 15, seed)
        found = computed(folder)
        assert len(found.ratings) == 9
        for one in found.ratings:
            expected = expected_rating(opinions[one.system][names.index(one.question)], 0.8)
            assert one.mean.interval is not None
            inside += one.mean.interval[0] <= expected <= one.mean.interval[1]
            assert (one.judgments, one.raters) == (6 * 15, 15)
        assert not found.preferences
        assert not found.strengths
        assert found.first_place is None
        assert all(alpha is not None and 0.3 < alpha < 0.9 for alpha in found.alphas.values())
    assert inside >= 48


def judgment(rater: str, item: int, **scores: list[int]) -> Judgment:
    return Judgment(rater, item, tuple(scores), scores, 3.0, 0.0)


def test_results_of_a_hand_worked_study(tmp_path: Path) -> None:
    """Two cases, systems x, y and z; x is compared with y (items 0, 2) and with z (1, 3)."""
    scores = {"x": [5.0, 1.0], "y": [3.0, 2.0], "z": [6.0, 0.0]}
    made = clipless(tmp_path, "2afc", ["x", "y", "z"], 2, scores, checks_per_rater=0)
    said = [
        judgment("one", 0, x=[1], y=[0]),
        judgment("one", 1, z=[0], x=[1]),
        judgment("two", 0, y=[0], x=[1]),
        judgment("two", 3, x=[0], z=[1]),
        judgment("three", 0, x=[1], y=[0]),
        judgment("three", 2, x=[0], y=[1]),
    ]
    raters = [
        results.Rater(place, name, 2, 2) for place, name in enumerate(("one", "two", "three"))
    ]
    found = results.compute(made, said, raters)
    x_to_y, x_to_z = found.preferences
    assert (x_to_y.system, x_to_y.other, x_to_y.wins, x_to_y.judgments) == ("x", "y", 3, 4)
    assert (x_to_z.system, x_to_z.other, x_to_z.wins, x_to_z.judgments) == ("x", "z", 1, 2)
    # A star: each score is a log odds. 3.5 to 1.5 against y, 1.5 to 1.5 against z.
    assert found.strengths["x"].value - found.strengths["y"].value == pytest.approx(
        math.log(3.5 / 1.5)
    )
    assert found.strengths["x"].value == pytest.approx(found.strengths["z"].value)
    assert found.first_place is not None
    assert (found.first_place.wins, found.first_place.judgments) == (2, 6)
    assert found.alphas == {"preference": None}  # only item 0 has two judgments, and they are equal
    (agreement,) = found.agreements["preference"]
    # Pairs: item 0 agrees (x, 5 over 3), 1 does not (x, 5 under 6), 2 agrees (y, 2 over 1), and
    # 3 does not (z, 0 under 1).
    assert (agreement.metric, agreement.pairs) == ("m", 4)
    assert agreement.within is not None
    assert agreement.within.value == 0


def test_a_rater_without_an_answered_check_does_not_count_yet(tmp_path: Path) -> None:
    made = clipless(tmp_path, "2afc", ["x", "y"], 2)
    passed = {SOURCE: [1], SHUFFLED: [0]}
    said = [
        judgment("one", 0, x=[1], y=[0]),
        judgment("two", 0, x=[1], y=[0]),
        judgment("two", made.checks[0], **passed),
    ]
    raters = [results.Rater(place, name, 1, 5) for place, name in enumerate(("one", "two"))]
    found = results.compute(made, said, raters)
    assert [one.status for one in found.raters] == ["unchecked", "counted"]
    assert [one.rater for one in found.counted] == ["two"]


def test_a_panel_answers_a_new_study_only(tmp_path: Path) -> None:
    clipless(tmp_path, "2afc", ["x", "y"], 2)
    with pytest.raises(BadCall, match="the panel needs 1 numbers for the system 'y', got None"):
        panel.simulate(tmp_path, Panel(strengths={"x": [0]}), 2)
    assert not design.read(tmp_path).simulated
    panel.simulate(tmp_path, Panel(strengths={"x": [0], "y": [1]}), 2)
    assert design.read(tmp_path).simulated
    with pytest.raises(BadCall, match="has raters already"):
        panel.simulate(tmp_path, Panel(strengths={"x": [0], "y": [1]}), 2)
