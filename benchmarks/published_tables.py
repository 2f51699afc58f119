"""The tables of the papers with rows that were measured here: those of `published_tables.toml`.

    recast bench benchmarks/suites/published.toml --out out/published
    recast bench benchmarks/suites/frames.toml --out out/frames
    python benchmarks/published_tables.py out/published out/frames \
        --scatter docs/images/dmt-figure-8.png

Each table has the paper's own numbers, on its own clips and models, in columns of their own, and
then means with 95 % intervals over the pairs of these suites. Below it stand the claims of the
paper, each with the paired difference that confirms it, contradicts it, or leaves it open. With
`--scatter`, figure 8 of DMT is drawn too.
"""

import argparse
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyarrow import parquet

from recast import evaluation
from recast.bench import chart, rows, summary
from recast.media.atomic_files import atomic

TABLES = Path(__file__).with_suffix(".toml")
COSTS = {"learn_seconds": "s to learn", "seconds": "s to transfer"}
CALLS = ("learn_calls", "calls")
PEAKS = ("learn_peak_memory_mb", "peak_memory_mb")
Rows = Sequence[dict[str, Any]]


def main(paths: Sequence[Path], picture: Path | None) -> None:
    """Print all tables for the rows of folders or Parquet files, and draw the scatter plot."""
    tables = tomllib.loads(TABLES.read_text())
    measured = [row for path in paths for row in read(path) if row["error"] is None]
    for table in tables.values():
        print("\n".join(lines(table, with_systems(measured, table["system"]))))
    if picture is not None:
        draw(tables["dmt-figure-8"], measured, picture)


def read(path: Path) -> Rows:
    """The rows of a benchmark's folder or of a Parquet file."""
    return rows.read(path) if path.is_dir() else parquet.read_table(path).to_pylist()


def with_systems(measured: Rows, systems: Sequence[dict[str, Any]]) -> Rows:
    """The rows of the systems of a table, whose variant is the name of the system."""
    names = {(it["backbone"], it["variant"]): it["name"] for it in systems if "variant" in it}
    keyed = [(names.get((row["backbone"], row["variant"])), row) for row in measured]
    return [{**row, "variant": name} for name, row in keyed if name is not None]


def lines(table: dict[str, Any], measured: Rows) -> Iterator[str]:
    """A table as Markdown, with its claims."""
    reported = list(dict.fromkeys(k for it in table["system"] for k in it.get("reported", {})))
    titles = {name: it.title for name, it in evaluation.metrics_of_rows().items()}
    yield f"### {table['title']}\n"
    yield f"{table['note']}\n"
    head = ["system", "model here", *(f"{name}, reported" for name in reported)]
    head += [titles[name] for name in table["metrics"]]
    head += [*COSTS.values(), "network calls", "peak memory, MB", "pairs"]
    yield f"| {' | '.join(head)} |\n|{'---|' * len(head)}"
    for system in table["system"]:
        own = [row for row in measured if row["variant"] == system["name"]]
        own_reported = system.get("reported", {})
        cells = [system["name"], f"`{system['backbone']}`" if own else "–"]
        cells += [f"{own_reported[k]:.4f}" if k in own_reported else "–" for k in reported]
        means = (summary.mean(own, rows.METRIC + name) for name in table["metrics"])
        cells += ["–" if mean is None else mean.text() for mean in means]
        yield f"| {' | '.join([*cells, *costs(own)])} |"
    yield ""
    if "claim" in table:
        yield "| claim of the paper | metric | difference here | |\n|---|---|---|---|"
        for claim in table["claim"]:
            yield verdict(claim, measured, titles[claim["metric"]])
        yield ""


def costs(own: Rows) -> list[str]:
    """Median seconds, network calls and the largest peak memory of a system, and its pairs."""
    if not own:
        return ["–"] * 5
    seconds = [sorted(row[name] or 0.0 for row in own)[len(own) // 2] for name in COSTS]
    calls = [max(row[name] or 0 for row in own) for name in CALLS]
    peak = max(row[name] or 0.0 for name in PEAKS for row in own)
    return [
        *(f"{value:.0f}" for value in seconds),
        " + ".join(f"{value:.0f}" for value in calls),
        f"{peak:.0f}",
        str(len({(row["clip"], row["prompt"]) for row in own})),
    ]


def verdict(claim: dict[str, str], measured: Rows, metric: str) -> str:
    """A claim as a line: the difference of two systems, and what it says of the claim."""
    difference = summary.paired(measured, claim["first"], claim["second"], claim["metric"])
    line = f"| {claim['text']} ({claim['first']} − {claim['second']}) | {metric} |"
    if difference is None or difference.interval is None:
        return f"{line} – | not measured |"
    low, high = difference.interval
    if low <= 0 <= high:
        return f"{line} {difference.text()} | open |"
    agrees = (low > 0) == (claim["sign"] == "+")
    return f"{line} {difference.text()} | {'confirmed' if agrees else 'contradicted'} |"


def draw(table: dict[str, Any], measured: Rows, picture: Path) -> None:
    """The scatter plot of a table's systems."""
    titles = {name: it.title for name, it in evaluation.metrics_of_rows().items()}
    first, second = ((name, titles[name]) for name in table["scatter"])
    order = [system["name"] for system in table["system"]]
    own = with_systems(measured, table["system"])
    png = chart.scatter(own, summary.variants(own, order), first, second)
    if png is None:
        raise SystemExit(f"no system has both {first[1]} and {second[1]}")
    with atomic(picture) as temporary:
        temporary.write_bytes(png)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("paths", type=Path, nargs="+", help="folders or Parquet files with rows")
    parser.add_argument("--scatter", type=Path, help="PNG file of figure 8 of DMT")
    arguments = parser.parse_args()
    main(arguments.paths, arguments.scatter)
