"""The statistics of a study against closed forms, published tables and another library."""

import choix
import numpy as np
import pytest

from recast.study.statistics import (
    bradley_terry,
    clustered_bradley_terry,
    clustered_ratio,
    exact_interval,
    krippendorff_alpha,
)

NONE = np.nan
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, 12
# units, five values, missing data.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
    [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
]
UNITS = [[value for value in unit if not np.isnan(value)] for unit in np.array(OBSERVERS).T]


def test_alpha_of_the_published_example() -> None:
    assert krippendorff_alpha(UNITS, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(UNITS, "ordinal") == pytest.approx(0.815, abs=5e-4)
    assert krippendorff_alpha(UNITS, "interval") == pytest.approx(0.849, abs=5e-4)


def test_alpha_at_its_bounds() -> None:
    assert krippendorff_alpha([[1, 1], [2, 2, 2], [5]], "ordinal") == 1
    assert krippendorff_alpha([[1, 1], [1, 1]], "nominal") is None
    assert krippendorff_alpha([[1], [2]], "nominal") is None
    # Two observers who always differ: every coincidence is a difference, and 2/3 are expected.
    assert krippendorff_alpha([[0, 1], [1, 0]], "nominal") == pytest.approx(1 - 1 / (2 / 3))
    guesses = np.random.default_rng(0).integers(0, 2, (2000, 5))
    assert krippendorff_alpha(guesses.tolist(), "nominal") == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    [
        # Closed forms: with no success the upper end is 1 - 0.025^(1/n).
        (0, 10, (0, 1 - 0.025 ** (1 / 10))),
        (10, 10, (0.025 ** (1 / 10), 1)),
        # Clopper and Pearson's interval for 1 of 2: the ends solve p^2 = 0.025 for both sides.
        (1, 2, (1 - np.sqrt(0.975), np.sqrt(0.975))),
    ],
)
def test_exact_intervals(successes: int, trials: int, interval: tuple[float, float]) -> None:
    assert exact_interval(successes, trials) == pytest.approx(interval)


def test_raters_who_agree_with_themselves_give_a_wide_interval() -> None:
    """20 raters, half of whom always say yes: the fraction has the interval of 20 coins, not that
    of 20 x 50."""
    found = clustered_ratio([50] * 10 + [0] * 10, [50] * 20)
    assert found.value == 0.5
    assert found.interval is not None
    low, high = found.interval
    half = 2.093 * np.sqrt(0.25 / 19)  # Student's t with 19 degrees of freedom
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.02)
    assert exact_interval(500, 1000)[0] > low


def test_intervals_over_few_raters_hold_the_truth_as_often_as_they_say() -> None:
    """Where plain percentiles hold it in 90 % of all studies."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        found = clustered_ratio(rng.normal(0, 1, 10).tolist(), [1] * 10)
        assert found.interval is not None
        inside += found.interval[0] <= 0 <= found.interval[1]
    assert 0.93 <= inside / 400 <= 0.97


def test_raters_with_more_judgments_count_more() -> None:
    assert clustered_ratio([3, 0], [3, 1]).value == 0.75
    assert clustered_ratio([3], [4]).interval is None


def test_scores_of_two_systems_are_the_log_odds() -> None:
    """With half a win more on each side: 29.5 to 9.5."""
    scores = bradley_terry(np.array([[0.0, 29], [9, 0]]))
    assert scores == pytest.approx([np.log(29.5 / 9.5) / 2, -np.log(29.5 / 9.5) / 2])


def test_scores_of_a_circle_are_equal() -> None:
    """Each wins against one and loses against the other as often."""
    wins = np.array([[0.0, 7, 3], [3, 0, 7], [7, 3, 0]])
    assert bradley_terry(wins) == pytest.approx([0, 0, 0])


def test_scores_of_a_hand_worked_tournament() -> None:
    """Strengths 4 : 2 : 1, which are log 2 apart, and counts in exactly these odds: 4 to 2, 4 to 1
    and 2 to 1. Half a win is taken off here because it is added there."""
    wins = np.array([[0, 20, 24], [10, 0, 20], [6, 10, 0.0]]) - 0.5 * (1 - np.eye(3))
    assert bradley_terry(wins) == pytest.approx([np.log(2), 0, -np.log(2)])


def test_scores_are_those_of_choix() -> None:
    rng = np.random.default_rng(0)
    for systems in (3, 6):
        wins = rng.integers(0, 30, (systems, systems)).astype(float)
        np.fill_diagonal(wins, 0)
        half = wins + 0.5 * (1 - np.eye(systems))
        expected = choix.ilsr_pairwise_dense(half, max_iter=1000, tol=1e-12)
        assert bradley_terry(wins) == pytest.approx(expected, abs=1e-6)


def test_a_system_that_always_wins_has_a_finite_score() -> None:
    scores = bradley_terry(np.array([[0.0, 1000], [0, 0]]))
    assert scores[0] - scores[1] == pytest.approx(np.log(1000.5 / 0.5))


def test_systems_that_no_comparison_connects_have_no_scores() -> None:
    """0 and 1 were compared, and so were 2 and 3, but nothing says how the two groups compare."""
    wins = np.zeros((3, 4, 4))
    wins[:, 0, 1] = wins[:, 2, 3] = 5
    assert clustered_bradley_terry(wins) == []
    wins[0, 1, 2] = 1  # by one rater only, without whom a draw is left out
    wins[1, 2, 1] = 3
    found = clustered_bradley_terry(wins)
    assert all(one.interval is not None and np.isfinite(one.interval).all() for one in found)


def test_many_sets_of_counts_are_solved_at_once() -> None:
    wins = np.random.default_rng(1).integers(0, 9, (5, 4, 4)).astype(float)
    wins[:, range(4), range(4)] = 0
    assert bradley_terry(wins) == pytest.approx(np.array([bradley_terry(one) for one in wins]))


def test_intervals_of_scores_hold_the_truth_as_often_as_they_say() -> None:
    """60 studies of 40 raters: 95 % of 120 intervals of differences, up to what chance allows."""
    rng = np.random.default_rng(2)
    true = np.array([0.6, 0.0, -0.6])
    chance = 1 / (1 + np.exp(true[None] - true[:, None]))
    inside = 0
    for _ in range(60):
        upper = np.triu(rng.binomial(8, np.broadcast_to(chance, (40, 3, 3))), 1).astype(float)
        wins = upper + np.transpose(np.triu(8 - upper, 1), (0, 2, 1))
        for score, expected in zip(clustered_bradley_terry(wins), true, strict=True):
            assert score.interval is not None
            inside += score.interval[0] <= expected <= score.interval[1]
    assert 0.90 <= inside / 180 <= 0.99
