"""The LoRA with which `shapes-dit` samples in four steps without a guidance scale.

    python benchmarks/few_steps.py train    # writes out/few-steps/pytorch_lora_weights.safetensors
    python benchmarks/few_steps.py score    # writes benchmarks/results/few-step-model.json
    python benchmarks/few_steps.py table

The oracle scores unguided clips of held-out prompts: the model itself at its own number of steps
and at four, and the model with the LoRA. *Range* is how far the subject moves: the root mean square
distance of its centre from its mean, in frame widths.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import scoring
import torch

from recast.backbones.base import Settings
from recast.pipeline import model_loading
from recast.worlds.shapes import captions, oracle
from recast.worlds.shapes.dataset import DATASET
from recast.worlds.training.few_steps import FewStepConfig, train

OUT = Path("out") / "few-steps"
RESULTS = Path(__file__).parent / "results" / "few-step-model.json"
COLUMNS = ("colour", "shape", "background", "moves", "range", "drift")
COMPARED = (
    ("shapes-dit", 25, 4.0),
    ("shapes-dit", 4, 4.0),
    ("shapes-dit", 4, 1.0),
    ("shapes-dit@4steps", 4, 1.0),
)
"""Model, steps and guidance scale."""


def learn(device: str) -> None:
    """Train in `OUT`, or resume there, and print every event."""
    model = Path(model_loading.source_of("shapes-dit"))
    job = train(FewStepConfig(model=model, out=OUT, device=device), DATASET)
    for event in job:
        print(event, flush=True)
    print(job.result)


def score(prompts: int) -> None:
    """Score all models and write `RESULTS`."""
    torch.set_num_threads(1)
    results = []
    for name, steps, scale in COMPARED:
        backbone = model_loading.load(name, Settings(device="cpu"))
        marks = []
        for number, source, target in scoring.pairs(prompts):
            frames = scoring.text_to_video(
                backbone, captions.prompt(target), steps, number, guidance_scale=scale
            )
            path = oracle.detect(frames).path
            seen = path[~np.isnan(path[:, 0])]
            extent = float(np.sqrt(((seen - seen.mean(0)) ** 2).sum(-1).mean())) if len(seen) else 0
            marks.append(
                {**scoring.oracle_scores(frames, source, target), "range": round(extent, 4)}
            )
        results.append({"model": name, "steps": steps, "guidance_scale": scale, "marks": marks})
        print(_line(results[-1]), flush=True)
    RESULTS.write_text(json.dumps(results))


def table() -> str:
    """A Markdown table with bootstrap 95 % intervals over prompts."""
    lines = [_line(row) for row in json.loads(RESULTS.read_text())]
    heads = ["model", "steps", "guidance scale", *COLUMNS]
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines])


def _line(row: dict) -> str:
    columns = ([mark[column] for mark in row["marks"]] for column in COLUMNS)
    values = (
        np.array([value for value in column if value is not None], float) for column in columns
    )
    cells = [f"`{row['model']}`", str(row["steps"]), f"{row['guidance_scale']:g}"]
    return f"| {' | '.join([*cells, *map(scoring.interval, values)])} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("verb", choices=["train", "score", "table"])
    parser.add_argument("--device", default="cpu", help="of the training")
    parser.add_argument("--prompts", type=int, default=64)
    arguments = parser.parse_args()
    match arguments.verb:
        case "train":
            learn(arguments.device)
        case "score":
            score(arguments.prompts)
        case "table":
            print(table())
