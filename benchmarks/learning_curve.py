"""The oracle's scores of a model during its training, from the snapshots of `recast shapes train`.

recast shapes train --out runs/shapes --snapshot-every 1000
python benchmarks/learning_curve.py score runs/shapes/snapshots/* runs/shapes/model
python benchmarks/learning_curve.py table
"""

import argparse
import json
from pathlib import Path

import numpy as np
import scoring
import torch

from recast.backbones.base import Settings
from recast.pipeline import model_loading

COLUMNS = ("colour", "shape", "background", "moves", "drift")


def score(folders: list[Path], out: Path, prompts: int) -> None:
    """Append a row for each snapshot that has no row."""
    torch.set_num_threads(1)
    done = {row["snapshot"] for row in _rows(out)}
    for folder in folders:
        if folder.name not in done:
            backbone = model_loading.load(str(folder), Settings(device="cpu"))
            marks = list(scoring.unguided_rows(backbone, prompts, backbone.defaults.steps))
            row = {"snapshot": folder.name, "fingerprint": backbone.fingerprint, "marks": marks}
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(_line(row), flush=True)


def table(out: Path) -> str:
    """A Markdown table with bootstrap 95 % intervals over prompts."""
    head = ["steps on whole clips", *COLUMNS]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *map(_line, _rows(out))])


def _line(row: dict) -> str:
    columns = ([mark[column] for mark in row["marks"]] for column in COLUMNS)
    values = (
        np.array([value for value in column if value is not None], float) for column in columns
    )
    return f"| {row['snapshot'].lstrip('0') or 0} | {' | '.join(map(scoring.interval, values))} |"


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
    arguments = parser.parse_args()
    if arguments.verb == "score":
        score(arguments.folders, arguments.out, arguments.prompts)
    else:
        print(table(arguments.out))
