"""A contact sheet of a benchmark's clips: for each pair the source, and one row for each method.

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
    """Label and clip of each row of the sheet; `numbers` are indices of pairs in the table."""
    pairs: dict[tuple[str, str], list[dict]] = {}
    for row in rows.read(folder):
        if row["video"] and row["method"] != "source" and row["seed"] < seeds:
            pairs.setdefault((row["clip"], row["prompt"]), []).append(row)
    sheet = []
    for (clip, prompt), own in [list(pairs.items())[number] for number in numbers]:
        sheet.append(("source", video.read(folder / rows.VIDEOS / f"{clip}.mp4")))
        names = variants or list(dict.fromkeys(row["variant"] for row in own))
        chosen = [row for row in own if row["variant"] in names]
        for row in sorted(chosen, key=lambda row: (names.index(row["variant"]), row["seed"])):
            seed = f", seed {row['seed']}" if seeds > 1 else ""
            result = video.read(folder / row["video"])
            sheet.append((f"{row['variant']}{seed}: {prompt}", result))
    return sheet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, nargs="+", required=True)
    parser.add_argument("--variants", nargs="+", help="variants in this order; by default all")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds for each variant")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows_of_sheet = lines(arguments.folder, arguments.pairs, arguments.variants, arguments.seeds)
    contact_sheet.save_png(contact_sheet.contact_sheet(rows_of_sheet), arguments.out)
