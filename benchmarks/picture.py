"""A contact sheet of what a benchmark made: for each pair one row a method, under the source's.

python benchmarks/picture.py out/bench-ablation --pairs 1 7 --out docs/images/ablation.png
python benchmarks/picture.py out/invert-features --pairs 0 3 --seeds 2 --out features.png
"""

import argparse
from pathlib import Path

from recast.bench import rows
from recast.media import contact_sheet, video
from recast.media.video import Video


def lines(
    folder: Path, numbers: list[int], variants: list[str] | None, seeds: int
) -> list[tuple[str, Video]]:
    """Label and clip of every line; pairs are counted as they stand in the table, from 0."""
    pairs: dict[tuple[str, str], list[dict]] = {}
    for row in rows.read(folder):
        if row["video"] and row["method"] != "source" and row["seed"] < seeds:
            pairs.setdefault((row["clip"], row["prompt"]), []).append(row)
    found = []
    for (clip, prompt), own in [list(pairs.items())[number] for number in numbers]:
        found.append(("source", video.read(folder / rows.VIDEOS / f"{clip}.mp4")))
        names = variants or list(dict.fromkeys(row["variant"] for row in own))
        shown = [row for row in own if row["variant"] in names]
        for row in sorted(shown, key=lambda row: (names.index(row["variant"]), row["seed"])):
            seed = f", seed {row['seed']}" if seeds > 1 else ""
            made = video.read(folder / row["video"])
            found.append((f"{row['variant']}{seed}: {prompt}", made))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, nargs="+", required=True)
    parser.add_argument("--variants", nargs="+", help="rows in this order; without it all")
    parser.add_argument("--seeds", type=int, default=1, help="how many of each")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    drawn = lines(asked.folder, asked.pairs, asked.variants, asked.seeds)
    contact_sheet.save_png(contact_sheet.contact_sheet(drawn), asked.out)
