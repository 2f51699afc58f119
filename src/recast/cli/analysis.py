"""`recast analyze`: what a model's features hold."""

import dataclasses
import json
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from recast.analysis.probe import ProbeConfig, Row, moving_scenes
from recast.analysis.probe import probe as probed
from recast.analysis.retrieval import Retrieval, RetrievalConfig
from recast.analysis.retrieval import retrieve as retrieved
from recast.backbones.base import Settings
from recast.cli import flags
from recast.cli.console import say, show
from recast.errors import missing_extra
from recast.media.contact_sheet import contact_sheet, save_png
from recast.media.video import Video
from recast.pipeline import memory_estimate
from recast.shapes import world

_SHOWN = 4
"""Clips whose matches are shown."""


@dataclass(frozen=True, kw_only=True)
class _Probe:
    backbone: str = "shapes"
    """Model to look into: an alias, a folder, or a hub id."""
    config: ProbeConfig = field(default_factory=ProbeConfig)
    settings: Settings = field(default_factory=Settings)
    json: bool = False
    """Print the numbers as JSON."""


@dataclass(frozen=True, kw_only=True)
class _Retrieve:
    backbone: str = "shapes"
    """Model to look into: an alias, a folder, or a hub id."""
    config: RetrievalConfig = field(default_factory=RetrievalConfig)
    settings: Settings = field(default_factory=Settings)
    out: Path | None = None
    """A .png that shows some clips' frames, and below them what was found for each."""
    json: bool = False
    """Print the numbers as JSON."""


@dataclass(frozen=True, kw_only=True)
class _InvertFeatures:
    clip: Annotated[Path | None, tyro.conf.Positional] = None
    """The clip whose features are rebuilt; without it held-out scenes of the shapes world."""
    prompt: str = "a video"
    """General, so that what comes back comes from the features."""
    clips: int = 12
    """How many scenes of the shapes world, where no clip is given."""
    seeds: int = 3
    """Results for each clip, each from a noise of its own."""
    backbone: str = "shapes"
    """Model to look into: an alias, a folder, or a hub id."""
    out: Path = Path("out") / "invert-features"
    """Folder for the clips and the report; what is there already is not made again."""
    threads: int = 1
    """CPU threads; other numbers round differently."""
    ray: str | None = None
    """Run on Ray, as `recast bench --ray` does."""
    settings: Settings = field(default_factory=Settings)


def probe(argv: list[str], command: str, about: str) -> None:
    """Print R² for every role and noise level."""
    asked = flags.parse(_Probe, _Probe(), argv, command, about)
    rows = show(probed(memory_estimate.load(asked.backbone, asked.settings), asked.config))
    if asked.json:
        say(json.dumps([dataclasses.asdict(row) for row in rows]))
    else:
        say(_table(asked.config.levels, rows))


def retrieve(argv: list[str], command: str, about: str) -> None:
    """Print how near the subjects of retrieved frames are."""
    asked = flags.parse(_Retrieve, _Retrieve(), argv, command, about)
    backbone = memory_estimate.load(asked.backbone, asked.settings)
    found: list[Retrieval] = show(retrieved(backbone, asked.config))
    if asked.out is not None:
        nearest = min(found, key=lambda one: one.distance)
        scenes = list(islice(moving_scenes(backbone.defaults.frames), asked.config.clips))
        save_png(contact_sheet(_matches(nearest, scenes)), asked.out)
    if asked.json:
        kept = ("role", "level", "distance", "random", "best")
        say(json.dumps([{name: getattr(one, name) for name in kept} for one in found]))
    else:
        lines = [
            f"{one.role}, level {one.level:g}: {one.distance:.3f} frame widths between the "
            f"subjects; a random frame {one.random:.3f}, the nearest there is {one.best:.3f}"
            for one in found
        ]
        say("\n".join(lines))


def invert_features(argv: list[str], command: str, about: str) -> None:
    """Run the suite of feature inversion, and print where its report is."""
    with missing_extra("bench"):
        from recast.analysis import feature_inversion
        from recast.bench import runner
    argv = flags.local_ray(argv)
    asked = flags.parse(_InvertFeatures, _InvertFeatures(), argv, command, about)
    told = feature_inversion.suite(
        asked.clip, asked.prompt, asked.clips, asked.seeds, asked.backbone
    )
    config = runner.BenchConfig(
        suite=told.name,
        out=asked.out,
        threads=asked.threads,
        ray=asked.ray,
        settings=asked.settings,
    )
    outcome: runner.Outcome = show(runner.bench(config, told))
    say(f"{outcome.report}\n{outcome.rows} rows in {outcome.folder}")


def _matches(found: Retrieval, scenes: list[world.Scene]) -> list[tuple[str, Video]]:
    """The frames of some clips, and below each row the frames that were found for them."""
    rendered = [world.render(scene) for scene in scenes]
    rows = []
    clips = list(dict.fromkeys(match.clip for match in found.matches))
    for clip in clips[:: max(1, len(clips) // _SHOWN)][:_SHOWN]:
        mine = [match for match in found.matches if match.clip == clip]
        rows.append(("frames of a clip", Video(rendered[clip], world.FPS)))
        nearest = [rendered[match.retrieved_clip][match.retrieved_frame] for match in mine]
        shown = Video(np.stack(nearest), world.FPS)
        rows.append((f"nearest by {found.role}, level {found.level:g}", shown))
    return rows


def _table(levels: tuple[float, ...], rows: list[Row]) -> str:
    width = max(len(row.role) for row in rows)
    head = f"{'noise level':<{width}}" + "".join(f"{level:>8g}" for level in levels)
    lines = [f"{row.role:<{width}}" + "".join(f"{r2:8.2f}" for r2 in row.r2) for row in rows]
    return "\n".join(["R² of the subject's displacement, read linearly from SMM", head, *lines])
