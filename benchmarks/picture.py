"""A contact sheet of held-out pairs: the source, then what variants of the benchmark make of it.

python benchmarks/picture.py --pairs 0 5 --out docs/images/dmt-on-shapes.png
"""

import argparse
from pathlib import Path

import dmt_on_shapes
import scoring
import torch

from recast import clips, sheet
from recast.backbones import unet3d
from recast.backbones.base import Settings
from recast.methods import base
from recast.shapes import captions, world
from recast.video import Video

VARIANTS = ("unguided", "eq. 4's noise alone", "SMM, pairwise (eq. 3)", "full features", "DMT fast")


def rows(numbers: list[int], variants: list[str]) -> list[tuple[str, Video]]:
    """Label and clip of every row, drawn with the seeds of the benchmark."""
    backbone = unet3d.load("shapes", Settings(device="cpu"))
    found = []
    for number, source, look in scoring.pairs(max(numbers) + 1):
        if number not in numbers:
            continue
        clip = Video(world.render(source), world.FPS)
        found.append((f"source {number}", clip))
        for name in variants:
            variant = dmt_on_shapes.MAIN[name]
            sampling = base.Sampling(
                steps=variant.steps,
                guidance_scale=backbone.defaults.guidance_scale,
                seed=number,
            )
            motion = scoring.last(
                variant.method.learn(backbone, clips.to_tensor(clip), "", sampling)
            )
            prompt = captions.prompt(look)
            latents = scoring.last(variant.method.transfer(backbone, motion, prompt, sampling))
            label = f"{name}: {prompt}"
            found.append((label, clips.to_video(backbone.decode(latents), world.FPS)))
            print(label, flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, nargs="+", required=True)
    parser.add_argument("--variants", nargs="+", choices=dmt_on_shapes.MAIN, default=VARIANTS)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    made = rows(arguments.pairs, arguments.variants)
    sheet.save_png(sheet.contact_sheet(made), arguments.out)
