"""What the rows say: means with bootstrap intervals, and paired differences.

Prompts and seeds of one clip are not independent, so the bootstrap draws clips.
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
    """A mean with its 95 % interval, over so many clips and rows."""

    value: float
    interval: tuple[float, float] | None
    """None for one clip: drawn anew, it is always itself."""
    clips: int
    rows: int

    def text(self, digits: int = 2) -> str:
        """Such as 0.94 [0.92, 0.95]."""
        if self.interval is None:
            return f"{self.value:.{digits}f}"
        low, high = self.interval
        return f"{self.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    def bars(self) -> list[list[float]] | None:
        """How far the interval goes below and above, as matplotlib takes it."""
        if self.interval is None:
            return None
        low, high = self.interval
        return [[self.value - low], [high - self.value]]


BOUNDS = ("source", "truth", "unguided")
"""No method is of use that does worse than unguided, and none does better than the others."""


def variants(rows: Iterable[Row], order: Sequence[str] = ()) -> list[str]:
    """Every variant that has a row without an error: what bounds the others first, then in a
    suite's order, then by name."""
    found = {row["variant"] for row in rows if row["error"] is None}
    known = list(dict.fromkeys((*BOUNDS, *order)))
    return [name for name in known if name in found] + sorted(found.difference(known))


def mean(rows: Iterable[Row], column: str) -> Mean | None:
    """Of all rows that have a value; None if none has."""
    return _bootstrap([(row["clip"], row[column]) for row in rows if row.get(column) is not None])


def paired(rows: Sequence[Row], variant: str, other: str, metric: str) -> Mean | None:
    """A variant less another, over the clips, prompts and seeds that both have."""
    found: dict[str, dict[tuple[str, str, int], float]] = defaultdict(dict)
    for row in rows:
        value = row.get(METRIC + metric)
        if value is not None and row["error"] is None:
            found[row["variant"]][row["clip"], row["prompt"], row["seed"]] = value
    both = found[variant].keys() & found[other].keys()
    return _bootstrap([(key[0], found[variant][key] - found[other][key]) for key in sorted(both)])


def _bootstrap(values: Sequence[tuple[str, float]]) -> Mean | None:
    """The mean of (clip, value), clips drawn anew."""
    if not values:
        return None
    by_clip: dict[str, list[float]] = defaultdict(list)
    for clip, value in values:
        by_clip[clip].append(value)
    sums = np.array([sum(them) for them in by_clip.values()])
    counts = np.array([len(them) for them in by_clip.values()])
    middle = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return Mean(middle, None, 1, len(values))
    drawn = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    # Of equal values these sums, in another order, may end one rounding beyond the mean.
    interval = (min(float(low), middle), max(float(high), middle))
    return Mean(middle, interval, len(sums), len(values))
