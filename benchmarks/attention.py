"""Which attention of a shipped model knows the motion? For the roles of MotionClone and DiTFlow.

    python benchmarks/attention.py shapes
    python benchmarks/attention.py shapes-dit

On 12 held-out pairs that no shipped suite has (those of `suites/tuning-shapes.toml`).

Attention over frames (MotionClone): its error (the mean squared error of the strongest entry of
each row) on the right motion in the appearance that the prompt names, and on the motion of another
pair in the same appearance, at three noise levels; and in how many pairs the right one is smaller.
The source is read at level 0.4.

Displacements (DiTFlow): the correlation of the displacement of the subject with the true one, over
all pairs of frames, from the strongest attention (as the source is read) and from the mean over the
attention (as the sample is read), at levels 0 and 0.4.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import recast
from recast.backbones.base import Backbone
from recast.bench import shapes_pairs, suite
from recast.bench.suite import Case
from recast.diffusion.sampling import randn
from recast.feature_guidance.levels import time_of_level
from recast.feature_guidance.taps import read_features, tap_pairs
from recast.methods.ditflow import flow
from recast.methods.motionclone import attention_over_frames
from recast.networks.feature_hooks import Tap, as_grid
from recast.pipeline.source_clip import to_tensor
from recast.worlds.shapes import world

SUITE = Path(__file__).parent / "suites" / "tuning-shapes.toml"
SOURCE_LEVEL = 0.4
LEVELS = (0.4, 0.7, 0.85)
Pairs = Mapping[str, tuple[Tap, Tap]]


def attention_pairs(backbone: Backbone, roles: Sequence[str]) -> Pairs:
    """Name of a layer -> its taps of queries and keys, for these roles of queries."""
    return {
        f"{role}, layer {number}": pair
        for role in roles
        for number, pair in enumerate(tap_pairs(backbone, role, role.replace("queries", "keys")))
    }


@torch.no_grad()
def read(
    backbone: Backbone, taps: Pairs, x0: Tensor, level: float, prompt: str, seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """The queries and keys of every layer, of a clip at one noise level."""
    t = time_of_level(backbone.schedule, level)
    noise = randn(tuple(x0.shape), torch.Generator().manual_seed(seed), x0.device)
    denoise = backbone.denoiser(backbone.encode_text([prompt]))
    every = [tap for pair in taps.values() for tap in pair]
    features = read_features(backbone, denoise, every, backbone.schedule.noised(x0, noise, t), t)
    return {name: (features[q.path], features[k.path]) for name, (q, k) in taps.items()}


def attention(
    backbone: Backbone, taps: Pairs, x0: Tensor, level: float, prompt: str, seed: int
) -> dict[str, Tensor]:
    """The attention over frames of every layer, (H, W, heads, F, F)."""
    found = read(backbone, taps, x0, level, prompt, seed)
    return {
        name: attention_over_frames(*pair, taps[name][0].heads)[0] for name, pair in found.items()
    }


def errors(source: Tensor, clip: Tensor) -> float:
    """The mean squared error of the strongest entry of each row."""
    values, frames = source.max(-1, keepdim=True)
    return float((clip.gather(-1, frames) - values).square().mean())


def compare(backbone: Backbone, taps: Pairs, cases: Sequence[Case]) -> None:
    """Print the table of attention over frames."""
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for case in cases:
        group = [other for other in cases if other.group == case.group]
        other = group[(group.index(case) + 1) % len(group)]
        source = encode(backbone, shapes_pairs.source(case.scene))
        target = attention(backbone, taps, source, SOURCE_LEVEL, "", 0)
        clips = [
            encode(backbone, shapes_pairs.ideal_result(scene, case.prompt))
            for scene in (case.scene, other.scene)
        ]
        for level in LEVELS:
            maps = [attention(backbone, taps, clip, level, case.prompt, 1) for clip in clips]
            for name in taps:
                pair = errors(target[name], maps[0][name]), errors(target[name], maps[1][name])
                found.setdefault((name, level), []).append(pair)
    heads = [f"level {level}: right, other, told apart" for level in LEVELS]
    print(f"| layer | {' | '.join(heads)} |")
    print("|---|" + len(LEVELS) * "---|")
    for name in taps:
        cells = []
        for level in LEVELS:
            rows = np.array(found[name, level])
            right, other = rows.mean(0)
            cells.append(f"{right:.4f}, {other:.4f}, {(rows[:, 0] < rows[:, 1]).sum()}")
        print(f"| {name} | {' | '.join(cells)} |")


def displacements(backbone: Backbone, taps: Pairs, cases: Sequence[Case]) -> None:
    """Print the table of displacements."""
    columns = [(level, strongest) for level in (0.0, 0.4) for strongest in (True, False)]
    found: dict[tuple[str, float, bool], list[tuple[Tensor, Tensor]]] = {}
    for case in cases:
        scene, clip = world.sample(case.scene), shapes_pairs.source(case.scene)
        x0 = encode(backbone, clip)
        mask = torch.from_numpy(world.truth(scene, clip.height).mask).float()
        centre = torch.from_numpy(np.asarray(scene.centre)).float()
        true = centre[None] - centre[:, None]
        for level in (0.0, 0.4):
            for name, features in read(backbone, taps, x0, level, "", 0).items():
                q, k = (as_grid(feature, *x0.shape[-2:]) for feature in features)
                for strongest in (True, False):
                    moved = flow(q, k, taps[name][0].heads, 2.0, strongest=strongest)
                    found.setdefault((name, level, strongest), []).append(
                        (of_subject(moved, mask, q.shape[2]).flatten(), true.flatten())
                    )
    heads = [f"level {n}, {'strongest' if s else 'mean'}" for n, s in columns]
    print(f"| layer | {' | '.join(heads)} |\n|---|{len(heads) * '---|'}")
    for name in taps:
        cells = []
        for column in columns:
            pairs_of = [torch.cat(part) for part in zip(*found[(name, *column)], strict=True)]
            cells.append(f"{float(torch.corrcoef(torch.stack(pairs_of))[0, 1]):.2f}")
        print(f"| {name} | {' | '.join(cells)} |")


def of_subject(moved: Tensor, mask: Tensor, rows: int) -> Tensor:
    """The mean displacement of the subject (F, F, 2) in frame widths, from displacements
    (F, F, H·W, 2) and its mask (F, H, W)."""
    share = torch.nn.functional.adaptive_avg_pool2d(mask[:, None], rows).flatten(1)
    share = share / share.sum(1, keepdim=True).clamp_min(1e-6)
    return torch.einsum("ijpc,ip->ijc", moved, share) / rows


def encode(backbone: Backbone, clip: recast.Video) -> Tensor:
    """The latents of a clip."""
    return backbone.encode(to_tensor(clip))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("backbone", choices=["shapes", "shapes-dit"])
    model = recast.load(parser.parse_args().backbone)
    torch.set_num_threads(1)
    tuning = suite.read(str(SUITE)).cases
    if any(role.startswith("block") for role in model.roles):
        roles = sorted(role for role in model.roles if role[:-1] == "queries")
        over_frames = in_frame = attention_pairs(model, roles)
    else:
        temporal = sorted(role for role in model.roles if role.endswith(".temporal_queries"))
        over_frames = attention_pairs(model, temporal)
        in_frame = attention_pairs(model, ["queries"])
    compare(model, over_frames, tuning)
    displacements(model, in_frame, [case for case in tuning if case.group != "camera"])
