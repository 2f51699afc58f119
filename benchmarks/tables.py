"""The tables of a benchmark's report as Markdown, for the pages under `docs/results/`.

python benchmarks/tables.py out/bench-shapes
"""

import argparse
from pathlib import Path

from recast.bench import report, rows, suite


def main(folder: Path) -> None:
    """Print every table, variants in the order of the suite if Recast ships it."""
    found = rows.read(folder)
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
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
