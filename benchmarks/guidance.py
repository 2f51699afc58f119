"""Does the guidance of a method reach the sample, and does its loss know the motion?

    python benchmarks/guidance.py motionclone shapes
    python benchmarks/guidance.py ditflow shapes-dit --set queries=queries6 keys=keys6 lr=0.08
    python benchmarks/guidance.py dmt shapes --pairs 12 --roles

A table over held-out pairs that no shipped suite has (those of `suites/tuning-shapes.toml`), at the
first, the middle and the last level with guidance:

- right motion: the loss of the perfect result, the source's motion in the appearance that the
  prompt names. The model's estimates are replaced by that clip, so that the sample is the clip with
  the initial noise.
- other motion: the loss of the same appearance with the motion of another pair of the group. A loss
  that does not tell the two apart (`told apart`: in how many pairs it does) cannot guide.
- unguided: the loss of a sample without guidance (weight or learning rate of almost 0).
- guided: the loss of the guided sample, before and after the inner steps of the level.
- guidance / step: the norm of what guidance adds to the sampler's step, divided by the norm of that
  step. Far below 0.01 nothing happens; far above 1 the sample is destroyed.

The last line is the distance between the path of the subject and that of the source, in frame
widths, without and with guidance. With `--roles`, a linear probe of each role of the method follows
(`recast analyze probe`), on 40 clips.
"""

import argparse
import ast
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

import recast
from recast.analysis.probe import ProbeConfig, probe
from recast.backbones.base import Backbone
from recast.bench import shapes_pairs, suite
from recast.bench.suite import Case
from recast.diffusion.noise_schedule import Denoised, Denoiser
from recast.diffusion.sampling import ddim
from recast.events import Step
from recast.feature_guidance import sampling_loop
from recast.media.video import Video
from recast.motions.method import MotionMethod, Sampling
from recast.motions.motion import Motion
from recast.pipeline import method_presets

SUITE = Path(__file__).parent / "suites" / "tuning-shapes.toml"
STRENGTH = {"weight": 0.0, "lr": 1e-9, "lr_end": 0.0, "inner_steps": 1}
"""The settings that turn the guidance of a method off, while its loss is still computed."""
OFF = {"injected": 0.0, "strength": 1.0}
"""The settings that turn off a method without a loss."""


@dataclass(frozen=True)
class Level:
    """What is known of one level of a sample."""

    losses: tuple[float, float] | None
    """The loss before and after the inner steps."""
    x: Tensor
    t: Tensor


@dataclass(frozen=True)
class Sample:
    """A sample, level by level, and its latents."""

    levels: Sequence[Level]
    latents: Tensor


def sample(
    backbone: Backbone,
    method: MotionMethod[Any],
    motion: Motion,
    prompt: str,
    sampling: Sampling,
    perfect: Tensor | None = None,
) -> Sample:
    """Transfer a motion. With `perfect`, latents (1, C, F, H, W), the model estimates that clip at
    every level, so that the sample is that clip with the initial noise."""
    visited: list[tuple[Tensor, Tensor]] = []
    losses: list[tuple[float, float] | None] = []
    with _observed(backbone, visited, perfect):
        job = method.transfer(backbone, motion, prompt, sampling)
        for event in job:
            if isinstance(event, Step):
                found = event.metrics or {}
                pair = (found["loss_before"], found["loss"]) if "loss" in found else None
                losses.append(pair)
    levels = [Level(pair, *state) for pair, state in zip(losses, visited, strict=True)]
    return Sample(levels, job.result)


@contextmanager
def _observed(
    backbone: Backbone, visited: list[tuple[Tensor, Tensor]], perfect: Tensor | None
) -> Iterator[None]:
    """Inside this context the sampler records x_t and t, and its denoiser may be a perfect one."""
    plain_sampler = sampling_loop.sample

    def sampler(denoise: Denoiser, *arguments: Any, **named: Any) -> Iterator[Any]:
        def observed(x: Tensor, t: Tensor) -> Denoised:
            visited.append((x.detach(), t))
            out = denoise(x, t)
            if perfect is None:
                return out
            alpha, sigma = backbone.schedule.alpha(t), backbone.schedule.sigma(t)
            return Denoised(perfect, (x - alpha * perfect) / sigma)

        return plain_sampler(observed, *arguments, **named)

    with mock.patch.object(sampling_loop, "sample", sampler):
        yield


@torch.no_grad()
def reach(backbone: Backbone, found: Sample, prompt: str, sampling: Sampling) -> list[float]:
    """For every step but the last: the norm of the part of the step that is not the sampler's,
    divided by the norm of the sampler's step."""
    denoise = backbone.cfg_denoiser(prompt, sampling.negative_prompt, sampling.guidance_scale)
    shares = []
    for level, following in pairwise(found.levels):
        plain = ddim(backbone.schedule, denoise(level.x, level.t), following.t)
        shares.append(float((following.x - plain).norm() / (plain - level.x).norm()))
    return shares


@dataclass(frozen=True)
class Row:
    """One pair: losses by level, the share of guidance by level, and the path distances."""

    right: list[float]
    other: list[float]
    unguided: list[float]
    before: list[float]
    after: list[float]
    reach: list[float]
    distances: tuple[float, float]


def measure(backbone: Backbone, method: MotionMethod[Any], case: Case, other: Case) -> Row:
    """Measure one pair. `other` is the pair that lends the other motion."""
    sampling = Sampling(
        steps=backbone.defaults.steps,
        guidance_scale=backbone.defaults.guidance_scale,
        seed=0,
        negative_prompt="",
    )
    off = type(method)(turned_off(method.config))
    motion, idle = (
        m.learn(
            backbone, frames(shapes_pairs.source(case.scene)), case.source_prompt, sampling
        ).run()
        for m in (method, off)
    )
    guided = sample(backbone, method, motion, case.prompt, sampling)
    unguided = sample(backbone, off, idle, case.prompt, sampling)
    ideal = [
        sample(
            backbone,
            off,
            idle,
            case.prompt,
            sampling,
            backbone.encode(frames(shapes_pairs.ideal_result(scene, case.prompt))),
        )
        for scene in (case.scene, other.scene)
    ]
    befores = [
        [level.losses[0] for level in found.levels if level.losses] for found in (*ideal, unguided)
    ]
    return Row(
        *befores,
        before=[level.losses[0] for level in guided.levels if level.losses],
        after=[level.losses[1] for level in guided.levels if level.losses],
        reach=reach(backbone, guided, case.prompt, sampling),
        distances=(distance(backbone, unguided, case), distance(backbone, guided, case)),
    )


def turned_off(config: Any) -> Any:
    """A config whose guidance changes nothing."""
    known = {field.name for field in fields(config)}
    changes = {name: value for name, value in STRENGTH.items() if name in known}
    return replace(config, **(changes or {k: v for k, v in OFF.items() if k in known}))


def frames(clip: Video) -> Tensor:
    """A clip as video (1, 3, F, H, W) in [-1, 1]."""
    return rearrange(torch.from_numpy(clip.frames).float() / 127.5 - 1, "f h w c -> 1 c f h w")


@torch.no_grad()
def distance(backbone: Backbone, found: Sample, case: Case) -> float:
    """The mean distance between the subject's path and the source's, in frame widths."""
    video = rearrange(backbone.decode(found.latents), "1 c f h w -> f h w c")
    result = ((video.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    truth = shapes_pairs.ground_truth(case.scene, case.prompt, result)
    return float(np.nanmean(np.linalg.norm(truth.detected_path - truth.expected_path, axis=1)))


def report(rows: Sequence[Row], times: Sequence[float]) -> None:
    """Print the table: means over pairs, at three levels."""
    count = len(rows[0].before)
    shown = sorted({0, count // 2, count - 1}) if count else [0, len(rows[0].reach) // 2]
    print(
        "| level | right motion | other motion | told apart | unguided | guided | guidance/step |"
    )
    print("|---|---|---|---|---|---|---|")
    for index in shown:
        cells = [f"t = {times[index]:.3g}"]
        if count:
            right, other, plain, before, after = (
                np.mean([getattr(row, name)[index] for row in rows])
                for name in ("right", "other", "unguided", "before", "after")
            )
            apart = sum(row.right[index] < row.other[index] for row in rows)
            cells += [f"{right:.4g}", f"{other:.4g}", f"{apart} of {len(rows)}", f"{plain:.4g}"]
            cells += [f"{before:.4g} → {after:.4g}"]
        else:
            cells += 5 * ["–"]
        print(f"| {' | '.join(cells)} | {np.mean([row.reach[index] for row in rows]):.3f} |")
    unguided, guided = np.nanmean([row.distances for row in rows], axis=0)
    print(f"\npath distance: unguided {unguided:.3f}, guided {guided:.3f}")


def main(arguments: argparse.Namespace) -> None:
    """Measure the chosen pairs, and print the table."""
    torch.set_num_threads(1)
    name = arguments.preset or method_presets.default_preset(arguments.method, arguments.backbone)
    config = method_presets.preset(arguments.method, name)
    settings = (setting.split("=", 1) for setting in arguments.set)
    config = replace(config, **{name: _value(text) for name, text in settings})
    method = method_presets.configure(arguments.method, config)
    backbone = recast.load(arguments.backbone)
    cases = suite.read(str(SUITE)).cases
    chosen = [index * len(cases) // arguments.pairs for index in range(arguments.pairs)]
    rows = []
    for index in chosen:
        group = [case for case in cases if case.group == cases[index].group]
        other = group[(group.index(cases[index]) + 1) % len(group)]
        rows.append(measure(backbone, method, cases[index], other))
    report(rows, backbone.schedule.grid(backbone.defaults.steps).tolist())
    if arguments.roles and method.roles:
        found = probe(backbone, ProbeConfig(clips=40, roles=method.roles)).run()
        for row in found:
            print(f"{row.role}: R² {', '.join(f'{r2:.2f}' for r2 in row.r2)} at 0.2, 0.5 and 0.8")


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("method")
    parser.add_argument("backbone", choices=["shapes", "shapes-dit"])
    parser.add_argument("--preset", default=None)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--roles", action="store_true", help="also probe the method's roles")
    main(parser.parse_args())
