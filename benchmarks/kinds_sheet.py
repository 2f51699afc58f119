"""A sheet of the twelve kinds of the menagerie, four frames of each, rendered or made by a model.

python benchmarks/kinds_sheet.py --out docs/images/menagerie.png
python benchmarks/kinds_sheet.py --backbone menagerie-dit --out unguided.png
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

import recast
from recast.media import contact_sheet
from recast.media.video import Video
from recast.worlds.menagerie import captions, world
from recast.worlds.menagerie.kinds import KINDS

COLUMNS = 4  # frames of a kind; a row shows two kinds
ACTIONS = ("crosses", "jumps", "circles", "hops", "zigzags", "rises", "turns back", "approaches")


def scenes() -> Iterator[world.Scene]:
    """For each kind a held-out scene, with as many colours, landscapes and actions as there are."""
    used: set[str] = set()
    for number, kind in enumerate(KINDS):
        candidates = (world.sample(seed) for seed in world.HELD_OUT)
        chosen = max(
            (s for s in islice(candidates, 1_500) if s.kind == kind and not s.front),
            key=lambda s: (
                s.action == ACTIONS[number % len(ACTIONS)],
                sum(name not in used for name in (s.colour, s.landscape)),
            ),
        )
        used |= {chosen.colour, chosen.landscape}
        yield chosen


def sheet(backbone: str | None, seed: int) -> np.ndarray:
    """The sheet; a model samples the prompts of the scenes."""
    model = None if backbone is None else recast.load(backbone)
    clips = []
    for scene in scenes():
        prompt = captions.prompt(scene.kind, scene.colour, scene.landscape)
        clip = Video(world.render(scene), world.FPS)
        if model is not None:
            motion = recast.learn(model, clip, method="unguided")
            clip = recast.transfer(model, motion, prompt, seed=seed)
        chosen = np.linspace(0, len(clip) - 1, COLUMNS).round().astype(int)
        clips.append(
            (f"{prompt}: {scene.action}" if model is None else prompt, clip.frames[chosen])
        )
    rows = []
    for (one, left), (other, right) in zip(clips[::2], clips[1::2], strict=True):
        frames = np.concatenate([left, right])
        rows.append((f"{one}    |    {other}", Video(frames, world.FPS)))
    return contact_sheet.contact_sheet(rows, columns=2 * COLUMNS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--backbone", help="a model; by default the kinds are rendered")
    parser.add_argument("--seed", type=int, default=0, help="of the model's samples")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    contact_sheet.save_png(sheet(arguments.backbone, arguments.seed), arguments.out)
