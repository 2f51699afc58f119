"""How well DMT transfers motion with the shipped model, on held-out pairs of the shapes world.

    python benchmarks/dmt_on_shapes.py run --group main --pairs 64
    python benchmarks/dmt_on_shapes.py table --group main
    python benchmarks/dmt_on_shapes.py ceiling --pairs 100

A pair is a held-out clip whose subject moves, and a prompt for another colour, shape and
background. The oracle scores the pixels of each result against the ground truth. Each row is
written as soon as it is computed, and a rerun computes only missing rows; `--shard 0/2` and
`--shard 1/2` divide the work between two processes. `ceiling` measures the accuracy of the oracle
and of the autoencoder alone.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scoring
import torch
from variants import BASE, COSINES, GROUPS, LONG, MAIN, Variant

from recast.backbones import unet3d
from recast.backbones.base import Backbone, Settings
from recast.media.video import Video
from recast.metrics.base import ATTRIBUTES
from recast.motions.method import Sampling
from recast.motions.motion import Motion
from recast.pipeline import source_clip
from recast.worlds.shapes import captions, oracle, world

COLUMNS = {
    "correlation": "path correlation, median",
    "distance": "path distance, mean",
    "colour": "colour right",
    "shape": "shape right",
    "background": "background right",
    "moves": "moves",
    "drift": "background drift, 8-bit",
    "calls": "network calls",
    "seconds": "seconds to transfer",
}


def run(
    out: Path,
    group: str,
    count: int,
    shard: str,
    seed: int,
    model: str = "shapes",
    only: Sequence[str] = (),
) -> None:
    """Compute all missing rows of this shard, variant by variant."""
    torch.set_num_threads(1)
    index, shards = (int(part) for part in shard.split("/"))
    backbone = unet3d.load(model, Settings(device="cpu"))
    mine = [pair for pair in scoring.pairs(count) if pair[0] % shards == index]
    path = out.with_suffix(f".{index}.jsonl") if shards > 1 else out
    if any(row["model"] != backbone.fingerprint for row in _rows(out)):
        raise SystemExit(f"{out} has rows of another model; give another --out, or remove the file")
    done = {(row["variant"], row["pair"]) for row in _rows(out)}
    # First variant by variant; then, pair by pair, the two variants that share a long inversion.
    variants = {name: GROUPS[group][name] for name in only or GROUPS[group]}
    short = [name for name in variants if name not in LONG]
    todo = [(name, pair) for name in short for pair in mine]
    todo += [(name, pair) for pair in mine for name in LONG if name in variants]
    for name, (number, source, target) in todo:
        if (name, number) in done:
            continue
        variant = variants[name]
        sampling = Sampling(
            steps=variant.steps,
            guidance_scale=variant.guidance_scale or backbone.defaults.guidance_scale,
            seed=seed + number,
        )
        motion_file = out.parent / f".motion-{number}.safetensors" if name in LONG else None
        motion = _learn_or_load(backbone, variant, source, sampling, motion_file)
        row = {"model": backbone.fingerprint, "variant": name, "pair": number}
        row["steps"] = variant.steps
        row |= _measure(backbone, variant, motion, source, target, sampling)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _learn_or_load(
    backbone: Backbone,
    variant: Variant,
    source: world.Scene,
    sampling: Sampling,
    motion_file: Path | None,
) -> Motion:
    """The motion, which is learned, or loaded from `motion_file` if it exists."""
    if motion_file is None or not motion_file.exists():
        before, video = backbone.nfe, source_clip.to_tensor(Video(world.render(source), world.FPS))
        learner = MAIN[LONG[0]].method if motion_file else variant.method
        prompt = captions.prompt(source) if variant.described else ""
        motion: Motion = learner.learn(backbone, video, prompt, sampling).run()
        metadata = {**motion.metadata, "calls": backbone.nfe - before}
        motion = dataclasses.replace(motion, metadata=metadata)
        if motion_file is None:
            return motion
        motion.save(motion_file)
    motion = Motion.load(motion_file)
    settings = dict(variant.method.cache_key_settings())
    return dataclasses.replace(motion, metadata={**motion.metadata, "settings": settings})


def _measure(
    backbone: Backbone,
    variant: Variant,
    motion: Motion,
    source: world.Scene,
    target: world.Scene,
    sampling: Sampling,
) -> dict[str, object]:
    before, start_time = backbone.nfe, time.perf_counter()
    prompt = captions.prompt(target)
    with variant.patched():
        latents = variant.method.transfer(backbone, motion, prompt, sampling).run()
    frames = source_clip.to_video(backbone.decode(latents), world.FPS).frames
    seconds = time.perf_counter() - start_time
    return {
        "prompt": prompt,
        **scoring.oracle_scores(frames, source, target),
        "calls": motion.metadata["calls"] + backbone.nfe - before,
        "seconds": round(seconds, 2),
    }


def ceiling(count: int) -> str:
    """How often the oracle is correct on rendered clips, and on clips that the autoencoder has
    encoded and decoded."""
    backbone = unet3d.load("shapes", Settings(device="cpu"))
    errors: list[float] = []
    correct = {"rendered": np.zeros(3, int), "through the autoencoder": np.zeros(3, int)}
    for seed in world.HELD_OUT[:count]:
        scene = world.sample(seed)
        video = source_clip.to_tensor(Video(world.render(scene), world.FPS))
        back = backbone.decode(backbone.encode(video))
        errors.append(float((back - video).square().mean()))
        for name, tensor in zip(correct, (video, back), strict=True):
            detection = oracle.detect(source_clip.to_video(tensor, world.FPS).frames)
            correct[name] += [
                getattr(detection, attribute) == getattr(scene, attribute)
                for attribute in ATTRIBUTES["shapes"]
            ]
    lines = [f"autoencoder, mean squared error on [-1, 1]: {np.mean(errors):.4f}"]
    lines += [
        f"{name}, colour / shape / background right: {n} of {count}" for name, n in correct.items()
    ]
    return "\n".join(lines)


def _rows(out: Path) -> list[dict]:
    files = [out, *sorted(out.parent.glob(f"{out.stem}.*.jsonl"))]
    return [json.loads(line) for file in files if file.exists() for line in file.open()]


def table(out: Path, group: str) -> str:
    """A Markdown table with bootstrap 95 % intervals over pairs."""
    rows = _rows(out)
    lines = [
        f"| variant | pairs | {' | '.join(COLUMNS.values())} |",
        "|" + "---|" * (len(COLUMNS) + 2),
    ]
    for name in dict.fromkeys([COSINES, BASE, *GROUPS[group]]):
        mine = [row for row in rows if row["variant"] == name]
        if mine:
            cells = [_cell(mine, column) for column in COLUMNS]
            lines.append(f"| {name} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(out: Path, group: str) -> str:
    """The difference of each variant to the base of its group, over the pairs that both have, with
    95 % intervals."""
    other = COSINES if group == "cosine" else BASE
    rows: dict[str, dict[int, dict]] = {}
    for row in _rows(out):
        rows.setdefault(row["variant"], {})[row["pair"]] = row
    columns = list(COLUMNS)[:5]
    lines = [
        f"| difference to {other} | pairs | {' | '.join(columns)} |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for name in [name for name in GROUPS[group] if name in rows and name != other]:
        both = sorted(set(rows[name]) & set(rows[other]))
        cells = []
        for column in columns:
            values = [[float(rows[v][n][column]) for n in both] for v in (name, other)]
            cells.append(scoring.interval(np.subtract(*values), np.mean))
        lines.append(f"| {name} | {len(both)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: list[dict], column: str) -> str:
    values = np.array([row[column] for row in rows if row[column] is not None], float)
    if len(values) and column in ("calls", "seconds"):
        return f"{values.mean():.0f}"
    middle = np.median if column == "correlation" else np.mean
    return scoring.interval(values, middle)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("verb", choices=["run", "table", "ceiling"])
    parser.add_argument("--group", choices=GROUPS, nargs="*", default=["main"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dmt-on-shapes.jsonl"))
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--shard", default="0/1", help="this process's share, such as 0/2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="shapes", help="another model's folder")
    parser.add_argument("--only", nargs="*", default=[], help="these variants of the group alone")
    arguments = parser.parse_args()
    if arguments.verb == "ceiling":
        print(ceiling(arguments.pairs))
    for group in arguments.group if arguments.verb != "ceiling" else []:
        if arguments.verb == "run":
            run(
                arguments.out,
                group,
                arguments.pairs,
                arguments.shard,
                arguments.seed,
                arguments.model,
                arguments.only,
            )
        print(f"{table(arguments.out, group)}\n\n{differences(arguments.out, group)}\n")
