"""A contact sheet of what a benchmark made: for each pair one row a method, under the source's.

python benchmarks/picture.py out/bench-ablation --pairs 1 7 --out docs/images/ablation.png
"""

import argparse
from pathlib import Path

from recast import sheet, video
from recast.bench import rows
from recast.video import Video


def lines(folder: Path, numbers: list[int], variants: list[str] | None) -> list[tuple[str, Video]]:
    """Label and clip of every line; pairs are counted as they stand in the table, from 0."""
    pairs: dict[tuple[str, str], list[dict]] = {}
    for row in rows.read(folder):
        if row["video"] and row["seed"] == 0:
            pairs.setdefault((row["clip"], row["prompt"]), []).append(row)
    found = []
    for (_, prompt), own in [list(pairs.items())[number] for number in numbers]:
        by_variant = {row["variant"]: row for row in own}
        for name in variants or by_variant:
            clip = video.read(folder / by_variant[name]["video"])
            found.append((f"{name}: {prompt}" if name != "source" else "source", clip))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, nargs="+", required=True)
    parser.add_argument("--variants", nargs="+", help="rows in this order; without it all")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    sheet.save_png(sheet.contact_sheet(lines(asked.folder, asked.pairs, asked.variants)), asked.out)
