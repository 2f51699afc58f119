"""The papers' fig. 8: how well the prompt is followed against how well the motion is kept."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from recast.bench import summary
from recast.bench.rows import METRIC, Row

_MARKERS = "osD^vP"
_COLOURS = 10


def scatter(
    found: Sequence[Row],
    variants: Sequence[str],
    across: tuple[str, str],
    up: tuple[str, str],
) -> bytes | None:
    """A PNG of means with 95 % intervals, a point for each variant, bounds grey and hollow;
    `across` and `up` are the metric's name and title. None if no row has both."""
    figure = Figure(figsize=(6.4, 4.6), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    looks = styles(variants)
    drawn = 0
    for name, (marker, colour) in looks.items():
        mine = [row for row in found if row["variant"] == name]
        x, y = (summary.mean(mine, METRIC + metric) for metric, _ in (across, up))
        if x is None or y is None:
            continue
        drawn += 1
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
    if not drawn:
        return None
    axes.set_xlabel(across[1])
    axes.set_ylabel(up[1])
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="best")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def styles(variants: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Marker and colour of each variant, no two alike; bounds come first."""
    bounds = [name for name in variants if name in summary.BOUNDS]
    methods = [name for name in variants if name not in summary.BOUNDS]
    found = {name: (_MARKERS[index], "0.35") for index, name in enumerate(bounds)}
    for index, name in enumerate(methods):
        marker = _MARKERS[index // _COLOURS % len(_MARKERS)]
        found[name] = (marker, f"C{index % _COLOURS}")
    return found
