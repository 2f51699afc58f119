"""The tables of a benchmark's report as Markdown, for the pages under `docs/log/`.

python benchmarks/tables.py out/bench-ablation --metrics text_similarity true_motion
python benchmarks/tables.py benchmarks/results/ablation.parquet
python benchmarks/tables.py benchmarks/results/menagerie-pairs.parquet --baseline unguided
python benchmarks/tables.py benchmarks/results/shapes.parquet --group hard --scatter hard.png
python benchmarks/tables.py benchmarks/results/speed.jsonl --group shapes --scatter speed.png
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import speed_tables
from pyarrow import parquet

from recast.bench import chart, report, rows, suite, summary
from recast.media.atomic_files import atomic

APPEARANCE = ("true_look", "fraction of correct attributes (colour, shape, background)")
PATH = ("true_motion", "correlation of the subject's path with the source's")


def main(
    path: Path,
    metrics: list[str],
    group: str | None,
    picture: Path | None,
    baseline: str | None,
) -> None:
    """Print all tables, for the given metrics or for all of them.

    Variants are in the order of the suite if it ships with Recast. With `picture`, also draw the
    scatter plot of appearance against motion. A file of JSON lines holds the rows of `speed.py`,
    which has tables of its own: its groups are the models, and its scatter plot shows motion
    against cost.
    """
    if path.suffix == ".jsonl":
        _print(speed_tables.read(path, group))
        _write(picture, speed_tables.plot(path, group) if picture else None)
        return
    results = rows.read(path) if path.is_dir() else parquet.read_table(path).to_pylist()
    results = [row for row in results if group in (None, row["group"])]
    if metrics:
        kept = {rows.METRIC + name for name in metrics}
        results = [
            {k: v for k, v in row.items() if not k.startswith(rows.METRIC) or k in kept}
            for row in results
        ]
    name = results[0]["suite"]
    order = suite.read(name).methods if name in suite.names() else ()
    if picture is not None:
        _write(picture, chart.scatter(results, summary.variants(results, order), APPEARANCE, PATH))
    _print(report.tables(results, order, baseline))


def _write(picture: Path | None, png: bytes | None) -> None:
    if picture is None:
        return
    if png is None:
        raise SystemExit(
            "no variant has both metrics of the scatter plot: there is nothing to draw"
        )
    with atomic(picture) as temporary:
        temporary.write_bytes(png)


def _print(tables: Iterable[report.Table]) -> None:
    for table in tables:
        print(f"### {table.title}\n\n| {' | '.join(table.head)} |\n|{'---|' * len(table.head)}")
        for line in table.body:
            print(f"| {' | '.join(line)} |")
        print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("path", type=Path, help="a benchmark's folder, or its rows")
    parser.add_argument("--metrics", nargs="+", default=[])
    parser.add_argument("--group", help="only the pairs of this group, or the model")
    parser.add_argument(
        "--baseline",
        help="print the differences to this variant; by default to the first that is not a bound",
    )
    parser.add_argument(
        "--scatter", type=Path, help="path of a PNG: appearance or cost against motion"
    )
    arguments = parser.parse_args()
    main(
        arguments.path,
        arguments.metrics,
        arguments.group,
        arguments.scatter,
        arguments.baseline,
    )
