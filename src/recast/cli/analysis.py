"""`recast analyze`: what the features of a model contain."""

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
    """The model to analyze: an alias, a folder, or a hub id."""
    config: ProbeConfig = field(default_factory=ProbeConfig)
    settings: Settings = field(default_factory=Settings)
    json: bool = False
    """Print the numbers as JSON."""


@dataclass(frozen=True, kw_only=True)
class _Retrieve:
    backbone: str = "shapes"
    """The model to analyze: an alias, a folder, or a hub id."""
    config: RetrievalConfig = field(default_factory=RetrievalConfig)
    settings: Settings = field(default_factory=Settings)
    out: Path | None = None
    """A .png that shows frames of some clips, and below each the frame that was found for it."""
    json: bool = False
    """Print the numbers as JSON."""


@dataclass(frozen=True, kw_only=True)
class _InvertFeatures:
    clip: Annotated[Path | None, tyro.conf.Positional] = None
    """The clip to rebuild from its features; without it held-out scenes of the shapes world."""
    prompt: str = "a video"
    """A general prompt, so that what the result shows comes from the features."""
    clips: int = 12
    """Number of scenes of the shapes world, where no clip is given."""
    seeds: int = 3
    """Number of results for each clip, each from a different noise."""
    backbone: str = "shapes"
    """The model to analyze: an alias, a folder, or a hub id."""
    out: Path = Path("out") / "invert-features"
    """Folder for the clips and the report; results that exist there are not made again."""
    threads: int = 1
    """Number of CPU threads; other numbers round differently."""
    ray: str | None = None
    """Run on Ray, as `recast bench --ray` does."""
    settings: Settings = field(default_factory=Settings)


def probe(argv: list[str], command: str, about: str) -> None:
    """Print R² for every role and noise level."""
    call = flags.parse(_Probe, _Probe(), argv, command, about)
    rows = show(probed(memory_estimate.load(call.backbone, call.settings), call.config))
    if call.json:
        say(json.dumps([dataclasses.asdict(row) for row in rows]))
    else:
        say(_table(call.config.levels, rows))


def retrieve(argv: list[str], command: str, about: str) -> None:
    """Print how close the subjects of the retrieved frames are to those of the queries."""
    call = flags.parse(_Retrieve, _Retrieve(), argv, command, about)
    backbone = memory_estimate.load(call.backbone, call.settings)
    found: list[Retrieval] = show(retrieved(backbone, call.config))
    if call.out is not None:
        nearest = min(found, key=lambda one: one.distance)
        scenes = list(islice(moving_scenes(backbone.defaults.frames), call.config.clips))
        save_png(contact_sheet(_matches(nearest, scenes)), call.out)
    if call.json:
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
    """Run the suite of feature inversion and print the path of its report."""
    with missing_extra("bench"):
        from recast.analysis import feature_inversion
        from recast.bench import runner
    argv = flags.local_ray(argv)
    call = flags.parse(_InvertFeatures, _InvertFeatures(), argv, command, about)
    told = feature_inversion.suite(call.clip, call.prompt, call.clips, call.seeds, call.backbone)
    config = runner.BenchConfig(
        suite=told.name,
        out=call.out,
        threads=call.threads,
        ray=call.ray,
        settings=call.settings,
    )
    outcome: runner.Outcome = show(runner.bench(config, told))
    say(f"{outcome.report}\n{outcome.rows} rows in {outcome.folder}")


def _matches(found: Retrieval, scenes: list[world.Scene]) -> list[tuple[str, Video]]:
    """Rows of frames of some clips, and below each row the frames that were found for them."""
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
