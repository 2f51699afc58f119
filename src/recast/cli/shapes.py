"""`recast shapes`: clips of the embedded world, and the training of the models that ship."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recast import registry
from recast.cli import flags
from recast.cli.console import say, show
from recast.errors import BadCall
from recast.media.atomic_files import atomic
from recast.media.video import Video
from recast.shapes import captions, world
from recast.shapes.describe import scene_from_caption


@dataclass(frozen=True, kw_only=True)
class _Render:
    seed: int = world.HELD_OUT.start
    """Which scene; the models that ship never saw those from 9000000 on."""
    caption: str = ""
    """What the scene shows instead, such as "a red circle on a navy background" or "a star moving
    in a circle"; what it leaves out is the seed's."""
    out: Path = Path("shapes.mp4")
    """The clip to write: .mp4, .gif, or a folder. Beside it a .json tells caption and truth."""


def render(argv: list[str], command: str, about: str) -> None:
    """Write a clip and its truth."""
    asked = flags.parse(_Render, _Render(), argv, command, about)
    if asked.seed < 0:
        raise BadCall(f"--seed is a whole number from 0 on, got {asked.seed}")
    scene = scene_from_caption(asked.caption, asked.seed)
    clip = Video(world.render(scene), world.FPS).save(asked.out)
    told = asked.out.with_suffix(".json")
    with atomic(told) as temporary:
        temporary.write_text(json.dumps(_truth(scene, asked.seed), indent=1) + "\n")
    say(f"{clip}\n{told}")


def train(argv: list[str], command: str, about: str) -> None:
    """Train a model like those that ship."""
    with registry.quiet_imports():
        from recast.shapes import training  # diffusers and transformers load slowly

    default = training.TrainConfig(out=Path("out") / "shapes")
    say(str(show(training.train(flags.parse(training.TrainConfig, default, argv, command, about)))))


def _truth(scene: world.Scene, seed: int) -> dict[str, Any]:
    """What a reader of the clip may want to know of every frame, in pixels and radians."""
    truth = world.truth(scene)
    listed = {
        name: np.round(getattr(truth, name), 4).tolist()
        for name in ("centre", "radius", "angle", "pan", "zoom")
    }
    looks = {
        name: getattr(scene, name) for name in ("shape", "colour", "ground", "pattern", "path")
    }
    return {
        "caption": captions.prompt(scene),
        "seed": seed,
        "fps": world.FPS,
        "size": world.SIZE,
        **looks,
        **listed,
    }
