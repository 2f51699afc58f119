"""`recast menagerie`: render clips of animals and vehicles, and train models on them."""

from dataclasses import dataclass
from pathlib import Path

from recast import registry
from recast.cli import flags, rendered_clips
from recast.cli.console import say, show
from recast.media.video import Video
from recast.worlds.menagerie import scene_file, truth, world
from recast.worlds.menagerie.describe import scene_from_caption


@dataclass(frozen=True, kw_only=True)
class _Render:
    seed: int = world.HELD_OUT.start
    """Seed of the scene. Models of this world are not trained on seeds from 9000000 on."""
    caption: str = ""
    """What the scene shows, such as "a spotted brown dog jumps over a meadow". The seed decides
    everything that the caption does not name."""
    out: Path = Path("menagerie.mp4")
    """The clip to write: an .mp4 file, a .gif file, or a folder of images. A .json file beside it
    holds the whole scene: path, size, heading, facing and gait of the subject, and the camera."""
    depth: Path | None = None
    """Also write the exact depth of the clip, near is bright: a folder of images, an .mp4 or a .gif
    file. `recast transfer` reads it with --control."""


def render(argv: list[str], command: str, about: str) -> None:
    """Write a clip and its ground truth."""
    call = flags.parse(_Render, _Render(), argv, command, about)
    rendered_clips.check_seed(call.seed)
    scene = scene_from_caption(call.caption, call.seed)
    clip = Video(world.render(scene), world.FPS)
    depth = Video(truth.depth_maps(scene), world.FPS) if call.depth else None
    rendered_clips.save(clip, call.out, scene_file.content(scene, call.seed), depth, call.depth)


def train(argv: list[str], command: str, about: str) -> None:
    """Train a model of the menagerie."""
    with registry.quiet_imports():
        # diffusers and transformers load slowly.
        from recast.worlds.menagerie.dataset import DATASET
        from recast.worlds.training import train as training
        from recast.worlds.training.config import TrainConfig

    default = TrainConfig(out=Path("out") / "menagerie", network="transformer")
    config = flags.parse(TrainConfig, default, argv, command, about)
    say(str(show(training.train(config, DATASET))))
