"""The statistics of a benchmark: means with bootstrap intervals, and paired differences.

Results for different prompts and seeds of one clip are not independent, so the bootstrap resamples
clips and not rows (a cluster bootstrap; Efron and Tibshirani 1993). This module refuses to know how
numbers are displayed.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recast.bench.rows import METRIC

Row = Mapping[str, Any]
DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with its 95 % bootstrap interval, and the numbers of clips and rows in it."""

    value: float
    interval: tuple[float, float] | None
    """None for a single clip, which cannot be resampled."""
    clips: int
    rows: int

    def text(self, digits: int = 2) -> str:
        """The mean and its interval, in the form 0.94 [0.92, 0.95]."""
        if self.interval is None:
            return f"{self.value:.{digits}f}"
        low, high = self.interval
        return f"{self.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    def bars(self) -> list[list[float]] | None:
        """The distances from the mean to both ends of the interval, in matplotlib's form."""
        if self.interval is None:
            return None
        low, high = self.interval
        return [[self.value - low], [high - self.value]]


BOUNDS = ("source", "truth", "unguided")
"""Variants that bound the methods: a useful method scores above `unguided`, and no method can score
above `source` and `truth`."""


def variants(rows: Iterable[Row], order: Sequence[str] = ()) -> list[str]:
    """All variants that have a row without an error: first the bounds, then those of `order` in
    this order, then the others by name."""
    present = {row["variant"] for row in rows if row["error"] is None}
    ordered = list(dict.fromkeys((*BOUNDS, *order)))
    return [name for name in ordered if name in present] + sorted(present.difference(ordered))


def mean(rows: Iterable[Row], column: str) -> Mean | None:
    """The mean of a column over all rows that have a value; None if no row has one."""
    return _bootstrap([(row["clip"], row[column]) for row in rows if row.get(column) is not None])


def paired(rows: Sequence[Row], variant: str, other: str, metric: str) -> Mean | None:
    """The mean difference `variant` minus `other` over the clips, prompts and seeds of both."""
    values: dict[str, dict[tuple[str, str, int], float]] = defaultdict(dict)
    for row in rows:
        value = row.get(METRIC + metric)
        if value is not None and row["error"] is None:
            values[row["variant"]][row["clip"], row["prompt"], row["seed"]] = value
    shared = sorted(values[variant].keys() & values[other].keys())
    return _bootstrap([(key[0], values[variant][key] - values[other][key]) for key in shared])


def _bootstrap(values: Sequence[tuple[str, float]]) -> Mean | None:
    """The mean of the values in (clip, value), with an interval from resampled clips."""
    if not values:
        return None
    by_clip: dict[str, list[float]] = defaultdict(list)
    for clip, value in values:
        by_clip[clip].append(value)
    sums = np.array([sum(own) for own in by_clip.values()])
    counts = np.array([len(own) for own in by_clip.values()])
    mean_value = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return Mean(mean_value, None, 1, len(values))
    drawn = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    # For equal values, the sums in another order may differ from the mean by one rounding error.
    interval = (min(float(low), mean_value), max(float(high), mean_value))
    return Mean(mean_value, interval, len(sums), len(values))
