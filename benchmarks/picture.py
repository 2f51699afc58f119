"""A contact sheet of a benchmark's clips: for each pair the source, and one row for each method.

python benchmarks/picture.py out/bench-ablation --pairs 1 7 --out docs/images/ablation.png
python benchmarks/picture.py out/invert-features --pairs 0 3 --seeds 2 --out features.png
python benchmarks/picture.py out/published out/frames --pairs 1 7 --out docs/images/published.png

Clips of several folders stand together where source and prompt are the same. Variants of different
folders need different names to be told apart.
"""

import argparse
from pathlib import Path

from recast.bench import rows
from recast.media import contact_sheet, video
from recast.media.video import Video


def lines(
    folders: list[Path], numbers: list[int], variants: list[str] | None, seeds: int
) -> list[tuple[str, Video]]:
    """Label and clip of each row of the sheet; `numbers` are indices of pairs in the first
    table."""
    pairs: dict[tuple[str, str], list[dict]] = {}
    for folder in folders:
        for row in rows.read(folder):
            if row["video"] and row["method"] != "source" and row["seed"] < seeds:
                pair = pairs.setdefault((row["clip"], row["prompt"]), [])
                pair.append({**row, "video": folder / row["video"]})
    sheet = []
    for (clip, prompt), own in [list(pairs.items())[number] for number in numbers]:
        sheet.append(("source", video.read(folders[0] / rows.VIDEOS / f"{clip}.mp4")))
        names = variants or list(dict.fromkeys(row["variant"] for row in own))
        chosen = [row for row in own if row["variant"] in names]
        for row in sorted(chosen, key=lambda row: (names.index(row["variant"]), row["seed"])):
            seed = f", seed {row['seed']}" if seeds > 1 else ""
            sheet.append((f"{row['variant']}{seed}: {prompt}", video.read(row["video"])))
    return sheet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--pairs", type=int, nargs="+", required=True)
    parser.add_argument("--variants", nargs="+", help="variants in this order; by default all")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds for each variant")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows_of_sheet = lines(arguments.folders, arguments.pairs, arguments.variants, arguments.seeds)
    contact_sheet.save_png(contact_sheet.contact_sheet(rows_of_sheet), arguments.out)
