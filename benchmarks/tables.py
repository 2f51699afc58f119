"""The tables of a benchmark's report as Markdown, for the pages under `docs/results/`.

python benchmarks/tables.py out/bench-shapes
"""

import argparse
from pathlib import Path

from recast.bench import report, rows


def main(folder: Path) -> None:
    """Print every table."""
    for table in report.tables(rows.read(folder)):
        print(f"### {table.title}\n\n| {' | '.join(table.head)} |\n|{'---|' * len(table.head)}")
        for line in table.body:
            print(f"| {' | '.join(line)} |")
        print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
