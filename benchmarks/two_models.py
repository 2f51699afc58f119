"""The same methods on two versions of a model, compared pair by pair.

    python benchmarks/two_models.py 315b1ea51ad0bfef e578a579093fd228 \\
      benchmarks/results/menagerie-before.parquet benchmarks/results/menagerie.parquet

A model is named as in the rows, by its fingerprint, its name or its folder. Rows of both models
with the same variant, clip, prompt and seed are a pair; several tables are read as one. Prints the
mean of the second model and its difference to the first, with 95 % intervals over clips.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from pyarrow import parquet

from recast.bench import rows, summary

METRICS = {
    "true_motion": "path correlation",
    "true_distance": "path distance",
    "facing_right": "facing right",
    "layout_kept": "layout kept",
    "kind_right": "kind right",
    "colour_right": "colour right",
    "gait_right": "gait right",
}
"""The metrics by default, and their names in the table."""


def compared(
    results: Iterable[rows.Row], models: tuple[str, str], metrics: Sequence[str]
) -> Iterable[list[str]]:
    """The lines of the table: two for every variant that both models have."""
    found: dict[str, list[rows.Row]] = defaultdict(list)
    for row in results:
        for model in models:
            if model in (row["backbone"], row["fingerprint"]) and row["error"] is None:
                found[row["variant"]].append({**row, "model": model})
    for variant, own in found.items():
        sides = [[row for row in own if row["model"] == model] for model in models]
        keys = [{(row["clip"], row["prompt"], row["seed"]) for row in side} for side in sides]
        both = keys[0] & keys[1]
        if not both:
            continue
        shared = [row for row in own if (row["clip"], row["prompt"], row["seed"]) in both]
        by_model = [{**row, "variant": row["model"]} for row in shared]
        second = [row for row in by_model if row["variant"] == models[1]]
        means = [summary.mean(second, rows.METRIC + metric) for metric in metrics]
        count = f"{len(both)} pair{'s' if len(both) > 1 else ''}"
        yield [f"`{variant}`, {count}", *(mean.text() if mean else "–" for mean in means)]
        means = [summary.paired(by_model, models[1], models[0], metric) for metric in metrics]
        yield ["difference", *(mean.text() if mean else "–" for mean in means)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("first", help="a model")
    parser.add_argument("second", help="another model, or another version of it")
    parser.add_argument("tables", type=Path, nargs="+", help="rows, as .parquet")
    parser.add_argument("--metrics", nargs="+", default=list(METRICS))
    arguments = parser.parse_args()
    results = chain.from_iterable(parquet.read_table(p).to_pylist() for p in arguments.tables)
    lines = list(compared(results, (arguments.first, arguments.second), arguments.metrics))
    if not lines:
        raise SystemExit(f"no method ran on both {arguments.first} and {arguments.second}")
    print("| | " + " | ".join(METRICS.get(name, name) for name in arguments.metrics) + " |")
    print("|---|" + "---|" * len(arguments.metrics))
    for line in lines:
        print(f"| {' | '.join(line)} |")
