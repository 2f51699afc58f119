"""Sheets of transfers in the menagerie, from the folder of a benchmark.

python benchmarks/menagerie_figures.py targets out/bench-menagerie --out targets.png
python benchmarks/menagerie_figures.py extremes out/bench-menagerie --out extremes.png

"targets" shows the source with most prompts and what the variant makes of each (fig. 1 of DMT).
"extremes" shows the best and the worst transfer of each group, each under its source. The order is
that of the mean of path correlation, correct attributes and correct gait.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from recast.bench import rows
from recast.media import contact_sheet, video
from recast.media.video import Video

PARTS = ("true_motion", "true_look", "gait_right")


def quality(row: rows.Row) -> float:
    """The mean of the numbers by which transfers are ordered."""
    return sum(row[rows.METRIC + name] for name in PARTS) / len(PARTS)


def targets(folder: Path, own: list[rows.Row]) -> Iterator[tuple[str, Video]]:
    """The source with most prompts, and the first seed of each of its results."""
    (clip, _), *_ = Counter(row["clip"] for row in own if row["seed"] == 0).most_common(1)
    chosen = [row for row in own if row["clip"] == clip and row["seed"] == 0]
    yield source(folder, chosen[0])
    for row in chosen:
        yield row["prompt"], video.read(folder / row["video"])


def extremes(folder: Path, own: list[rows.Row]) -> Iterator[tuple[str, Video]]:
    """The best and the worst result of each group, under its source."""
    for group in dict.fromkeys(row["group"] for row in own):
        ordered = sorted((row for row in own if row["group"] == group), key=quality)
        for name, row in (("best", ordered[-1]), ("worst", ordered[0])):
            yield source(folder, row)
            label = f"{group}, {name} ({quality(row):.2f}): {row['prompt']}"
            yield label, video.read(folder / row["video"])


def source(folder: Path, row: rows.Row) -> tuple[str, Video]:
    """Label and clip of the source of a row."""
    clip = video.read(folder / rows.VIDEOS / f"{row['clip']}.mp4")
    return f"source: {row['source_prompt']}", clip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    figures = {"targets": targets, "extremes": extremes}
    parser.add_argument("figure", choices=figures)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variant", default="dmt:quick")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found = [row for row in rows.read(arguments.folder) if row["variant"] == arguments.variant]
    found = [row for row in found if row["video"]]
    if not found:
        raise SystemExit(f"{arguments.folder} has no clips of {arguments.variant}")
    lines = list(figures[arguments.figure](arguments.folder, found))
    contact_sheet.save_png(contact_sheet.contact_sheet(lines), arguments.out)
