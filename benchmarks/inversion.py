"""How well the ways to invert a clip recover a white noise, and what they do to subjects.

    python benchmarks/inversion.py noise --backbone shapes-dit --pairs 4
    python benchmarks/inversion.py table --backbone shapes-dit --pairs 4
    python benchmarks/inversion.py vanish

`noise` inverts held-out clips under their own captions, and samples them back without guidance.
`vanish` counts the frames in which DMT loses the subject, for a prompt with which it often does.
Each row is written as soon as it is computed, and a rerun computes only missing rows.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import scoring
import torch
from torch import Tensor

from recast.backbones.base import Backbone, Settings
from recast.diffusion.ddim_inversion import inversion_grid, invert
from recast.diffusion.noise_schedule import Denoised, Denoiser, Schedule, per_sample
from recast.diffusion.sampling import sample
from recast.feature_guidance.levels import noised_source
from recast.media.video import Video
from recast.methods import dmt
from recast.motions.method import Sampling
from recast.pipeline import model_loading, source_clip
from recast.worlds.shapes import captions, oracle, world

RESULTS = Path(__file__).parent / "results" / "inversion.jsonl"
VANISHING = "a green star on a gray background"
# (denoiser, schedule, times from clean to noisy, x at the first time) -> x at every later time
Solver = Callable[[Denoiser, Schedule, Tensor, Tensor], Iterator[Tensor]]


def step(schedule: Schedule, x: Tensor, out: Denoised, t: Tensor, s: Tensor) -> Tensor:
    """x_s from x_t with estimates that may belong to another point of the trajectory."""
    alpha, sigma = (per_sample(v(s) - v(t), x) for v in (schedule.alpha, schedule.sigma))
    return x + alpha * out.x0 + sigma * out.eps


def ddim(denoise: Denoiser, schedule: Schedule, times: Tensor, x: Tensor) -> Iterator[Tensor]:
    yield from (level.x for level in invert(denoise, schedule, times.flip(0), x))


def adams(denoise: Denoiser, schedule: Schedule, times: Tensor, x: Tensor) -> Iterator[Tensor]:
    yield from (level.x for level in invert(denoise, schedule, times.flip(0), x, "noised"))


def fixed_point(iterations: int) -> Solver:
    """The implicit step: the x_s from which the sampler's step returns to x_t."""

    def solve(denoise: Denoiser, schedule: Schedule, times: Tensor, x: Tensor) -> Iterator[Tensor]:
        for t, s in pairwise(times):
            y = step(schedule, x, denoise(x, t), t, s)
            for _ in range(iterations):
                y = step(schedule, x, denoise(y, s), t, s)
            x = y
            yield x

    return solve


def midpoint(denoise: Denoiser, schedule: Schedule, times: Tensor, x: Tensor) -> Iterator[Tensor]:
    """RF-Solver (Wang et al. 2024, eq. 9): its finite difference makes it the midpoint method."""
    for t, s in pairwise(times):
        middle = (t + s) / 2
        half = step(schedule, x, denoise(x, t), t, middle)
        x = step(schedule, x, denoise(half, middle), t, s)
        yield x


def fireflow(denoise: Denoiser, schedule: Schedule, times: Tensor, x: Tensor) -> Iterator[Tensor]:
    """FireFlow (Deng et al. 2024): the midpoint method, which reuses the last middle estimate."""
    out = denoise(x, times[0])
    for t, s in pairwise(times):
        middle = (t + s) / 2
        out = denoise(step(schedule, x, out, t, middle), middle)
        x = step(schedule, x, out, t, s)
        yield x


# Name -> where the clip starts and how it goes on. All starts except the clean clip add noise.
VARIANTS: dict[str, tuple[str, Solver]] = {
    "clean, DDIM (`ddim`)": ("clean", ddim),
    "middle of the last step, Adams-Bashforth (`noised`)": ("middle", adams),
    "clean, fixed point, 1 iteration": ("clean", fixed_point(1)),
    "clean, fixed point, 3 iterations": ("clean", fixed_point(3)),
    "clean, RF-Solver": ("clean", midpoint),
    "clean, FireFlow": ("clean", fireflow),
    "clean, Adams-Bashforth": ("clean", adams),
    "first velocity at the last level, DDIM": ("velocity", ddim),
    "tenth of the last level, Adams-Bashforth": ("tenth", adams),
    "middle of the last step, DDIM": ("middle", ddim),
    "middle of the last step, fixed point, 1 iteration": ("middle", fixed_point(1)),
    "middle of the last step, RF-Solver": ("middle", midpoint),
    "middle of the last step, FireFlow": ("middle", fireflow),
    "last level, Adams-Bashforth": ("last", adams),
}


def start(backbone: Backbone, kind: str, grid: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """The times of the inversion, from clean to noisy, and x at the first time."""
    steps, schedule = len(grid) - 1, backbone.schedule
    if kind in ("clean", "velocity"):
        return grid.flip(0), x0
    if kind == "middle":
        times = inversion_grid(schedule, grid, steps, "noised").flip(0)
    elif kind == "tenth":
        times = torch.cat([grid[-2:-1] / 10, grid.flip(0)[1:]])
    else:
        times = grid.flip(0)[1:]
    return times, noised_source(backbone, x0, times[0])


def noise_row(backbone: Backbone, name: str, denoise: Denoiser, grid: Tensor, x0: Tensor) -> dict:
    """What one variant makes of one clip."""
    kind, solver = VARIANTS[name]
    schedule, before = backbone.schedule, backbone.nfe
    times, x = start(backbone, kind, grid, x0)
    if kind == "velocity":  # the first step goes along the velocity at a noised clip
        x = step(schedule, x0, denoise(noised_source(backbone, x0, times[1]), times[1]), *times[:2])
        times = times[1:]
    deviations = []
    for s, x_s in zip(times[1:], solver(denoise, schedule, times, x), strict=True):
        x = x_s
        noise = (x - per_sample(schedule.alpha(s), x) * x0) / per_sample(schedule.sigma(s), x)
        deviations.append(round(float(noise.std()), 4))
    calls = backbone.nfe - before
    *_, last = sample(denoise, schedule, grid, x)
    error = float((last.x - x0).square().mean().sqrt() / x0.std())
    return {"variant": name, **whiteness(x[0]), "error": error, "calls": calls, "steps": deviations}


def whiteness(noise: Tensor) -> dict[str, float]:
    """Deviation, correlations of neighbours and kurtosis of x_T (C, F, H, W). White noise has 1, 0,
    0 and 3."""
    centred = noise - noise.mean((1, 2, 3), keepdim=True)
    variance = centred.square().mean()

    def correlation(axis: int) -> float:
        size = centred.shape[axis]
        shifted, rest = centred.narrow(axis, 1, size - 1), centred.narrow(axis, 0, size - 1)
        return float((shifted * rest).mean() / variance)

    return {
        "deviation": float(noise.std()),
        "in space": (correlation(2) + correlation(3)) / 2,
        "over time": correlation(1),
        "kurtosis": float((centred**4).mean() / variance**2),
    }


def noise(backbone_name: str, count: int, steps: int, out: Path) -> None:
    """Compute all missing rows of `count` clips."""
    backbone = model_loading.load(backbone_name, Settings(device="cpu"))
    done = {identity(row) for row in rows(out)}
    for number, source, _ in scoring.pairs(count):
        x0 = backbone.encode(source_clip.to_tensor(Video(world.render(source), world.FPS)))
        denoise = backbone.denoiser(backbone.encode_text([captions.prompt(source)]))
        grid = backbone.schedule.sized(x0.shape).grid(steps)
        for name in VARIANTS:
            if (backbone_name, steps, name, number) in done:
                continue
            if backbone.schedule.prediction != "flow" and VARIANTS[name][1] in (midpoint, fireflow):
                continue  # a network of discrete levels has none in the middle of two
            with torch.no_grad():
                row = noise_row(backbone, name, denoise, grid, x0)
            head = {"backbone": backbone_name, "sampling steps": steps, "clip": number}
            append(out, head | row)


COLUMNS: dict[str, Callable[[dict], float]] = {
    "deviation after the first step": lambda row: row["steps"][0],
    "of x_T": lambda row: row["deviation"],
    "correlation in space": lambda row: row["in space"],
    "over time": lambda row: row["over time"],
    "kurtosis": lambda row: row["kurtosis"],
    "error": lambda row: row["error"],
}


def table(backbone_name: str, count: int, steps: int, out: Path) -> None:
    """Print means over `count` clips, with bootstrap 95 % intervals."""
    print(f"| variant | {' | '.join(COLUMNS)} | calls |\n|{'---|' * (len(COLUMNS) + 2)}")
    chosen = [
        row
        for row in rows(out)
        if identity(row)[:2] == (backbone_name, steps) and row["clip"] < count
    ]
    for name in VARIANTS:
        found = [row for row in chosen if row["variant"] == name]
        if found:
            values = (np.array([column(row) for row in found]) for column in COLUMNS.values())
            print(f"| {name} | {' | '.join(map(scoring.interval, values))} | {found[0]['calls']} |")


def vanish(count: int, steps: int, out: Path) -> None:
    """Transfer the motion of `count` clips to the prompt by DMT, after each kind of inversion."""
    backbone = model_loading.load("shapes-dit", Settings(device="cpu"))
    done = {identity(row) for row in rows(out)}
    sampling = Sampling(steps=steps, guidance_scale=backbone.defaults.guidance_scale)
    method = dmt.Method(dmt.PRESETS["shapes"])
    for number, source, _ in scoring.pairs(count):
        video = source_clip.to_tensor(Video(world.render(source), world.FPS))
        for kind in ("ddim", "noised"):
            name = f"dmt after {kind}"
            if ("shapes-dit", steps, name, number) in done:
                continue
            backbone.inversion = kind
            motion = method.learn(backbone, video, captions.prompt(source), sampling).run()
            latents = method.transfer(backbone, motion, VANISHING, sampling).run()
            frames = source_clip.to_video(backbone.decode(latents), world.FPS).frames
            missing = int((~oracle.detect(frames).seen).sum())
            head = {"backbone": "shapes-dit", "sampling steps": steps, "clip": number}
            append(out, head | {"variant": name, "missing": missing})


def identity(row: dict) -> tuple[str, int, str, int]:
    return row["backbone"], row["sampling steps"], row["variant"], row["clip"]


def append(out: Path, row: dict) -> None:
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.open()] if out.exists() else []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("verb", choices=["noise", "table", "vanish"])
    parser.add_argument("--backbone", default="shapes-dit")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25, help="steps of the sampler")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of the rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.verb == "noise":
        noise(arguments.backbone, arguments.pairs, arguments.steps, arguments.out)
    elif arguments.verb == "table":
        table(arguments.backbone, arguments.pairs, arguments.steps, arguments.out)
    else:
        vanish(arguments.pairs, arguments.steps, arguments.out)
