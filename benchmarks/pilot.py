"""The pilot study: which design of the shipped model learns fastest in equal time on one core.

    python benchmarks/pilot.py run --only 8x8
    python benchmarks/pilot.py table

Each candidate is trained for about twenty minutes on one thread; its number of steps is chosen for
that, and the table shows the measured time. It uses the text encoder of the shipped model, and its
autoencoder if the latents have the same size. The oracle then scores clips generated from held-out
prompts, and a linear probe measures how well features predict the position of the subject.
"""

import argparse
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scoring
import torch

from recast.analysis.probe import ProbeConfig, probe
from recast.backbones import unet3d
from recast.backbones.base import Settings
from recast.events import Event, Job, Step
from recast.worlds.shapes import world
from recast.worlds.shapes.dataset import DATASET
from recast.worlds.training import train as training
from recast.worlds.training.networks import Design
from recast.worlds.training.train import TrainConfig

COLUMNS = ("colour", "shape", "background", "moves", "drift")
PROBED = ("decoder1.upsampler", "decoder2.upsampler")
EPSILON = {"prediction": "epsilon", "zero_snr": False}


@dataclass(frozen=True)
class Candidate:
    """A design, and its training steps on clips of one, four and sixteen frames.

    `joint` is the fraction of the last steps that use four frames instead.
    """

    steps: tuple[int, int, int]
    design: Design = field(default_factory=Design)
    joint: float = 0.0


PLAIN = (60, 230, 600)
CANDIDATES = {
    "8x8": Candidate(PLAIN),
    "16x16": Candidate((5, 20, 50), Design(autoencoder=(32, 64, 64), latent_channels=4)),
    "12x12": Candidate((20, 75, 200), Design(size=96)),
    "epsilon": Candidate(PLAIN, Design(**EPSILON)),
    "epsilon, offset noise": Candidate(PLAIN, Design(**EPSILON, offset_noise=0.1)),
    "more high noise": Candidate(PLAIN, Design(high_noise=2.0)),
    "joint": Candidate((0, 0, 890), joint=0.5),
    "thin top, wide bottom": Candidate((75, 290, 755), Design(unet=(32, 64, 96, 128))),
}


def run(name: str, folder: Path, out: Path, count: int, clips: int) -> None:
    """Train and score a candidate, and append its row to `out`."""
    candidate = CANDIDATES[name]
    design = candidate.design
    place = folder / name.replace(", ", "-").replace(" ", "-")
    start = _grid(design, folder, clips)
    place.mkdir(parents=True, exist_ok=True)
    latents = place / "latents"
    if not latents.exists():
        latents.symlink_to((start.parent / "latents").absolute())
    image, short, whole = candidate.steps
    config = TrainConfig(
        out=place,
        clips=clips,
        start=start,
        start_parts=("autoencoder", "clip"),
        autoencoder_steps=0,
        clip_steps=0,
        image_steps=image,
        short_steps=short,
        steps=whole,
        joint=candidate.joint,
    )
    model = _train(training.train(config, DATASET, design))
    backbone = unet3d.load(str(model), Settings(device="cpu"))
    marks = list(scoring.unguided_rows(backbone, count, backbone.defaults.steps))
    probed = probe(backbone, ProbeConfig(clips=100, roles=PROBED)).run()
    logs = [place / f"unet{frames}.jsonl" for frames in (1, 4, world.FRAMES)]
    seconds = [
        json.loads(log.read_text().splitlines()[-1])["seconds"] for log in logs if log.exists()
    ]
    row = {
        "name": name,
        "design": dataclasses.asdict(design),
        "steps": candidate.steps,
        "minutes": round(sum(seconds) / 60, 1),
        "probe": {row.role: row.r2 for row in probed},
        "marks": marks,
    }
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _grid(design: Design, folder: Path, clips: int) -> Path:
    """A model folder with an autoencoder for latents of this size; its parent folder holds the
    latents of all clips."""
    same = (design.size, design.autoencoder) == (Design().size, Design().autoencoder)
    place = folder / f"grid{design.grid}"
    config = TrainConfig(
        out=place,
        clips=clips,
        start=unet3d.SHAPES,
        start_parts=("autoencoder", "clip") if same else ("clip",),
        autoencoder_steps=0 if same else 400,
        clip_steps=0,
        image_steps=0,
        short_steps=0,
        steps=0,
    )
    plain = Design(
        size=design.size, autoencoder=design.autoencoder, latent_channels=design.latent_channels
    )
    model = place / "model"
    return model if model.exists() else _train(training.train(config, DATASET, plain))


def _train(training_job: Job[Path]) -> Path:
    """Run a training and print its progress."""
    return training_job.run(_print_step)


def _print_step(event: Event) -> None:
    if isinstance(event, Step) and event.index % 50 == 0:
        print(event.stage, event.index, event.total, dict(event.metrics), flush=True)


def table(out: Path) -> str:
    """A Markdown table with bootstrap 95 % intervals over prompts."""
    head = ["candidate", "steps", "minutes", "prompts", *COLUMNS]
    head += [f"R² {role}" for role in PROBED]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in map(json.loads, out.open()):
        marks = row["marks"]
        cells = [row["name"], "/".join(map(str, row["steps"]))]
        cells += [f"{row['minutes']:.0f}", str(len(marks))]
        for column in COLUMNS:
            values = [mark[column] for mark in marks if mark[column] is not None]
            cells.append(scoring.interval(np.array(values, float)))
        cells += [" / ".join(f"{r2:.2f}" for r2 in row["probe"][role]) for role in PROBED]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("verb", choices=["run", "table"])
    parser.add_argument("--only", nargs="*", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--folder", type=Path, default=Path("runs/pilot"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pilot.jsonl"))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--clips", type=int, default=4_000)
    arguments = parser.parse_args()
    if arguments.verb == "run":
        torch.set_num_threads(1)
        for one in arguments.only:
            run(one, arguments.folder, arguments.out, arguments.prompts, arguments.clips)
    print(table(arguments.out))
