"""The scatter plot of a benchmark: one metric against another, with a point for each variant.

Papers compare text similarity and motion fidelity in this form (DMT, fig. 8). The module owns only
the drawing; the numbers come from `summary.py`.
"""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from recast.bench import summary
from recast.bench.rows import METRIC, Row

_MARKERS = "osD^vP"
_COLOURS = 10


def scatter(
    results: Sequence[Row],
    variants: Sequence[str],
    x_axis: tuple[str, str],
    y_axis: tuple[str, str],
    *,
    logarithmic: bool = False,
) -> bytes | None:
    """A PNG of means with 95 % intervals, with one point for each variant.

    The axes are given as (name of a metric, title); `logarithmic` concerns the first. Bounds are
    grey and hollow. Returns None if no variant has both metrics.
    """
    figure = Figure(figsize=(8.0, 4.6), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    points = 0
    for name, (marker, colour) in styles(variants).items():
        own = [row for row in results if row["variant"] == name]
        x, y = (summary.mean(own, METRIC + metric) for metric, _ in (x_axis, y_axis))
        if x is None or y is None:
            continue
        points += 1
        axes.errorbar(
            x.value,
            y.value,
            xerr=x.bars(),
            yerr=y.bars(),
            fmt=marker,
            color=colour,
            markerfacecolor="white" if name in summary.BOUNDS else colour,
            elinewidth=0.8,
            label=name,
        )
    if not points:
        return None
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xlabel(x_axis[1])
    axes.set_ylabel(y_axis[1])
    axes.grid(alpha=0.25)
    figure.legend(fontsize=8, loc="outside right upper")  # it covers no point there
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def styles(variants: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A distinct (marker, colour) for each variant; bounds come first."""
    bounds = [name for name in variants if name in summary.BOUNDS]
    methods = [name for name in variants if name not in summary.BOUNDS]
    chosen = {name: (_MARKERS[index], "0.35") for index, name in enumerate(bounds)}
    for index, name in enumerate(methods):
        marker = _MARKERS[index // _COLOURS % len(_MARKERS)]
        chosen[name] = (marker, f"C{index % _COLOURS}")
    return chosen
