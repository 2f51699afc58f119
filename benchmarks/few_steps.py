"""The LoRA with which a model samples in four steps without a guidance scale.

    python benchmarks/few_steps.py train --model shapes-dit    # writes out/few-steps/shapes-dit
    python benchmarks/few_steps.py score --model shapes-dit    # writes results/few-step-model.json
    python benchmarks/few_steps.py table --model shapes-dit

The oracle, or the referee of the menagerie, scores unguided clips of held-out prompts: the model
itself at its own number of steps and at four, and the model with the LoRA. *Range* is how far the
subject moves: the root mean square distance of its centre from its mean, in frame widths. `table`
also compares the rows of DMT.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import scoring
import torch
from pyarrow import parquet

from recast.backbones.base import Settings
from recast.bench import summary
from recast.networks import few_step_lora
from recast.pipeline import model_loading
from recast.worlds.menagerie.dataset import DATASET as MENAGERIE
from recast.worlds.shapes.dataset import DATASET as SHAPES
from recast.worlds.training.few_steps import FewStepConfig, train

OUT = Path("out") / "few-steps"
DATASETS = {"shapes": SHAPES, "menagerie": MENAGERIE}
WORLDS = {"shapes": "shapes", "shapes-dit": "shapes", "menagerie-dit": "menagerie"}
"""Model -> the world from which it was trained."""
SIZES: dict[str, dict[str, Any]] = {
    "menagerie-dit": {"clips": 240, "teacher_steps": 12, "steps": 600, "batch": 4, "compile": True}
}
"""Model -> the settings of its training that differ from the defaults. A pass of menagerie-dit
takes four times as long as one of shapes-dit."""
RESULTS = Path(__file__).parent / "results" / "few-step-model.json"
COLUMNS = {
    "shapes": ("colour", "shape", "background", "moves", "range", "drift"),
    "menagerie": ("kind", "colour", "scene", "gait", "present", "range"),
}
COMPARED = ((25, 4.0), (4, 4.0), (4, 1.0))
"""Steps and guidance scale of the model itself."""
TABLES = {
    "shapes": ("few-step-model-unet.parquet", "few-steps.parquet"),
    "shapes-dit": ("few-step-model.parquet", "few-steps-dit.parquet"),
    "menagerie-dit": ("few-step-model-menagerie.parquet", "menagerie-pairs.parquet"),
}
"""Model with a LoRA -> the rows with it and in four steps, and those of the other presets, of which
the same pairs are taken."""
DMT = ("unguided", "dmt:quick", "dmt:draft", "dmt, four steps", "unguided, LoRA", "dmt, LoRA")
COMPARISONS = (
    ("dmt, LoRA", "unguided, LoRA"),
    ("dmt, four steps", "dmt, LoRA"),
    ("dmt:draft", "dmt, LoRA"),
    ("dmt:quick", "dmt, LoRA"),
)
GROUPS = {"shapes": ("object", "camera", "both"), "menagerie": ("near", "middle", "far")}
METRICS = {
    "shapes": {
        "moving_fidelity": "moving fidelity",
        "true_motion": "path correlation",
        "true_distance": "path distance",
        "camera_error": "camera error",
        "true_look": "look right",
    },
    "menagerie": {
        "true_motion": "path correlation",
        "true_distance": "path distance",
        "layout_kept": "layout kept",
        "kind_right": "kind right",
        "colour_right": "colour right",
        "gait_right": "gait right",
        "silhouette_leakage": "leakage of the silhouette",
    },
}


def learn(name: str, device: str) -> None:
    """Train in a folder of `OUT`, or resume there, and print every event."""
    model = Path(model_loading.source_of(name))
    config = FewStepConfig(model=model, out=OUT / name, device=device, **SIZES.get(name, {}))
    job = train(config, DATASETS[WORLDS[name]])
    for event in job:
        print(event, flush=True)
    print(job.result)


def score(model: str, prompts: int) -> None:
    """Score a model without its LoRA, and with it if one ships, and write the rows to `RESULTS`."""
    torch.set_num_threads(1)
    results = [row for row in _results() if row["model"] not in (model, f"{model}@4steps")]
    compared = [(model, *row) for row in COMPARED]
    if (with_lora := f"{model}@4steps") in few_step_lora.FILES:
        compared.append((with_lora, few_step_lora.STEPS, few_step_lora.GUIDANCE_SCALE))
    for name, steps, scale in compared:
        backbone = model_loading.load(name, Settings(device="cpu"))
        marks = list(scoring.ROWS[WORLDS[model]](backbone, prompts, steps, scale))
        results.append({"model": name, "steps": steps, "guidance_scale": scale, "marks": marks})
        print(_line(results[-1]), flush=True)
    RESULTS.write_text(json.dumps(results))


def table(model: str) -> str:
    """Markdown tables: unguided; and for a model with a LoRA, with DMT and the differences."""
    rows = [row for row in _results() if row["model"] in (model, f"{model}@4steps")]
    heads = ["model", "steps", "guidance scale", *COLUMNS[WORLDS[model]]]
    with_dmt = ["", *_with_dmt(model)] if model in TABLES else []
    differences = _differences(rows, COLUMNS[WORLDS[model]])
    return "\n".join([*_head(heads), *map(_line, rows), *differences, *with_dmt])


def _results() -> list[dict]:
    found: list[dict] = json.loads(RESULTS.read_text())
    return found


def _line(row: dict) -> str:
    cells = [f"`{row['model']}`", str(row["steps"]), f"{row['guidance_scale']:g}"]
    columns = COLUMNS[WORLDS[row["model"].removesuffix("@4steps")]]
    return f"| {' | '.join([*cells, *scoring.intervals(row['marks'], columns)])} |"


def _differences(rows: Sequence[dict], columns: Sequence[str]) -> Iterator[str]:
    """Paired differences over the prompts: the model with its LoRA minus the model itself."""
    *plain, with_lora = rows
    if not with_lora["model"].endswith("@4steps"):
        return
    for row in plain:
        marks = [
            {
                column: None
                if None in (one[column], other[column])
                else one[column] - other[column]
                for column in columns
            }
            for one, other in zip(with_lora["marks"], row["marks"], strict=True)
        ]
        cells = ["LoRA − without", str(row["steps"]), f"{row['guidance_scale']:g}"]
        yield f"| {' | '.join([*cells, *scoring.intervals(marks, columns)])} |"


def _with_dmt(model: str) -> Iterator[str]:
    """The means over all pairs and over each group, and the paired differences."""
    tables = [parquet.read_table(RESULTS.with_name(name)).to_pylist() for name in TABLES[model]]
    pairs = {(row["clip"], row["prompt"]) for row in tables[0]}
    results = [
        {**row, "variant": _name(row)}
        for rows in tables
        for row in rows
        if row["backbone"] and (row["clip"], row["prompt"]) in pairs
    ]
    results = [row for row in results if row["variant"] in DMT]
    metrics = METRICS[WORLDS[model]]
    heads = ["", "pairs", *metrics.values()]
    for group in (None, *GROUPS[WORLDS[model]]):
        yield from _head([group or "all", *heads[1:]])
        for name in DMT:
            own = [r for r in results if r["variant"] == name and group in (None, r["group"])]
            if own:
                means = [summary.mean(own, f"metric.{metric}") for metric in metrics]
                yield _row(name, len(own), means)
        yield ""
    yield from _head(["difference", *heads[1:]])
    # A difference is that of two variants on one model, so all rows get the same one.
    paired = [{**row, "backbone": model} for row in results]
    for one, other in COMPARISONS:
        differences = [summary.paired(paired, one, other, metric) for metric in metrics]
        if any(differences):
            pairs_of_both = max(mean.rows for mean in differences if mean)
            yield _row(f"{one} − {other}", pairs_of_both, differences)


def _name(row: Mapping[str, Any]) -> str:
    few = row["backbone"].endswith("@4steps")
    return f"{row['variant'].partition(':shapes')[0]}, LoRA" if few else row["variant"]


def _head(cells: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(cells)} |", "|---" * len(cells) + "|"]


def _row(name: str, pairs: int, found: Sequence[Any]) -> str:
    cells = ["–" if one is None else one.text() for one in found]
    return f"| {name} | {pairs} | {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("verb", choices=["train", "score", "table"])
    parser.add_argument(
        "--model", choices=WORLDS, default="shapes-dit", help="the model without its LoRA"
    )
    parser.add_argument("--device", default="cpu", help="of the training")
    parser.add_argument("--prompts", type=int, default=64)
    arguments = parser.parse_args()
    match arguments.verb:
        case "train":
            learn(arguments.model, arguments.device)
        case "score":
            score(arguments.model, arguments.prompts)
        case "table":
            print(table(arguments.model))
