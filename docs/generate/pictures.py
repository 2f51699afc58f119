"""Makes the pictures of docs/how/dmt.md from runs of the shipped model, in about three minutes.

    python docs/generate/pictures.py

The numbers under the pictures are printed.
"""

import os
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

import recast
from recast import cli
from recast.diffusion.ddim_inversion import invert
from recast.media.contact_sheet import contact_sheet, save_png
from recast.pipeline.source_clip import to_tensor, to_video

mpl.use("agg")
from matplotlib import pyplot as plt

IMAGES = Path(__file__).parents[1] / "images" / "how"
SCENE, PROMPT, SEED = 9_000_014, "a yellow square on a navy background", 0
STEPS = 25


def main() -> None:
    """Make every picture."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    backbone = recast.load("shapes")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RECAST_STORE"] = str(Path(folder) / "store")
        clip = Path(folder) / "clip.mp4"
        cli.main(["shapes", "render", "--seed", str(SCENE), "--out", str(clip)])
        source = recast.read(clip)
        inversion(backbone, source)
        motion = recast.learn(backbone, source, method="dmt")
        plain = recast.learn(backbone, source, method="unguided")
        unguided = recast.transfer(backbone, plain, PROMPT, seed=SEED, steps=STEPS)
        guided = recast.transfer(backbone, motion, PROMPT, seed=SEED)
        result(source, unguided, guided)
        clips = {"source": source, "without guidance": unguided, "guided by DMT": guided}
        chart(
            {name: recast.learn(backbone, one, method="dmt") for name, one in clips.items()},
            backbone.taps("motion")[0].path,
        )


def inversion(backbone: recast.Backbone, source: recast.Video) -> None:
    """The source on its way into noise: x_t decoded, at a few noise levels."""
    video = to_tensor(source)
    x0 = backbone.encode(video)
    schedule = backbone.schedule
    grid = schedule.grid(STEPS)
    empty = backbone.denoiser(backbone.encode_text([""]))
    reached = {len(grid) - 1: x0}
    with torch.no_grad():
        for count, level in enumerate(invert(empty, schedule, grid, x0), start=1):
            reached[len(grid) - 1 - count] = level.x
        rows = [("source clip", source)]
        for index in (20, 15, 10, 0):
            t = grid[index]
            sigma = float(schedule.sigma(t))
            shown = to_video(backbone.decode(reached[index]), source.fps)
            rows.append((f"x_t at t = {float(t):.0f}, sigma = {sigma:.2f}, decoded", shown))
    save_png(contact_sheet(rows, columns=6), IMAGES / "inversion.png")


def result(source: recast.Video, unguided: recast.Video, guided: recast.Video) -> None:
    """Source, unguided sample and guided sample."""
    rows = [
        ("source clip", source),
        (f"without guidance: {PROMPT}", unguided),
        (f"guided by DMT: {PROMPT}", guided),
    ]
    save_png(contact_sheet(rows, columns=6), IMAGES / "result.png")


def chart(motions: dict[str, recast.Motion], path: str) -> None:
    """The spatial marginal means of each clip over its frames, at the last guided level, along the
    two directions in which those of the source change most."""
    means = {
        name: motion.tensors[path][-1].float().numpy() for name, motion in motions.items()
    }  # (F, C·cells²)
    centred = means["source"] - means["source"].mean(0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:2]
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 2.7), layout="constrained")
    for number, (axis, direction) in enumerate(zip(axes, directions, strict=True), start=1):
        for (name, mean), style in zip(means.items(), ("-", ":", "--"), strict=True):
            line = (mean - mean.mean(0)) @ direction
            axis.plot(np.arange(1, len(line) + 1), line, style, label=name, linewidth=2)
        axis.set(title=f"principal direction {number}", xlabel="frame", xticks=range(1, 17, 3))
    axes[0].set_ylabel("spatial marginal mean")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(IMAGES / "smm.png", dpi=110)
    for name, mean in means.items():
        differences = [m[:, None] - m[None] for m in (mean, means["source"])]
        a, b = (d.reshape(-1, d.shape[-1]) for d in differences)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = (a * b).sum(1)[norms > 0] / norms[norms > 0]
        print(f"{name}: mean cosine of the differences to those of the source {cosine.mean():.2f}")


if __name__ == "__main__":
    main()
