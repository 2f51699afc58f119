"""The charts of a report as positions of points and bars, which the page draws as SVG.

This module owns the geometry only; the numbers come from `results.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from recast.study.design import Design
from recast.study.forms import CHOICE, HIGHEST, LOWEST
from recast.study.results import Results
from recast.study.statistics import Estimate


@dataclass(frozen=True, slots=True)
class Bar:
    """A point with its interval; positions are from 0 at the left to 100 at the right."""

    label: str
    text: str
    point: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Chart:
    """One horizontal axis with a line for each number."""

    title: str
    ticks: Sequence[tuple[float, str]]
    """Position and text of each mark of the axis."""
    middle: float | None
    """Position of the line that says "no difference"."""
    bars: Sequence[Bar]

    @property
    def label_width(self) -> int:
        """The space for the labels, in units of the picture."""
        return 20 + round(6.8 * max(len(bar.label) for bar in self.bars))


def charts(study: Design, found: Results) -> list[Chart]:
    """The fractions in favour, or the mean ratings for each question."""
    if study.form == CHOICE:
        rows = [
            (one.other if study.ours else f"{one.system} against {one.other}", one.fraction)
            for one in found.preferences
        ]
        title = f"in favour of {study.ours or 'the first system'}, %"
        ticks = [(tick, f"{tick:.0f}") for tick in (0.0, 25.0, 50.0, 75.0, 100.0)]
        return [Chart(title, ticks, 50.0, [_bar(*row, 0, 1, "{:.1%}") for row in rows])]
    scale = range(LOWEST, HIGHEST + 1)
    ticks = [(100 * (tick - LOWEST) / (HIGHEST - LOWEST), str(tick)) for tick in scale]
    return [
        Chart(
            question.name,
            ticks,
            None,
            [
                _bar(one.system, one.mean, LOWEST, HIGHEST, "{:.2f}")
                for one in found.ratings
                if one.question == question.name
            ],
        )
        for question in study.questions
    ]


def _bar(label: str, estimate: Estimate, lowest: float, highest: float, text: str) -> Bar:
    def position(value: float) -> float:
        return round(100 * (value - lowest) / (highest - lowest), 2)

    low, high = estimate.interval or (estimate.value, estimate.value)
    shown = text.format(estimate.value)
    return Bar(label, shown, position(estimate.value), position(low), position(high))
