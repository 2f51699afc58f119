"""Tune the settings of a method: successive halving over a grid of a suite.

    python benchmarks/tuning.py benchmarks/suites/tuning-shapes.toml flowmotion --out out/tuning

All settings of the grid run on a third of the clips, or on `--first` of them, spread evenly over
the suite. The best quarter of them runs on all clips. The score was fixed before the first run: the
mean moving fidelity times the mean look, which is the fraction of attributes (colour, shape,
background) that are right.
Prints a table of all settings. Rows that exist in the folder, or in the tables of `--have`, are not
computed again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recast.bench import rows, suite, summary
from recast.bench.runner import BenchConfig, bench

MOTION, LOOK = rows.METRIC + "moving_fidelity", rows.METRIC + "true_look"


def tune(
    path: Path, method: str, out: Path, few: int | None = None, have: Sequence[Path] = ()
) -> None:
    """Run both rounds for the settings of one method, and print their scores."""
    resolved = suite.read(str(path))
    variants = [name for name, it in resolved.variants.items() if it.method == method]
    clips = len({case.clip for case in resolved.cases})
    first = run(path, variants, out, few or clips // 3, have)
    best = ranked(first, variants)[: len(variants) // 4]
    final = run(path, best, out, clips, have)
    print(f"### {method} on {resolved.backbone}: {len(variants)} settings\n")
    print("| setting | clips | score | moving fidelity | look right |\n|---|---|---|---|---|")
    for name in ranked(final, best):
        print(line(final, name))
    for name in ranked(first, variants):
        if name not in best:
            print(line(first, name))


def run(
    path: Path, variants: Sequence[str], out: Path, clips: int, have: Sequence[Path]
) -> list[rows.Row]:
    """The rows of these variants on the clips that all of them have, at least this number."""
    config = BenchConfig(
        suite=str(path), methods=tuple(variants), out=out, limit=clips, have=tuple(have)
    )
    bench(config).run()
    results = [row for row in rows.read(out) if row["variant"] in variants]
    # An earlier run may have left rows of more clips for some of the variants.
    found = [{row["clip"] for row in results if row["variant"] == name} for name in variants]
    common = set.intersection(*found)
    return [row for row in results if row["clip"] in common]


def ranked(results: Sequence[rows.Row], variants: Sequence[str]) -> list[str]:
    """The variants by their score, the best first."""
    return sorted(variants, key=lambda name: -score(results, name))


def score(results: Sequence[rows.Row], variant: str) -> float:
    """Mean moving fidelity times mean look; 0 for a variant without a result."""
    motion, look = means(results, variant)
    return motion.value * look.value if motion and look else 0.0


def means(results: Sequence[rows.Row], variant: str) -> tuple[Any, Any]:
    """The means of moving fidelity and look."""
    own = [row for row in results if row["variant"] == variant and row["error"] is None]
    return summary.mean(own, MOTION), summary.mean(own, LOOK)


def line(results: Sequence[rows.Row], name: str) -> str:
    """A variant as a line of the table."""
    motion, look = means(results, name)
    if motion is None or look is None:
        return f"| {name} | 0 | – | – | – |"
    numbers = f"{score(results, name):.3f} | {motion.text()} | {look.text()}"
    return f"| {name} | {motion.clips} | {numbers} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("suite", type=Path, help="a suite with a table [[grid]] for the method")
    parser.add_argument("method")
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--first", type=int, help="clips of the first round; by default a third")
    parser.add_argument("--have", type=Path, nargs="*", default=(), help="tables of earlier rows")
    arguments = parser.parse_args()
    out = arguments.out / arguments.method
    tune(arguments.suite, arguments.method, out, arguments.first, arguments.have)
