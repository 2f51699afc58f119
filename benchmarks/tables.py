"""The tables of a benchmark's report as Markdown, for the pages under `docs/log/`.

python benchmarks/tables.py out/bench-ablation --metrics text_similarity true_motion
python benchmarks/tables.py benchmarks/results/ablation.parquet
python benchmarks/tables.py benchmarks/results/shapes.parquet --group hard --scatter hard.png
"""

import argparse
from pathlib import Path

from pyarrow import parquet

from recast.bench import chart, report, rows, suite, summary
from recast.media.atomic_files import atomic

LOOK = ("true_look", "share of colour, shape and background that are right")
PATH = ("true_motion", "correlation of the subject's path with the source's")


def main(path: Path, metrics: list[str], group: str | None, picture: Path | None) -> None:
    """Print every table, variants in the order of the suite if Recast ships it; of the metrics
    those that are named, or all. Draw the look against the path, if a picture is asked for."""
    found = rows.read(path) if path.is_dir() else parquet.read_table(path).to_pylist()
    found = [row for row in found if group in (None, row["group"])]
    if metrics:
        kept = {rows.METRIC + name for name in metrics}
        found = [
            {k: v for k, v in row.items() if not k.startswith(rows.METRIC) or k in kept}
            for row in found
        ]
    name = found[0]["suite"]
    order = suite.read(name).methods if name in suite.names() else ()
    if picture is not None:
        drawn = chart.scatter(found, summary.variants(found, order), LOOK, PATH)
        if drawn is None:
            raise SystemExit(f"no row has both {LOOK[0]} and {PATH[0]}, so there is no picture")
        with atomic(picture) as temporary:
            temporary.write_bytes(drawn)
    for table in report.tables(found, order):
        print(f"### {table.title}\n\n| {' | '.join(table.head)} |\n|{'---|' * len(table.head)}")
        for line in table.body:
            print(f"| {' | '.join(line)} |")
        print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("path", type=Path, help="a benchmark's folder, or its rows.parquet")
    parser.add_argument("--metrics", nargs="+", default=[])
    parser.add_argument("--group", help="only these pairs of the suite")
    parser.add_argument("--scatter", type=Path, help="a PNG of the look against the path")
    asked = parser.parse_args()
    main(asked.path, asked.metrics, asked.group, asked.scatter)
