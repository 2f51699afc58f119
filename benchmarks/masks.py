"""Accuracy of `--mask auto` on rendered pairs whose true edit mask is known.

    python benchmarks/masks.py --pairs 64

The table shows intersection over union with the mask of the subject (for edits of the subject) or
of the background (for edits of the background), as mean and bootstrap 95 % interval. The column
"through the latents" resizes the true mask to the size of the latents and back; this is about the
best that a map of that size can reach.
"""

import argparse
import dataclasses

import numpy as np
import torch
from scoring import interval, pairs
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from recast.backbones import unet3d
from recast.backbones.base import Settings
from recast.media.video import Video
from recast.pipeline import edit_mask, source_clip
from recast.worlds.shapes import captions, world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=64)
    count = parser.parse_args().pairs
    backbone = unet3d.load("shapes", Settings(device="cpu"))
    print("| edit | pairs | IoU | worst | through the latents |\n|---|---|---|---|---|")
    for edit in ("colour", "shape", "subject", "background"):
        found, ceiling = [], []
        for number, source, target in pairs(count):
            wanted = np.asarray(world.truth(source).mask)
            latents = backbone.encode(
                source_clip.to_tensor(Video(world.render(source), world.FPS))
            )[0]
            changed = {
                "colour": {"colour": target.colour},
                "shape": {"shape": target.shape},
                "subject": {"colour": target.colour, "shape": target.shape},
                "background": {"ground": target.ground, "pattern": target.pattern},
            }[edit]
            if edit == "background":
                wanted = ~wanted
            prompt = captions.prompt(dataclasses.replace(source, **changed))
            described, size = captions.prompt(source), wanted.shape[1:]
            mask = edit_mask.changed_region(backbone, latents, described, prompt, size, number)
            found.append(overlap(mask, wanted))
            small = adaptive_avg_pool2d(torch.tensor(wanted)[:, None].float(), latents.shape[-2:])
            back = interpolate(small, size=size, mode="bilinear")[:, 0].numpy() > 0.5
            ceiling.append(overlap(back, wanted))
        cells = (edit, count, interval(np.array(found)), f"{min(found):.2f}")
        print(f"| {' | '.join(map(str, cells))} | {interval(np.array(ceiling))} |", flush=True)


def overlap(mask: np.ndarray, wanted: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((mask & wanted).sum() / (mask | wanted).sum())


if __name__ == "__main__":
    main()
