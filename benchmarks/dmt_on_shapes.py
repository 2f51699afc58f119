"""How well DMT moves things on the shipped model, on held-out pairs of the shapes world.

    python benchmarks/dmt_on_shapes.py run --group main --pairs 64
    python benchmarks/dmt_on_shapes.py table --group main
    python benchmarks/dmt_on_shapes.py ceiling --pairs 100

A pair is a held-out clip whose subject moves, and a prompt for another colour, shape and scene.
Results are judged by the oracle on the pixels, against the world's truth. A row is written as
soon as it is done; a rerun does only what is missing; `--shard 0/2` and `--shard 1/2` share the
work between two processes. `ceiling` says what the oracle and the autoencoder alone let through.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import scoring
import torch
from torch import Tensor

from recast import clips, losses
from recast.backbones import unet3d
from recast.backbones.base import Backbone, Settings
from recast.methods import base, dmt, unguided
from recast.shapes import captions, oracle, world
from recast.video import Video

FAST = dmt.PRESETS["fast"]


@dataclass(frozen=True)
class Variant:
    """A method, how it is run, and what is put in the place of a part of it."""

    method: base.Method[Any]
    steps: int = 25
    guidance_scale: float | None = None
    """The model's own for None."""
    described: bool = False
    """Whether the source is learned under its own caption, and not under an empty one."""
    patched: Callable[[], AbstractContextManager[Any]] = nullcontext


def fast(changes: dict[str, Any] | None = None, **options: Any) -> Variant:
    """The fast preset with some settings changed."""
    return Variant(dmt.Method(dataclasses.replace(FAST, **changes or {})), **options)


@contextmanager
def normalised_loss() -> Iterator[None]:
    """Eq. 3 with every channel divided by the source's own deviation over the clip."""

    def loss(phi: Tensor, target: Tensor) -> Tensor:
        deviation = target.std(1, keepdim=True) + 1e-6
        return losses.pairwise_difference(phi / deviation, target / deviation)

    with mock.patch.dict(dmt._LOSSES, {"pairwise": loss}):
        yield


def along_the_gradient(momentum: float) -> Callable[[], AbstractContextManager[None]]:
    """Steps of rms `lr` along the gradient, not Adam's; the momentum outlives the level."""

    @contextmanager
    def patched() -> Iterator[None]:
        velocity = torch.zeros(())

        def minimize(
            loss: Callable[[Tensor], Tensor], start: Tensor, lrs: Sequence[float]
        ) -> tuple[Tensor, list[float]]:
            nonlocal velocity
            x, history = start.detach(), []
            for lr in lrs:
                with torch.enable_grad():
                    leaf = x.clone().requires_grad_(True)
                    value = loss(leaf)
                    (gradient,) = torch.autograd.grad(value, leaf)
                history.append(float(value.detach()))
                unit = gradient / gradient.square().mean().sqrt().clamp_min(1e-20)
                velocity = momentum * velocity + (1 - momentum) * unit
                x = x - lr * velocity
            return x, history

        with mock.patch.object(dmt, "minimize", minimize):
            yield

    return patched


# One inversion serves `paper` and `reference`: 999 and 1000 steps refine 50 levels alike, and the
# taps of `reference` hold that of `paper`. These two take the 50 sampling steps of the paper.
MAIN = {
    "unguided": Variant(unguided.Method(unguided.Config()), steps=50),
    "eq. 4's noise alone": fast({"guided": 0.0}),
    "DMT fast": fast(),
    "SMM, pairwise (eq. 3)": fast({"cells": 1}),
    "SMM, no differences": fast({"cells": 1, "loss": "absolute"}),
    "full features": fast({"feature": "full", "loss": "absolute"}),
    "random noise, guided": fast({"initial_noise": "random"}),
    "DMT reference": Variant(dmt.Method(dmt.PRESETS["reference"]), steps=50),
    "DMT paper": Variant(dmt.Method(dmt.PRESETS["paper"]), steps=50),
}
COSINE = {"loss": "pairwise_cosine"}
LONG = ("DMT reference", "DMT paper")
BLOCK_1 = ("motion", "decoder1.spatial_conv", "decoder1.temporal_conv")
GROUPS: dict[str, dict[str, Variant]] = {
    "main": MAIN,
    "start": {
        **{f"ξ = {factor}": fast({"low_pass_factor": factor}) for factor in (2, 8)},
        "ξ = 2, noise alone": fast({"low_pass_factor": 2, "guided": 0.0}),
        "inverted noise": fast({"initial_noise": "inverted"}),
        "inverted noise alone": fast({"initial_noise": "inverted", "guided": 0.0}),
        "blended noise, p = 0.5": fast({"initial_noise": "blended"}),
    },
    "levels": {
        f"guided on {share:.0%} of the levels": fast({"guided": share})
        for share in (0.2, 0.4, 0.8, 1.0)
    },
    "inner steps": {
        **{f"{count} inner steps": fast({"inner_steps": count}) for count in (2, 5, 20)},
        **{f"lr {lr} → {lr / 2}": fast({"lr": lr, "lr_end": lr / 2}) for lr in (0.01, 0.02, 0.08)},
        "lr 0.04 → 0.005": fast({"lr_end": 0.005}),
        "lr rising, 0.005 → 0.06": fast({"lr": 0.005, "lr_end": 0.06}),
        "5 inner steps, 40 % of the levels": fast({"inner_steps": 5, "guided": 0.4}),
        "along the gradient": fast(patched=along_the_gradient(0.0)),
        "along the gradient, momentum 0.9": fast(patched=along_the_gradient(0.9)),
    },
    "cells": {f"{cells}×{cells} cells": fast({"cells": cells}) for cells in (1, 3, 4)},
    "taps": {
        **{
            role: fast({"taps": (role,)})
            for role in (
                "middle",
                "decoder0.upsampler",
                "decoder2.upsampler",
                "decoder1.temporal_conv",
                "decoder2.spatial_conv",
                "decoder3.spatial_conv",
            )
        },
        "block 1, three taps": fast({"taps": BLOCK_1}),
        "upsamplers 0, 1 and 2": fast(
            {"taps": ("decoder0.upsampler", "motion", "decoder2.upsampler")}
        ),
    },
    "loss": {
        "cosine": fast({"loss": "pairwise_cosine"}),
        "channels normalised": fast(patched=normalised_loss),
        "eq. 3, channels normalised": fast({"cells": 1}, patched=normalised_loss),
    },
    "cosine": {
        "cosine, one mean": fast({**COSINE, "cells": 1}),
        "cosine, guided on 40% of the levels": fast({**COSINE, "guided": 0.4}),
        "cosine, 5 inner steps": fast({**COSINE, "inner_steps": 5}),
        "cosine, lr 0.08 → 0.04": fast({**COSINE, "lr": 0.08, "lr_end": 0.04}),
        "cosine, lr 0.02 → 0.01": fast({**COSINE, "lr": 0.02, "lr_end": 0.01}),
        "cosine, full features": fast({**COSINE, "feature": "full"}),
    },
    "learning": {
        "100 inversion steps": fast({"inversion_steps": 100}),
        "200 inversion steps": fast({"inversion_steps": 200}),
        "inverted under the source's caption": fast(described=True),
    },
    "sampling": {
        "restart": fast({"restart": True}),
        "guidance scale 2": fast(guidance_scale=2.0),
        "guidance scale 7": fast(guidance_scale=7.0),
        "50 steps": fast(steps=50),
    },
}
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
    """Make every missing row of this shard, variant by variant."""
    torch.set_num_threads(1)
    index, shards = (int(part) for part in shard.split("/"))
    backbone = unet3d.load(model, Settings(device="cpu"))
    mine = [pair for pair in scoring.pairs(count) if pair[0] % shards == index]
    path = out.with_suffix(f".{index}.jsonl") if shards > 1 else out
    if any(row["model"] != backbone.fingerprint for row in _rows(out)):
        raise SystemExit(f"{out} has rows of another model; give another --out, or remove it")
    done = {(row["variant"], row["pair"]) for row in _rows(out)}
    # Variant by variant; then, pair by pair, the two that share a long inversion.
    variants = {name: GROUPS[group][name] for name in only or GROUPS[group]}
    short = [name for name in variants if name not in LONG]
    todo = [(name, pair) for name in short for pair in mine]
    todo += [(name, pair) for pair in mine for name in LONG if name in variants]
    for name, (number, source, look) in todo:
        if (name, number) in done:
            continue
        variant = variants[name]
        sampling = base.Sampling(
            steps=variant.steps,
            guidance_scale=variant.guidance_scale or backbone.defaults.guidance_scale,
            seed=seed + number,
        )
        kept = out.parent / f".motion-{number}.safetensors" if name in LONG else None
        motion = _learned(backbone, variant, source, sampling, kept)
        row = {"model": backbone.fingerprint, "variant": name, "pair": number}
        row["steps"] = variant.steps
        row |= _measured(backbone, variant, motion, source, look, sampling)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _learned(
    backbone: Backbone,
    variant: Variant,
    source: world.Scene,
    sampling: base.Sampling,
    kept: Path | None,
) -> base.Motion:
    """The motion, learned, or taken from the file `kept`."""
    if kept is None or not kept.exists():
        before, video = backbone.calls, clips.to_tensor(Video(world.render(source), world.FPS))
        learner = MAIN[LONG[0]].method if kept else variant.method
        prompt = captions.prompt(source) if variant.described else ""
        motion: base.Motion = scoring.last(learner.learn(backbone, video, prompt, sampling))
        metadata = {**motion.metadata, "calls": backbone.calls - before}
        motion = dataclasses.replace(motion, metadata=metadata)
        if kept is None:
            return motion
        motion.save(kept)
    motion = base.Motion.load(kept)
    settings = dict(variant.method.learned_settings())
    return dataclasses.replace(motion, metadata={**motion.metadata, "settings": settings})


def _measured(
    backbone: Backbone,
    variant: Variant,
    motion: base.Motion,
    source: world.Scene,
    look: world.Scene,
    sampling: base.Sampling,
) -> dict[str, object]:
    before, began = backbone.calls, time.perf_counter()
    prompt = captions.prompt(look)
    with variant.patched():
        latents = scoring.last(variant.method.transfer(backbone, motion, prompt, sampling))
    frames = clips.to_video(backbone.decode(latents), world.FPS).frames
    seconds = time.perf_counter() - began
    return {
        "prompt": prompt,
        **scoring.judged(frames, source, look),
        "calls": motion.metadata["calls"] + backbone.calls - before,
        "seconds": round(seconds, 2),
    }


def ceiling(count: int) -> str:
    """How often the oracle is right on rendered clips, and on those the autoencoder gives back."""
    backbone = unet3d.load("shapes", Settings(device="cpu"))
    errors: list[float] = []
    right = {"rendered": np.zeros(3, int), "through the autoencoder": np.zeros(3, int)}
    for seed in world.HELD_OUT[:count]:
        scene = world.sample(seed)
        video = clips.to_tensor(Video(world.render(scene), world.FPS))
        back = backbone.decode(backbone.encode(video))
        errors.append(float((back - video).square().mean()))
        for name, tensor in zip(right, (video, back), strict=True):
            verdict = oracle.judge(clips.to_video(tensor, world.FPS).frames)
            looks = ("colour", "shape", "background")
            right[name] += [getattr(verdict, look) == getattr(scene, look) for look in looks]
    lines = [f"autoencoder, mean squared error on [-1, 1]: {np.mean(errors):.4f}"]
    lines += [
        f"{name}, colour / shape / background right: {n} of {count}" for name, n in right.items()
    ]
    return "\n".join(lines)


def _rows(out: Path) -> list[dict]:
    files = [out, *sorted(out.parent.glob(f"{out.stem}.*.jsonl"))]
    return [json.loads(line) for file in files if file.exists() for line in file.open()]


def table(out: Path, group: str) -> str:
    """Markdown, with bootstrap 95 % intervals over pairs."""
    rows = _rows(out)
    lines = [
        f"| variant | pairs | {' | '.join(COLUMNS.values())} |",
        "|" + "---|" * (len(COLUMNS) + 2),
    ]
    for name in dict.fromkeys(["DMT fast", *GROUPS[group]] if group != "main" else MAIN):
        mine = [row for row in rows if row["variant"] == name]
        if mine:
            cells = [_cell(mine, column) for column in COLUMNS]
            lines.append(f"| {name} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(out: Path, group: str, other: str = "DMT fast") -> str:
    """Every variant less DMT fast on the pairs that both have, means with 95 % intervals."""
    found: dict[str, dict[int, dict]] = {}
    for row in _rows(out):
        found.setdefault(row["variant"], {})[row["pair"]] = row
    columns = list(COLUMNS)[:5]
    lines = [f"| less {other} | pairs | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 2)]
    for name in [name for name in GROUPS[group] if name in found and name != other]:
        both = sorted(set(found[name]) & set(found[other]))
        cells = []
        for column in columns:
            values = [[float(found[v][n][column]) for n in both] for v in (name, other)]
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
