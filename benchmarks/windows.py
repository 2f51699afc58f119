"""Clips longer than those a shipped model was trained on: as a whole, and in temporal windows.

    python benchmarks/windows.py --pairs 16 --frames 32 48

The script uses held-out pairs of the given lengths. The model was trained on 16 frames, which is
also the length of a window. Drift is the mean distance of a frame's plain background from the
clip's mean, in 8-bit levels. The tables show means with bootstrap 95 % intervals over pairs.
"""

import argparse
import time
from collections import defaultdict

import numpy as np
from rich.progress import track
from scoring import interval, oracle_scores

from recast.backbones.base import Backbone, Settings
from recast.bench.shapes_pairs import held_out
from recast.media.video import Video
from recast.motions.method import Sampling
from recast.pipeline import method_presets, model_loading, source_clip
from recast.worlds.shapes import captions, world
from recast.worlds.shapes.describe import parse_caption, with_appearance

COLUMNS = ("colour", "shape", "background", "drift", "correlation", "distance", "calls", "seconds")


def row(backbone: Backbone, name: str, source: world.Scene, target: world.Scene, seed: int) -> dict:
    """The oracle's scores of one clip, and its cost."""
    config = method_presets.default_config(name, backbone.name)
    method = method_presets.configure(name, config)
    began, before = time.monotonic(), backbone.nfe
    video = source_clip.to_tensor(Video(world.render(source), world.FPS))
    sampling = Sampling(
        steps=backbone.defaults.steps, guidance_scale=backbone.defaults.guidance_scale, seed=seed
    )
    motion = method.learn(backbone, video, "", sampling).run()
    latents = method.transfer(backbone, motion, captions.prompt(target), sampling).run()
    frames = source_clip.to_video(backbone.decode(latents), world.FPS).frames
    cost = {"calls": backbone.nfe - before, "seconds": time.monotonic() - began}
    return {**oracle_scores(frames, source, target), **cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--frames", type=int, nargs="+", default=[32])
    parser.add_argument("--backbone", default="shapes")
    asked = parser.parse_args()
    backbone = model_loading.load(asked.backbone, Settings(device="cpu"))
    head = ("frames", "method", "at once", *COLUMNS)
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for frames in asked.frames:
        rows = defaultdict(list)
        for number, (seed, prompt) in track(enumerate(held_out(asked.pairs)), total=asked.pairs):
            source = world.sample(seed, frames)
            target = with_appearance(source, parse_caption(prompt))
            for name in ("unguided", "dmt"):
                for backbone.window in (None, world.FRAMES):
                    rows[name, backbone.window].append(row(backbone, name, source, target, number))
        for (name, window), results in rows.items():
            values = [
                np.array([one[c] for one in results if one[c] is not None], float) for c in COLUMNS
            ]
            cells = (frames, name, window or "all", *map(interval, values))
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
