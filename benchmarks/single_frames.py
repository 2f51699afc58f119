"""Whether a model draws single frames of the shapes world as its prompt says.

    python benchmarks/single_frames.py

One frame is sampled for each prompt of held-out pairs, with the model's own steps and guidance
scale, and the oracle says whether its colour, its shape and its background are those of the prompt.
With `shapes@frames` this says whether the video model can be used as an image model. A rendered
frame of the same appearance, which is right, gives the oracle's own errors on single frames.
Results go to `benchmarks/results/single-frames.json`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import scoring
import torch

from recast.backbones.base import Settings
from recast.media.atomic_files import atomic
from recast.metrics.base import ATTRIBUTES
from recast.pipeline import model_loading
from recast.worlds.shapes import captions, oracle, world

RESULTS = Path(__file__).parent / "results" / "single-frames.json"
SHOWN = ATTRIBUTES["shapes"]


def main(model: str, prompts: int) -> None:
    """Sample and evaluate all frames, print a Markdown table and write the results."""
    torch.set_num_threads(1)
    backbone = model_loading.load(model, Settings(device="cpu"))
    defaults, rows = backbone.defaults, []
    for number, _, target in scoring.pairs(prompts):
        prompt = captions.prompt(target)
        frames = scoring.text_to_video(backbone, prompt, defaults.steps, number, frames=1)
        rendered = world.render(target, defaults.width)[:1]
        for kind, frame in (("sampled", frames), ("rendered", rendered)):
            found = oracle.detect(frame)
            right = {name: getattr(found, name) == getattr(target, name) for name in SHOWN}
            rows.append({"prompt": prompt, "frame": kind, **right})
    result = {
        "model": model,
        "fingerprint": backbone.fingerprint,
        "steps": defaults.steps,
        "guidance_scale": defaults.guidance_scale,
        "rows": rows,
    }
    with atomic(RESULTS) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(f"| frame | {' | '.join(SHOWN)} |\n|{'---|' * (1 + len(SHOWN))}")
    for kind in ("sampled", "rendered"):
        own = [row for row in rows if row["frame"] == kind]
        values = (scoring.interval(np.array([row[name] for row in own], float)) for name in SHOWN)
        print(f"| {kind} | {' | '.join(values)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="shapes@frames")
    parser.add_argument("--prompts", type=int, default=64)
    arguments = parser.parse_args()
    main(arguments.model, arguments.prompts)
