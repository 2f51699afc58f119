"""At which noise level a model of the menagerie loses the gait of a clip.

    python benchmarks/lost_gait.py --clips 40 --out benchmarks/results/lost-gait.json

Held-out renders are noised to a level and denoised again, with a prompt that describes them
(`sdedit`). The referee reads the gait before and after. A gait that is wrong after little noise is
one that the model does not draw.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from recast.backbones.base import Backbone, Settings
from recast.media.atomic_files import atomic
from recast.media.video import Video
from recast.methods import sdedit
from recast.motions.method import Sampling
from recast.pipeline import memory_estimate, source_clip
from recast.worlds.menagerie import captions, referee, world
from recast.worlds.menagerie.kinds import KINDS
from recast.worlds.menagerie.world import Scene

NOISED = ((0.12, 25), (0.2, 25), (0.28, 25), (0.28, 75), (0.52, 25))
"""Strength and sampling steps of the noised clips."""
GUIDANCE_SCALE = 2.0


def noised(
    backbone: Backbone, clip: Video, scene: Scene, seed: int, strength: float, steps: int
) -> Video:
    """The clip after it was noised and denoised."""
    prompt = captions.prompt(scene.kind, scene.colour, scene.landscape)
    method = sdedit.Method(sdedit.Config(strength=strength))
    sampling = Sampling(steps=steps, guidance_scale=GUIDANCE_SCALE, seed=seed)
    tensor = source_clip.to_tensor(clip)
    motion = method.learn(backbone, tensor, prompt, sampling).run()
    latents = method.transfer(backbone, motion, prompt, sampling).run()
    return source_clip.to_video(backbone.decode(latents), clip.fps)


def decoded(backbone: Backbone, clip: Video) -> Video:
    """The clip after the autoencoder."""
    latents = backbone.encode(source_clip.to_tensor(clip))
    return source_clip.to_video(backbone.decode(latents), clip.fps)


def count(scenes: Sequence[Scene], clips: Sequence[Video]) -> dict[str, Any]:
    """How many clips have the right gait, its 95 % interval, and what is found in the others."""
    wrong = Counter[str]()
    for scene, clip in zip(scenes, clips, strict=True):
        gait, found = KINDS[scene.kind].gait, referee.detect(clip.frames).gait
        if found != gait:
            wrong[f"{gait}: {found}"] += 1
    right = len(scenes) - wrong.total()
    interval = binomtest(right, len(scenes)).proportion_ci(method="wilson")
    return {
        "right": right,
        "of": len(scenes),
        "interval": [round(float(end), 2) for end in interval],
        "wrong": dict(wrong),
    }


def main(number: int, name: str, out: Path) -> None:
    """Measure, print every line, and write them."""
    backbone = memory_estimate.load(name, Settings(device="cpu", dtype="bfloat16"))
    scenes = [world.sample(seed) for seed in world.HELD_OUT[:number]]
    renders = [Video(world.render(scene), world.FPS) for scene in scenes]
    rows: list[dict[str, Any]] = []

    def add(title: str, clips: Sequence[Video]) -> None:
        rows.append({"clips": title, **count(scenes, clips)})
        print(rows[-1], flush=True)

    add("rendered", renders)
    add("through the autoencoder", [decoded(backbone, clip) for clip in renders])
    for strength, steps in NOISED:
        taken = round(strength * steps)
        t = float(backbone.schedule.grid(steps)[steps - taken])
        clips = [
            noised(backbone, clip, scene, seed, strength, steps)
            for seed, (clip, scene) in enumerate(zip(renders, scenes, strict=True))
        ]
        add(f"noised to t = {t:.2f}, {taken} steps", clips)
    found = {"model": name, "fingerprint": backbone.fingerprint, "rows": rows}
    with atomic(out) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--model", default="menagerie-dit")
    default = Path("benchmarks/results/lost-gait.json")
    parser.add_argument("--out", type=Path, default=default)
    arguments = parser.parse_args()
    main(arguments.clips, arguments.model, arguments.out)
