"""The scores of a model during its training, from the snapshots of `recast shapes train` or `recast
menagerie train`. The oracle evaluates clips of shapes, and the referee those of the menagerie.

recast shapes train --out runs/shapes --snapshot-every 1000
python benchmarks/learning_curve.py score runs/shapes/snapshots/* runs/shapes/model
python benchmarks/learning_curve.py table
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import scoring
import torch

from recast.backbones.base import Settings
from recast.pipeline import model_loading
from recast.worlds.menagerie import describe
from recast.worlds.menagerie.kinds import KINDS

COLUMNS = {
    "shapes": ("colour", "shape", "background", "moves", "drift"),
    "menagerie": ("kind", "colour", "scene", "gait", "present"),
}


def score(folders: list[Path], out: Path, prompts: int, world: str, dtype: Any) -> None:
    """Append a row for each snapshot that has no row. `dtype` is the precision of its networks."""
    torch.set_num_threads(1)
    done = {row["snapshot"] for row in _rows(out)}
    for folder in folders:
        if folder.name not in done:
            backbone = model_loading.load(str(folder), Settings(device="cpu", dtype=dtype))
            marks = list(scoring.ROWS[world](backbone, prompts, backbone.defaults.steps))
            row = {"snapshot": folder.name, "fingerprint": backbone.fingerprint, "marks": marks}
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(_line(row, world), flush=True)


def table(out: Path, prompts: int, world: str) -> str:
    """Markdown tables: the scores on the first `prompts` prompts with bootstrap 95 % intervals, and
    how many clips of the last snapshot have the right gait."""
    head = ["steps on whole clips", *COLUMNS[world]]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    rows = [{**row, "marks": row["marks"][:prompts]} for row in _rows(out)]
    lines += [_line(row, world) for row in rows]
    if world == "menagerie" and rows:
        right, clips = Counter[str](), Counter[str]()
        for mark in rows[-1]["marks"]:
            gait = KINDS[describe.parse_caption(mark["prompt"])["kind"]].gait
            clips[gait] += 1
            right[gait] += mark["gait"]
        lines += ["", "| gait | right | clips |", "|---|---|---|"]
        lines += [f"| {gait} | {right[gait]} | {count} |" for gait, count in clips.items()]
    return "\n".join(lines)


def _line(row: dict, world: str) -> str:
    cells = scoring.intervals(row["marks"], COLUMNS[world])
    return f"| {row['snapshot'].lstrip('0') or 0} | {' | '.join(cells)} |"


def _rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.open()] if out.exists() else []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("verb", choices=["score", "table"])
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/learning-curve.jsonl"))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--world", choices=COLUMNS, default="shapes")
    arguments = parser.parse_args()
    if arguments.verb == "score":
        options = (arguments.prompts, arguments.world, arguments.dtype)
        score(arguments.folders, arguments.out, *options)
    else:
        print(table(arguments.out, arguments.prompts, arguments.world))
