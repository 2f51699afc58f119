"""A simulated panel: raters whose preferences are known, to test a study and its statistics.

Every simulated rater gets the items that a person would get, and answers at once. The design is
marked, so that the report says that its answers are simulated. Before a study it also tells how
wide the intervals will be.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recast.errors import BadCall
from recast.study import assignment, design
from recast.study.answers import Answers
from recast.study.assignment import Shown
from recast.study.design import SHUFFLED, SOURCE, Design
from recast.study.forms import CHOICE, HIGHEST, LOWEST, Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """What the simulated raters think."""

    strengths: Mapping[str, Sequence[float]]
    """For each system one number for each question. For 2afc it is the Bradley-Terry score; for
    ratings it is the mean of the opinions before they are rounded to 1 to 5."""
    spread: float = 0.0
    """Standard deviation of a rater's own deviation from each of these numbers."""
    noise: float = 0.8
    """Standard deviation of a rating around a rater's own number."""
    careless: int = 0
    """Number of raters who answer everything at random, also the attention checks."""


def simulate(folder: Path, panel: Panel, raters: int, seed: int = 0) -> None:
    """Let `raters` simulated raters answer all their items. Raises `BadCall` if the
    study has raters already, or if the panel has no opinion about a system."""
    study = design.read(folder)
    answers = Answers(folder / design.ANSWERS, durable=False)
    if answers.raters():
        raise BadCall(f"{folder} has raters already; simulate in the folder of a new study")
    for system in study.systems:
        if len(panel.strengths.get(system, ())) != len(study.questions):
            raise BadCall(
                f"the panel needs {len(study.questions)} numbers for the system {system!r}, got "
                f"{panel.strengths.get(system)}"
            )
    design.write(folder, replace(study, simulated=True))
    rng = random.Random(seed)
    for number in range(raters):
        code = answers.join(
            lambda counts, rater: assignment.assign(study, counts, rater), study.max_raters, now=0.0
        )
        rater = answers.rater(code)
        assert rater is not None
        own = {
            name: [rng.gauss(value, panel.spread) for value in values]
            for name, values in panel.strengths.items()
        }
        is_careless = number < panel.careless
        said = [
            (_answer(study, shown, panel, own, is_careless, rng), _seconds(study, shown, rng))
            for shown in answers.assignments(rater.number)
        ]
        answers.add_all(rater.number, said, now=0.0)


def _answer(
    study: Design,
    shown: Shown,
    panel: Panel,
    own: Mapping[str, Sequence[float]],
    is_careless: bool,
    rng: random.Random,
) -> Scores:
    if study.items[shown.item].check and not is_careless:
        best, worst = (1, 0) if study.form == CHOICE else (HIGHEST, LOWEST)
        questions = len(study.questions)
        return {SOURCE: [best] * questions, SHUFFLED: [worst] * questions}
    if study.form == CHOICE:
        one, other = shown.options
        chance = 0.5 if is_careless else 1 / (1 + math.exp(own[other][0] - own[one][0]))
        chosen = rng.random() < chance
        return {one: [int(chosen)], other: [int(not chosen)]}
    if is_careless:
        numbers = range(len(study.questions))
        return {name: [rng.randint(LOWEST, HIGHEST) for _ in numbers] for name in shown.options}
    return {
        name: [_rounded(rng.gauss(value, panel.noise)) for value in own[name]]
        for name in shown.options
    }


def _rounded(value: float) -> int:
    return min(max(round(value), LOWEST), HIGHEST)


def _seconds(study: Design, shown: Shown, rng: random.Random) -> float:
    return round(study.items[shown.item].min_play + rng.expovariate(0.5), 3)
