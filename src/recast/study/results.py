"""What the judgments of a study say: preferences, ratings, agreement, and which raters count.

This module owns what is computed for each form, and which raters are left out. The formulas are in
`statistics.py` and `agreement.py`, and how numbers look is in `report.py`.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recast.study.agreement import Agreement, Pair, agreement, goodness, pairs_of
from recast.study.answers import Judgment, Rater
from recast.study.design import SHUFFLED, SOURCE, Design
from recast.study.forms import CHOICE
from recast.study.statistics import (
    Estimate,
    Interval,
    clustered_bradley_terry,
    clustered_ratio,
    exact_interval,
    krippendorff_alpha,
)

Status = Literal["counted", "failed", "unchecked"]


@dataclass(frozen=True, slots=True)
class RaterOutcome:
    """One rater, and whether their judgments count."""

    rater: Rater
    checks: int
    """Number of attention checks that were answered."""
    mistakes: int
    status: Status
    """"failed": too many mistakes. "unchecked": no check was answered yet."""
    seconds: float | None
    """Median of the seconds for an item; None without an answer."""


@dataclass(frozen=True, slots=True)
class Preference:
    """How often one system was preferred to another."""

    system: str
    other: str
    wins: int
    judgments: int
    raters: int
    exact: Interval
    """Clopper-Pearson interval of the fraction."""
    fraction: Estimate
    """With the interval from resampled raters."""


@dataclass(frozen=True, slots=True)
class Rating:
    """The mean of what raters gave a system for one question."""

    system: str
    question: str
    mean: Estimate
    judgments: int
    raters: int


@dataclass(frozen=True, slots=True)
class Results:
    """All numbers of the report. Lists that a form does not have are empty."""

    raters: Sequence[RaterOutcome]
    counted: Sequence[Judgment]
    """The judgments of raters who count, without attention checks."""
    preferences: Sequence[Preference]
    strengths: Mapping[str, Estimate]
    """Bradley-Terry scores; empty as long as no judgments connect all systems."""
    first_place: Preference | None
    """How often the option in the first place was chosen."""
    ratings: Sequence[Rating]
    alphas: Mapping[str, float | None]
    """Krippendorff's alpha for each question."""
    agreements: Mapping[str, Sequence[Agreement]]
    """For each question, the agreement with each metric."""


def compute(
    design: Design, judgments: Sequence[Judgment], raters: Sequence[Rater], mistakes: int = 0
) -> Results:
    """The results of a study. Raters with more than `mistakes` mistakes in attention checks do not
    count, and neither do raters without an answered check in a study that has checks."""
    by_rater: dict[str, list[Judgment]] = defaultdict(list)
    for one in judgments:
        by_rater[one.rater].append(one)
    outcomes = [_outcome(design, one, by_rater[one.pseudonym], mistakes) for one in raters]
    names = {one.rater.pseudonym for one in outcomes if one.status == "counted"}
    counted = [one for one in judgments if one.rater in names and not design.items[one.item].check]
    is_choice = design.form == CHOICE
    pairs = _by_pair(design, counted) if is_choice else {}
    return Results(
        raters=outcomes,
        counted=counted,
        preferences=[_preference(*pair, own) for pair, own in pairs.items()],
        strengths=_strengths(design, counted) if is_choice and counted else {},
        first_place=_first_place(counted) if is_choice and counted else None,
        ratings=[] if is_choice else _ratings(design, counted),
        alphas={
            question.name: _alpha(design, counted, number)
            for number, question in enumerate(design.questions)
        },
        agreements={
            question.name: _agreements(design, counted, number)
            for number, question in enumerate(design.questions)
        }
        if design.metrics
        else {},
    )


def check_is_right(judgment: Judgment) -> bool:
    """Whether the source itself was preferred to its shuffled frames."""
    return sum(judgment.scores[SOURCE]) > sum(judgment.scores[SHUFFLED])


def _outcome(design: Design, rater: Rater, own: Sequence[Judgment], mistakes: int) -> RaterOutcome:
    checks = [check_is_right(one) for one in own if design.items[one.item].check]
    wrong = checks.count(False)
    status: Status = "counted"
    if wrong > mistakes:
        status = "failed"
    elif design.checks_per_rater and not checks:
        status = "unchecked"
    seconds = statistics.median(one.seconds for one in own) if own else None
    return RaterOutcome(rater, len(checks), wrong, status, seconds)


def _by_pair(
    design: Design, counted: Iterable[Judgment]
) -> dict[tuple[str, str], list[tuple[str, bool]]]:
    """For each pair of systems, the rater of each judgment and whether the first one was chosen."""
    pairs: dict[tuple[str, str], list[tuple[str, bool]]] = defaultdict(list)
    for one in counted:
        system, other = design.items[one.item].options
        pairs[system, other].append((one.rater, one.scores[system][0] == 1))
    order = {tuple(design.items[index].options): place for place, index in enumerate(design.judged)}
    return dict(sorted(pairs.items(), key=lambda pair: order[pair[0]]))


def _preference(system: str, other: str, choices: Sequence[tuple[str, bool]]) -> Preference:
    by_rater = _grouped(choices)
    wins = sum(chosen for _, chosen in choices)
    return Preference(
        system=system,
        other=other,
        wins=wins,
        judgments=len(choices),
        raters=len(by_rater),
        exact=exact_interval(wins, len(choices)),
        fraction=clustered_ratio(
            [sum(own) for own in by_rater.values()], [len(own) for own in by_rater.values()]
        ),
    )


def _first_place(counted: Sequence[Judgment]) -> Preference:
    choices = [(one.rater, one.scores[one.shown[0]][0] == 1) for one in counted]
    return _preference("left", "right", choices)


def _strengths(design: Design, counted: Sequence[Judgment]) -> dict[str, Estimate]:
    names = list(dict.fromkeys(one.rater for one in counted))
    rater = {name: place for place, name in enumerate(names)}
    system = {name: place for place, name in enumerate(design.systems)}
    wins = np.zeros((len(names), len(system), len(system)))
    for one in counted:
        (winner,) = (name for name, scores in one.scores.items() if scores[0] == 1)
        (loser,) = (name for name in one.scores if name != winner)
        wins[rater[one.rater], system[winner], system[loser]] += 1
    found = dict(zip(design.systems, clustered_bradley_terry(wins), strict=False))
    return dict(sorted(found.items(), key=lambda one: -one[1].value))


def _ratings(design: Design, counted: Sequence[Judgment]) -> list[Rating]:
    ratings = []
    for system in design.systems:
        for number, question in enumerate(design.questions):
            values = [
                (one.rater, one.scores[system][number]) for one in counted if system in one.scores
            ]
            if values:
                by_rater = _grouped(values)
                mean = clustered_ratio(
                    [sum(own) for own in by_rater.values()], [len(own) for own in by_rater.values()]
                )
                ratings.append(Rating(system, question.name, mean, len(values), len(by_rater)))
    return ratings


def _grouped(values: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for name, value in values:
        groups[name].append(value)
    return groups


def _alpha(design: Design, counted: Iterable[Judgment], number: int) -> float | None:
    """Agreement of raters. A unit is an item, or one option of an item that is rated. The value of
    a choice is 1 if the first system of the item was chosen, in the order of the design."""
    units: dict[tuple[int, str], list[float]] = defaultdict(list)
    for one in counted:
        options = list(design.items[one.item].options)
        for option in options[:1] if design.form == CHOICE else options:
            units[one.item, option].append(one.scores[option][number])
    return krippendorff_alpha(units.values(), "nominal" if design.form == CHOICE else "ordinal")


def _agreements(design: Design, counted: Sequence[Judgment], number: int) -> list[Agreement]:
    people = _people(design, counted, number)
    by_system = _means((system, value) for _, values in people for system, value in values.items())
    found = []
    for metric, better in design.metrics.items():
        pairs: list[Pair] = []
        values: list[tuple[str, float]] = []
        for index, said in people:
            case = design.cases[index]
            scores = {name: own[metric] for name, own in case.scores.items() if metric in own}
            pairs += pairs_of(case.clip, said, scores, better)
        for case in design.cases:
            values += [
                (name, goodness(own[metric], better))
                for name, own in case.scores.items()
                if metric in own
            ]
        means = _means(values)
        both = {name: (by_system[name], means[name]) for name in by_system if name in means}
        found.append(agreement(metric, pairs, both))
    return found


def _people(
    design: Design, counted: Sequence[Judgment], number: int
) -> list[tuple[int, dict[str, float]]]:
    """What people say of the results that they compared: the index of a case with the mean score
    of each system; one entry for each pair of a choice, else one for each case."""

    def place(one: Judgment) -> tuple[int, int]:
        return design.items[one.item].case, one.item if design.form == CHOICE else -1

    grouped: dict[tuple[int, int], list[Judgment]] = defaultdict(list)
    for one in counted:
        grouped[place(one)].append(one)
    return [
        (case, _means((name, own[number]) for one in group for name, own in one.scores.items()))
        for (case, _), group in sorted(grouped.items())
    ]


def _means(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    return {name: sum(own) / len(own) for name, own in _grouped(values).items()}
