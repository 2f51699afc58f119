"""Tune the settings of a method: successive halving over a grid of a suite.

    python benchmarks/tuning.py benchmarks/suites/tuning-shapes.toml flowmotion --out out/tuning

All settings of the grid run on a third of the clips, or on `--first` of them, spread evenly over
the suite. The best quarter of them runs on all clips. The score was fixed before the first run. For
shapes it is the mean moving fidelity times the mean look, which is the fraction of attributes
(colour, shape, background) that are right. In the menagerie it is the mean correlation of the paths
times the mean of kind and gait, which are right or wrong.
Prints a table of all settings. Rows that exist in the folder, or in the tables of `--have`, are not
computed again.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recast.bench import rows, suite, summary
from recast.bench.runner import BenchConfig, bench

MEASURES = {
    "shapes": {"moving_fidelity": "moving fidelity", "true_look": "look right"},
    "menagerie": {
        "true_motion": "path correlation",
        "kind_right": "kind right",
        "gait_right": "gait right",
    },
}
"""World -> metrics and their names in the table: the motion, then what should be right."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """The settings of one method that a suite's grid names."""

    suite: Path
    method: str
    out: Path
    """The folder of the rows."""
    have: Sequence[Path] = ()
    backbone: str | None = None
    """By default that of the suite."""

    def run(self, few: int | None = None) -> None:
        """Run both rounds, and print the scores. `few`: clips of the first round."""
        resolved = suite.read(str(self.suite))
        variants = [name for name, it in resolved.variants.items() if it.method == self.method]
        clips = len({case.clip for case in resolved.cases})
        names = MEASURES[resolved.cases[0].world]
        first = Scores(self._rows(variants, few or clips // 3), tuple(names))
        best = first.ranked(variants)[: len(variants) // 4]
        final = Scores(self._rows(best, clips), tuple(names))
        model = self.backbone or resolved.backbone
        print(f"### {self.method} on {model}: {len(variants)} settings\n")
        print(f"| setting | clips | score | {' | '.join(names.values())} |")
        print("|---|---|---|" + "---|" * len(names))
        for name in final.ranked(best):
            print(final.line(name))
        for name in first.ranked(variants):
            if name not in best:
                print(first.line(name))

    def _rows(self, variants: Sequence[str], clips: int) -> list[rows.Row]:
        """The rows of these variants on the clips that all of them have, at least this number."""
        config = BenchConfig(
            suite=str(self.suite),
            methods=tuple(variants),
            backbone=self.backbone,
            out=self.out,
            limit=clips,
            have=tuple(self.have),
        )
        bench(config).run()
        results = [row for row in rows.read(self.out) if row["variant"] in variants]
        # An earlier run may have left rows of more clips for some of the variants.
        found = [{row["clip"] for row in results if row["variant"] == name} for name in variants]
        common = set.intersection(*found)
        return [row for row in results if row["clip"] in common]


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of variants in rows."""

    results: Sequence[rows.Row]
    metrics: tuple[str, ...]

    def ranked(self, variants: Sequence[str]) -> list[str]:
        """The variants by their score, the best first."""
        return sorted(variants, key=lambda name: -self.score(name))

    def score(self, variant: str) -> float:
        """The mean of the first metric times the mean of the others; 0 for a variant without a
        result."""
        values = [mean.value for mean in self._means(variant) if mean]
        if len(values) < len(self.metrics):
            return 0.0
        return values[0] * sum(values[1:]) / len(values[1:])

    def line(self, variant: str) -> str:
        """A variant as a line of the table."""
        means = self._means(variant)
        texts = [mean.text() if mean else "–" for mean in means]
        clips = next((mean.clips for mean in means if mean), 0)
        return f"| {variant} | {clips} | {self.score(variant):.3f} | {' | '.join(texts)} |"

    def _means(self, variant: str) -> list[summary.Mean | None]:
        own = [row for row in self.results if row["variant"] == variant and row["error"] is None]
        return [summary.mean(own, rows.METRIC + name) for name in self.metrics]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("suite", type=Path, help="a suite with a table [[grid]] for the method")
    parser.add_argument("method")
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--first", type=int, help="clips of the first round; by default a third")
    parser.add_argument("--have", type=Path, nargs="*", default=(), help="tables of earlier rows")
    parser.add_argument("--backbone", help="a model in place of the suite's")
    arguments = parser.parse_args()
    tuning = Tuning(
        arguments.suite,
        arguments.method,
        arguments.out / arguments.method,
        arguments.have,
        arguments.backbone,
    )
    tuning.run(arguments.first)
