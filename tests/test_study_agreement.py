"""Kendall's tau between people and metrics, in cases that are worked by hand."""

import math

import pytest
from scipy.stats import kendalltau

from recast.study.agreement import agreement, goodness, over_systems, pairs_of, within_cases


def test_tau_within_cases_counts_concordant_and_discordant_pairs() -> None:
    """Three concordant, one discordant, one tie of the metric: (3 - 1) / sqrt(5 · 4)."""
    pairs = [("a", 1, 2), ("a", -1, -0.5), ("b", 0.2, 9), ("b", -3, 1), ("c", 1, 0)]
    found = within_cases(pairs)
    assert found is not None
    assert found.value == pytest.approx(2 / math.sqrt(20))
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1]


def test_tau_of_one_case_is_that_of_scipy() -> None:
    """Where all results belong to one case, tau within cases is tau-b."""
    people = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 2.0, "e": 5.0}
    metric = {"a": 0.1, "b": 0.4, "c": 0.4, "d": 0.2, "e": 0.3}
    found = within_cases(pairs_of("clip", people, metric, "higher"))
    expected = kendalltau(list(people.values()), list(metric.values())).statistic
    assert found is not None
    assert found.value == pytest.approx(expected)
    assert found.interval is None  # one clip cannot be resampled


def test_the_order_of_two_systems_does_not_matter() -> None:
    pairs = [("a", 1.0, 2.0), ("b", -1.0, 0.5), ("c", 2.0, 1.0)]
    turned = [(clip, -people, -metric) for clip, people, metric in pairs]
    one, other = within_cases(pairs), within_cases(turned)
    assert one is not None
    assert one == other


@pytest.mark.parametrize(
    ("better", "order"), [("higher", [3, 2, 1]), ("lower", [1, 2, 3]), ("nearer to 1", [1, 2, 3])]
)
def test_a_better_value_is_larger(better: str, order: list[int]) -> None:
    values = {1: 1.1, 2: 1.5, 3: 2.0}
    assert sorted(values, key=lambda name: -goodness(values[name], better)) == order


def test_a_metric_that_tells_nothing_apart_has_no_tau() -> None:
    assert within_cases([("a", 1, 0), ("b", -1, 0)]) is None
    assert within_cases([("a", 0, 1)]) is None
    assert within_cases([]) is None
    assert over_systems([(1, 2)]) is None
    assert over_systems([(1, 2), (2, 2)]) is None


def test_results_without_a_value_of_the_metric_are_left_out() -> None:
    pairs = pairs_of("clip", {"a": 1.0, "b": 0.0, "c": 2.0}, {"a": 5.0, "c": 4.0}, "lower")
    assert pairs == [("clip", -1.0, -1.0)]
    found = agreement("m", pairs, {"a": (1.0, 5.0), "b": (0.0, 4.0), "c": (2.0, 6.0)})
    assert (found.metric, found.pairs, found.systems) == ("m", 1, pytest.approx(1))
