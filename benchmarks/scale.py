"""What a longer clip and more results cost: seconds, network calls and memory.

    OMP_NUM_THREADS=1 python benchmarks/scale.py --frames 16 32 64 128 256 --results 1 2 4 8
    python benchmarks/scale.py --table benchmarks/results/scale.jsonl

A clip longer than sixteen frames passes through `shapes` in windows of sixteen frames. Each row is
measured in a process of its own, with the preset `quick` of `dmt`, on one held-out clip of a moving
subject, and is appended to `benchmarks/results/scale.jsonl`. Several results share one learned
motion: each has another prompt or another seed.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scoring import oracle_scores
from speed import in_a_process

from recast.backbones.base import Backbone, Settings
from recast.bench import work
from recast.bench.shapes_pairs import held_out
from recast.media.video import Video
from recast.methods import dmt
from recast.motions.method import Sampling
from recast.pipeline import model_loading, source_clip
from recast.worlds.shapes import captions, world
from recast.worlds.shapes.describe import parse_caption, with_appearance

RESULTS = Path(__file__).parent / "results" / "scale.jsonl"
PRESET = "quick"
HEADS = {
    "frames": "frames",
    "results": "results",
    "learn": "seconds to learn",
    "transfer": "seconds of all transfers",
    "each": "seconds for a result, with its part of learning",
    "calls": "network calls",
    "peak_mb": "peak memory, MB",
    "correlation": "path correlation",
}


def measure(backbone: Backbone, frames: int, results: int) -> dict[str, Any]:
    """The cost of one learned motion of `frames` frames and of `results` transfers with it."""
    torch.set_num_threads(1)
    ((seed, _),) = held_out(1)
    prompts = [prompt for _, prompt in held_out(results)]
    scene = world.sample(seed, frames)
    video = source_clip.to_tensor(Video(world.render(scene), world.FPS))
    backbone.window = world.FRAMES if frames > world.FRAMES else None
    method, before = dmt.Method(dmt.PRESETS[PRESET]), backbone.nfe
    steps = method.sampling_defaults.steps or backbone.defaults.steps
    correlations = []
    with work._peak_memory(backbone.device) as peak:
        began = time.process_time()
        for number, prompt in enumerate(prompts):
            sampling = Sampling(
                steps=steps, guidance_scale=backbone.defaults.guidance_scale, seed=number
            )
            if number == 0:
                motion = method.learn(backbone, video, "", sampling).run()
                learned = time.process_time()
            target = with_appearance(scene, parse_caption(prompt))
            latents = method.transfer(backbone, motion, captions.prompt(target), sampling).run()
            result = source_clip.to_video(backbone.decode(latents), world.FPS).frames
            correlations.append(oracle_scores(result, scene, target)["correlation"])
        ended = time.process_time()
    return {
        "learn": round(learned - began, 2),
        "transfer": round(ended - learned, 2),
        "each": round((ended - began) / results, 2),
        "calls": backbone.nfe - before,
        "peak_mb": round(peak()),
        "correlation": round(sum(correlations) / results, 3),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [f"| {' | '.join(HEADS.values())} |", "|" + "---|" * len(HEADS)]
    return "\n".join([*lines, *(f"| {' | '.join(str(row[k]) for k in HEADS)} |" for row in rows)])


def main(arguments: argparse.Namespace) -> None:
    """Compute all rows, or print the table of a file."""
    if arguments.table:
        print(table([json.loads(line) for line in arguments.table.open(encoding="utf-8")]))
        return
    backbone = model_loading.load("shapes", Settings(device="cpu"))
    sizes = [(frames, 1) for frames in arguments.frames]
    sizes += [(world.FRAMES, count) for count in arguments.results]
    for frames, count in dict.fromkeys(sizes):
        identity = {"model": backbone.name, "fingerprint": backbone.fingerprint, "preset": PRESET}
        row = {**identity, "frames": frames, "results": count}
        row |= in_a_process(measure, backbone, frames, count)
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(table([row]), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--results", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", type=Path, help="only print the table of this file")
    main(parser.parse_args())
