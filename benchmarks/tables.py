"""The tables of a benchmark's report as Markdown, for the pages under `docs/results/`.

python benchmarks/tables.py out/bench-ablation --metrics text_similarity true_motion
python benchmarks/tables.py benchmarks/results/ablation.parquet
"""

import argparse
from pathlib import Path

from pyarrow import parquet

from recast.bench import report, rows, suite


def main(path: Path, metrics: list[str]) -> None:
    """Print every table, variants in the order of the suite if Recast ships it; of the metrics
    those that are named, or all."""
    found = rows.read(path) if path.is_dir() else parquet.read_table(path).to_pylist()
    if metrics:
        kept = {rows.METRIC + name for name in metrics}
        found = [
            {k: v for k, v in row.items() if not k.startswith(rows.METRIC) or k in kept}
            for row in found
        ]
    name = found[0]["suite"]
    order = suite.read(name).methods if name in suite.names() else ()
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
    asked = parser.parse_args()
    main(asked.path, asked.metrics)
