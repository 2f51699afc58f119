"""`recast shapes`: render clips of the shapes world, and train models like the shipped ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recast import registry
from recast.cli import flags, rendered_clips
from recast.cli.console import say, show
from recast.media.video import Video
from recast.worlds.shapes import captions, world
from recast.worlds.shapes.describe import scene_from_caption


@dataclass(frozen=True, kw_only=True)
class _Render:
    seed: int = world.HELD_OUT.start
    """Seed of the scene. The shipped models were not trained on seeds from 9000000 on."""
    caption: str = ""
    """What the scene shows, such as "a red circle on a navy background" or "a star moving in a
    circle". The seed decides everything that the caption does not name."""
    out: Path = Path("shapes.mp4")
    """The clip to write: an .mp4 file, a .gif file, or a folder of images. A .json file beside it
    holds the caption and the exact position of the subject in each frame."""
    depth: Path | None = None
    """Also write the exact depth of the clip, near is bright: a folder of images, an .mp4 or a .gif
    file. `recast transfer` reads it with --control."""


def render(argv: list[str], command: str, about: str) -> None:
    """Write a clip and its ground truth."""
    call = flags.parse(_Render, _Render(), argv, command, about)
    rendered_clips.check_seed(call.seed)
    scene = scene_from_caption(call.caption, call.seed)
    clip = Video(world.render(scene), world.FPS)
    depth = Video(world.depth_maps(scene), world.FPS) if call.depth else None
    rendered_clips.save(clip, call.out, _truth(scene, call.seed), depth, call.depth)


def train(argv: list[str], command: str, about: str) -> None:
    """Train a model like the shipped ones."""
    with registry.quiet_imports():
        # diffusers and transformers load slowly.
        from recast.worlds.shapes.dataset import DATASET
        from recast.worlds.training import train as training
        from recast.worlds.training.config import TrainConfig

    default = TrainConfig(out=Path("out") / "shapes")
    config = flags.parse(TrainConfig, default, argv, command, about)
    say(str(show(training.train(config, DATASET))))


def _truth(scene: world.Scene, seed: int) -> dict[str, Any]:
    """The content of the .json file: the scene, and the values of each frame in pixels and
    radians."""
    truth = world.truth(scene)
    by_frame = {
        name: np.round(getattr(truth, name), 4).tolist()
        for name in ("centre", "radius", "angle", "pan", "zoom")
    }
    attributes = {
        name: getattr(scene, name) for name in ("shape", "colour", "ground", "pattern", "path")
    }
    return {
        "world": "shapes",
        "caption": captions.prompt(scene),
        "seed": seed,
        "fps": world.FPS,
        "size": world.SIZE,
        **attributes,
        **by_frame,
    }
