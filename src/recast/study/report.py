"""The report of a study: an HTML page, and CSV files with its numbers and all judgments.

This module owns the files in the folder `report` and how numbers look. The numbers come from
`results.py`. The style and the tables of the page are those of a benchmark's report.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from jinja2 import ChoiceLoader, Environment, PackageLoader
from scipy.stats import binom

from recast.errors import BadCall
from recast.media.atomic_files import atomic
from recast.study import chart, design, results
from recast.study.answers import Answers, Judgment
from recast.study.design import Design
from recast.study.forms import CHOICE
from recast.study.results import Preference, RaterOutcome, Results
from recast.study.statistics import Estimate, span

PAGE, SUMMARY, JUDGMENTS, RATERS = "report.html", "summary.csv", "judgments.csv", "raters.csv"
_NONE = "–"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """The report of a study. Raises `BadCall` for a value out of range."""

    folder: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the study."""
    mistakes: int = 0
    """Number of mistakes in attention checks with which a rater still counts."""

    def __post_init__(self) -> None:
        if self.mistakes < 0:
            raise BadCall(f"`mistakes` must be at least 0, got {self.mistakes}")


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page: a row of headings, and rows of cells."""

    title: str
    head: Sequence[str]
    body: Sequence[Sequence[str]]


def write(config: ReportConfig) -> Path:
    """Write page and CSV files from all answers so far, and return the path of the page.

    Raises `BadCall` for a folder that holds no study, and for a study without an answer that
    counts.
    """
    study = design.read(config.folder)
    answers = Answers(config.folder / design.ANSWERS)
    judgments, raters = answers.judgments(), answers.raters()
    found = results.compute(study, judgments, raters, config.mistakes)
    if not found.counted:
        left_out = sum(one.status != "counted" for one in found.raters)
        raise BadCall(
            f"{config.folder} has no answer that counts yet: {len(raters)} raters have begun, and "
            f"{left_out} of them are left out; see recast study report --help"
        )
    out = config.folder / design.REPORT
    counted = {one.rater.pseudonym for one in found.raters if one.status == "counted"}
    _write_csv(out / SUMMARY, _summary(study, found))
    _write_csv(out / JUDGMENTS, _judgment_rows(study, judgments, counted))
    _write_csv(out / RATERS, map(_rater_row, found.raters))
    loader = ChoiceLoader([PackageLoader("recast.study", "."), PackageLoader("recast.bench", ".")])
    template = Environment(loader=loader, autoescape=True).get_template("study.html.jinja")
    text = template.render(
        study=study,
        facts=_facts(study, found, config.mistakes),
        tables=tables(study, found),
        charts=chart.charts(study, found),
    )
    with atomic(out / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out / PAGE


def tables(study: Design, found: Results) -> list[Table]:
    """The tables of the page. The first is the table that papers print."""
    made = [_preferences(study, found), _strengths(found)] if study.form == CHOICE else []
    if study.form != CHOICE:
        made.append(_ratings(study, found))
    if found.first_place is not None:
        made.append(_side(found.first_place))
    made.append(_alphas(study, found))
    made += [_agreements(study, question, found) for question in found.agreements]
    return [*made, _raters(found)]


def _preferences(study: Design, found: Results) -> Table:
    head = ["in favour, %", "exact interval", "over raters", "judgments", "raters"]
    body = [
        [
            one.other if study.ours else f"{one.system} against {one.other}",
            f"{one.fraction.value:.2%}".removesuffix("%"),
            span(one.exact, 2, 100),
            _NONE if one.fraction.interval is None else span(one.fraction.interval, 2, 100),
            str(one.judgments),
            str(one.raters),
        ]
        for one in found.preferences
    ]
    if study.ours:
        return Table(f"Judgments in favour of {study.ours}", ["compared with", *head], body)
    return Table("Judgments in favour of the first system", ["systems", *head], body)


def _strengths(found: Results) -> Table:
    body = [[name, score.text(3)] for name, score in found.strengths.items()]
    return Table("Bradley-Terry scores", ["system", "score, over raters"], body)


def _ratings(study: Design, found: Results) -> Table:
    cells = {(one.system, one.question): one for one in found.ratings}
    body = []
    for system in study.systems:
        own = [cells.get((system, question.name)) for question in study.questions]
        texts = [_NONE if one is None else one.mean.text(2) for one in own]
        body.append([system, *texts, str(max((one.judgments for one in own if one), default=0))])
    names = [question.name for question in study.questions]
    return Table("Mean ratings from 1 to 5, over raters", ["system", *names, "judgments"], body)


def _side(first: Preference) -> Table:
    cells = [f"{first.fraction.value:.2%}", span(first.exact, 2, 100), str(first.judgments)]
    title = "Choices of the left video (50 % without a habit, since the sides are balanced)"
    return Table(title, ["left", "exact interval, %", "judgments"], [cells])


def _alphas(study: Design, found: Results) -> Table:
    scale = "nominal" if study.form == CHOICE else "ordinal"
    body = [[name, _number(alpha)] for name, alpha in found.alphas.items()]
    return Table(
        "Agreement of the raters with each other",
        ["question", f"Krippendorff's alpha, {scale}"],
        body,
    )


def _agreements(study: Design, question: str, found: Results) -> Table:
    arrows = {"higher": "↑", "lower": "↓"}
    body = [
        [
            f"{one.metric} {arrows.get(study.metrics[one.metric], '→1')}",
            _NONE if one.within is None else one.within.text(3),
            str(one.pairs),
            _number(one.systems),
        ]
        for one in found.agreements[question]
    ]
    head = ["metric", "tau within cases, over clips", "pairs", "tau of the systems' means"]
    return Table(f"Agreement of people with metrics (Kendall's tau-b): {question}", head, body)


def _raters(found: Results) -> Table:
    explained = {
        "counted": "counted",
        "failed": "left out: failed the attention checks",
        "unchecked": "left out: answered no attention check yet",
    }
    body = []
    for status, text in explained.items():
        own = [one for one in found.raters if one.status == status]
        finished = sum(one.rater.answered == one.rater.total for one in own)
        answered = sum(one.rater.answered for one in own)
        body.append([text, str(len(own)), str(finished), str(answered)])
    return Table("Raters", ["", "raters", "finished", "answers, with checks"], body)


def _facts(study: Design, found: Results, mistakes: int) -> list[tuple[str, str]]:
    counted = [one for one in found.raters if one.status == "counted"]
    times = [one.seconds for one in counted if one.seconds is not None]
    guess = binom.cdf(mistakes, study.checks_per_rater, 0.5) if study.form == CHOICE else None
    passes = "" if guess is None else f"; who guesses passes in {guess:.1%} of all cases"
    checks = f"{study.checks_per_rater} for each rater, {mistakes} mistakes allowed{passes}"
    return [
        ("form", study.form),
        ("systems", " | ".join(study.systems)),
        ("clips and prompts", str(len(study.cases))),
        ("items", f"{len(study.judged)}, of which each rater sees {study.items_per_rater}"),
        ("judgments that count", str(len(found.counted))),
        ("raters who count", f"{len(counted)} of {len(found.raters)}"),
        ("attention checks", checks if study.checks_per_rater else "none"),
        (
            "seconds for an item",
            f"{sorted(times)[len(times) // 2]:.1f} (median)" if times else _NONE,
        ),
    ]


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}"


# --- CSV ------------------------------------------------------------------------------------------


def _summary(study: Design, found: Results) -> list[dict[str, Any]]:
    """Every number of the page, one row each."""
    lines: list[dict[str, Any]] = []
    for one in found.preferences:
        names: dict[str, Any] = {"system": one.system, "other": one.other}
        names |= {"judgments": one.judgments, "raters": one.raters}
        exact = Estimate(one.fraction.value, one.exact)
        lines.append(_line("fraction in favour", exact, "exact", **names))
        lines.append(_line("fraction in favour", one.fraction, "over raters", **names))
    for system, score in found.strengths.items():
        lines.append(_line("Bradley-Terry score", score, "over raters", system=system))
    for rating in found.ratings:
        names = {"system": rating.system, "question": rating.question}
        names |= {"judgments": rating.judgments, "raters": rating.raters}
        lines.append(_line("mean rating", rating.mean, "over raters", **names))
    for question, alpha in found.alphas.items():
        if alpha is not None:
            lines.append(_line("Krippendorff's alpha", Estimate(alpha, None), question=question))
    for question, own in found.agreements.items():
        for agreement in own:
            names = {"metric": agreement.metric, "question": question}
            if agreement.within is not None:
                lines.append(_line("tau within cases", agreement.within, "over clips", **names))
            if agreement.systems is not None:
                lines.append(_line("tau of systems", Estimate(agreement.systems, None), **names))
    return lines


def _line(quantity: str, estimate: Estimate, interval: str = "", **names: Any) -> dict[str, Any]:
    low, high = estimate.interval or ("", "")
    empty = dict.fromkeys(("system", "other", "question", "metric"), "")
    numbers = {"value": estimate.value, "low": low, "high": high, "interval": interval}
    counts = {"judgments": "", "raters": ""}
    return {"quantity": quantity, **empty, **numbers, **counts, **names}


def _judgment_rows(
    study: Design, judgments: Iterable[Judgment], counted: set[str]
) -> Iterable[dict[str, Any]]:
    """One row for each option and question of each answer."""
    for one in judgments:
        item = study.items[one.item]
        case = study.cases[item.case]
        for place, option in enumerate(one.shown):
            for question, value in zip(study.questions, one.scores[option], strict=True):
                yield {
                    "rater": one.rater,
                    "counted": "yes" if one.rater in counted else "no",
                    "item": one.item,
                    "check": "yes" if item.check else "no",
                    "clip": case.clip,
                    "prompt": case.prompt,
                    "seed": case.seed,
                    "place": place,
                    "option": option,
                    "question": question.name,
                    "value": value,
                    "seconds": one.seconds,
                }


def _rater_row(one: RaterOutcome) -> dict[str, Any]:
    return {
        "rater": one.rater.pseudonym,
        "status": one.status,
        "answered": one.rater.answered,
        "items": one.rater.total,
        "checks": one.checks,
        "mistakes": one.mistakes,
        "median_seconds": "" if one.seconds is None else round(one.seconds, 3),
    }


def _write_csv(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    table = list(lines)
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
