"""Agreement of people with metrics: Kendall's tau, within cases and over systems.

Within a case, two results of the same source and prompt are concordant if people and the metric
prefer the same one. Tau-b over all such pairs does not count what no rater compares, the results of
different sources. This module refuses to know how a metric is computed.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from recast.study.statistics import Estimate, percentiles, resampled

Pair = tuple[str, float, float]
"""The clip; the difference in what people say; the difference of the metric, positive if better."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far one metric agrees with people."""

    metric: str
    within: Estimate | None
    """Tau-b of all pairs of results of one case, with an interval from resampled clips."""
    pairs: int
    """The number of those pairs."""
    systems: float | None
    """Tau-b of the means of the systems."""


def goodness(value: float, better: str) -> float:
    """A number that is larger for a better value of a metric."""
    return {"higher": value, "lower": -value}.get(better, -abs(value - 1))


def agreement(
    metric: str, pairs: Sequence[Pair], by_system: Mapping[str, tuple[float, float]]
) -> Agreement:
    """The agreement from pairs within cases, and from (people, metric) of each system."""
    return Agreement(metric, within_cases(pairs), len(pairs), over_systems(by_system.values()))


def within_cases(pairs: Sequence[Pair]) -> Estimate | None:
    """Tau-b of pairs of results; None if people or the metric tell no pair apart.

    For each pair only the signs count: (concordant - discordant) / sqrt(told apart by people ·
    told apart by the metric).
    """
    by_clip: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for clip, people, metric in pairs:
        by_clip[clip].append((np.sign(people), np.sign(metric)))
    table = np.array(
        [
            [
                sum(people * metric for people, metric in own),
                sum(people != 0 for people, _ in own),
                sum(metric != 0 for _, metric in own),
            ]
            for own in by_clip.values()
        ]
    )
    if not len(table) or not table[:, 1].any() or not table[:, 2].any():
        return None
    value = float(_tau(table.sum(0)))
    if len(table) < 2:
        return Estimate(value, None)
    draws = _tau((resampled(len(table)) @ table).T)
    return Estimate(value, percentiles(draws[np.isfinite(draws)], value, len(table)))


def _tau(sums: np.ndarray) -> np.ndarray:
    difference, people, metric = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(difference / np.sqrt(people * metric))


def over_systems(values: Iterable[tuple[float, float]]) -> float | None:
    """Tau-b of (people, metric) of the systems; None for fewer than two, or for equal values."""
    table = list(values)
    if len(table) < 2:
        return None
    tau = float(kendalltau(*zip(*table, strict=True)).statistic)
    return tau if math.isfinite(tau) else None


def pairs_of(
    clip: str, people: Mapping[str, float], metric: Mapping[str, float], better: str
) -> list[Pair]:
    """All pairs of results of one case that have both a judgment of people and a metric."""
    both = [name for name in people if name in metric]
    return [
        (
            clip,
            people[one] - people[other],
            goodness(metric[one], better) - goodness(metric[other], better),
        )
        for one, other in itertools.combinations(both, 2)
    ]
