"""Sensitivity of DMT's preset `shapes`: all tried settings, and the effect of each parameter.

    recast bench sensitivity
    python benchmarks/sensitivity.py [out/bench-sensitivity/rows.parquet]

An effect is the mean difference between two values of one parameter, over all combinations of the
other parameters, on the same pairs, with a 95 % interval over clips.
"""

import itertools
import json
import sys
from pathlib import Path

from pyarrow import parquet

from recast.bench import summary
from recast.bench.rows import METRIC, Row

FACTORS = ("inner_steps", "lr", "guided", "inversion_steps")
METRICS = ("true_motion", "true_distance", "moving_fidelity", "motion_fidelity", "text_similarity")
COSTS = ("learn_calls", "calls", "learn_seconds", "seconds")


def setting(row: Row) -> tuple[float, ...]:
    """The values of the varied parameters in a row's config."""
    config = json.loads(row["config"])
    return tuple(config[name] for name in FACTORS)


def sheet(rows: list[Row]) -> str:
    """A Markdown table with a row for each setting; costs are means."""
    head = [*FACTORS, *METRICS, *COSTS]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for values in sorted({setting(row) for row in rows}):
        mine = [row for row in rows if setting(row) == values]
        means = [summary.mean(mine, METRIC + name) for name in METRICS]
        costs = [summary.mean(mine, name) for name in COSTS]
        cells = [f"{value:g}" for value in values]
        cells += ["–" if mean is None else mean.text() for mean in means]
        cells += ["–" if mean is None else f"{mean.value:.3g}" for mean in costs]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def effects(rows: list[Row]) -> str:
    """A Markdown table with a row for each step from one value of a parameter to the next."""
    lines = [f"| from → to | {' | '.join(METRICS)} |", "|" + "---|" * (len(METRICS) + 1)]
    for index, name in enumerate(FACTORS):
        levels = sorted({setting(row)[index] for row in rows})
        for low, high in itertools.pairwise(levels):
            cells = [_effect(rows, index, (low, high), metric) for metric in METRICS]
            lines.append(f"| {name} {low:g} → {high:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _effect(rows: list[Row], index: int, levels: tuple[float, float], metric: str) -> str:
    """The other parameters become part of the prompt, so that only rows that agree in them are
    paired."""
    results = []
    for row in rows:
        values = setting(row)
        if values[index] in levels:
            rest = f"{row['prompt']} {values[:index] + values[index + 1 :]}"
            results.append({**row, "variant": str(values[index]), "prompt": rest})
    low, high = (str(level) for level in levels)
    mean = summary.paired(results, high, low, metric)
    return "–" if mean is None else mean.text(3)


def main(path: Path) -> None:
    """Print both tables."""
    rows = [row for row in parquet.read_table(path).to_pylist() if row["error"] is None]
    print(f"{len(rows)} rows\n\n{sheet(rows)}\n\n{effects(rows)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/sensitivity.parquet"))
