"""What the start of a sample is worth to DMT: the tables of `docs/log/dmt-starts.md`.

    recast bench dmt-starts --out out/starts
    python benchmarks/starts.py out/starts --write benchmarks/results/dmt-starts.parquet
    python benchmarks/starts.py benchmarks/results/dmt-starts.parquet
    python benchmarks/starts.py benchmarks/results/methods.parquet \
        --compare dmt "dmt, eq. 4's start"
    python benchmarks/starts.py benchmarks/results/dmt-published.parquet \
        --variants truth dmt:shapes paper reference unguided

There is a table for each preset, with a row for each start: means with bootstrap 95 % intervals
over clips, and the paired differences of the path correlation to the start with the noise of eq. 4.
`--compare` prints the paired differences of two variants instead, with a row for each group, and
`--variants` the means of these variants. A subject that stands still has no path, so the group
`camera` is left out of the path correlation.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyarrow import parquet

from recast.bench import rows, summary
from recast.media.atomic_files import atomic

COLUMNS = {
    "true_motion": "path correlation",
    "true_distance": "path distance",
    "moving_fidelity": "moving fidelity",
    "camera_error": "camera error",
    "true_look": "look right",
    "text_similarity": "text similarity",
}
BASE = "eq. 4"
Rows = Sequence[dict[str, Any]]


def main(
    path: Path,
    written: Path | None,
    compared: tuple[str, str] | None,
    variants: Sequence[str] = (),
) -> None:
    """Print the tables of a benchmark's folder or of a Parquet file. `written` gets all rows
    without an error."""
    results = rows.read(path) if path.is_dir() else parquet.read_table(path).to_pylist()
    results = [row for row in results if row["error"] is None]
    if written is not None:
        with atomic(written) as temporary:
            parquet.write_table(rows.as_table(results), temporary)
    if compared is not None:
        print("\n".join(differences(results, *compared)))
        return
    if variants:
        print("\n".join(variant_means(results, variants)))
        return
    for preset in dict.fromkeys(row["variant"].partition(", ")[0] for row in results):
        print("\n".join(table(results, preset)), end="\n\n")


def table(results: Rows, preset: str) -> Iterator[str]:
    """The lines of the table of one preset. A variant is PRESET or "PRESET, START"."""
    names = [n for n in summary.variants(results) if n.partition(", ")[0] == preset]
    yield from _head(preset, "results", *COLUMNS.values(), f"path correlation − that of {BASE}")
    for name in names:
        own = [row for row in results if row["variant"] == name]
        means = [summary.mean(own, rows.METRIC + metric) for metric in COLUMNS]
        base = f"{preset}, {BASE}"
        means.append(None if name == base else summary.paired(results, name, base, "true_motion"))
        yield _line(name.partition(", ")[2] or name, str(len(own)), means)


def variant_means(results: Rows, names: Sequence[str]) -> Iterator[str]:
    """The lines of a table of means, with a row for each variant."""
    yield from _head("", "results", *COLUMNS.values())
    for name in names:
        own = [row for row in results if row["variant"] == name]
        moving = [row for row in own if row["group"] != "camera"]
        found = [
            summary.mean(moving if metric == "true_motion" else own, rows.METRIC + metric)
            for metric in COLUMNS
        ]
        yield _line(name, str(len(own)), found)


def differences(results: Rows, one: str, other: str) -> Iterator[str]:
    """The lines of a table of paired differences, `one` minus `other`, for each group and for all
    groups together."""
    yield from _head(f"{one} − {other}", "results", *COLUMNS.values())
    for group in (*sorted({row["group"] for row in results if row["group"]}), None):
        own = [row for row in results if group in (None, row["group"])]
        means = [summary.paired(own, one, other, metric) for metric in COLUMNS]
        count = max((mean.rows for mean in means if mean is not None), default=0)
        yield _line(group or "all", str(count), means)


def _head(*cells: str) -> Iterator[str]:
    yield f"| {' | '.join(cells)} |"
    yield "|" + "---|" * len(cells)


def _line(name: str, count: str, means: Sequence[summary.Mean | None]) -> str:
    cells = ["–" if mean is None else mean.text().replace("-", "−") for mean in means]
    return f"| {' | '.join([name, count, *cells])} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("path", type=Path, help="a benchmark's folder, or a Parquet file of rows")
    parser.add_argument("--write", type=Path, help="a Parquet file that gets all rows")
    parser.add_argument("--compare", nargs=2, metavar="VARIANT", help="two variants")
    parser.add_argument("--variants", nargs="+", default=(), help="variants, for their means")
    arguments = parser.parse_args()
    main(arguments.path, arguments.write, arguments.compare, arguments.variants)
