"""`recast analyze`: experiments about what the features of a model contain."""

import dataclasses
import json
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from recast.analysis import probe as probing
from recast.analysis import retrieval as retrieving
from recast.analysis.probe import ProbeConfig, Row, moving_scenes
from recast.analysis.retrieval import Retrieval, RetrievalConfig
from recast.backbones.base import Settings
from recast.cli import flags
from recast.cli.console import say, show
from recast.errors import missing_extra
from recast.media.contact_sheet import contact_sheet, save_png
from recast.media.video import Video
from recast.pipeline import memory_estimate
from recast.shapes import world

_CLIPS_ON_SHEET = 4
"""Number of clips whose matches the contact sheet shows."""


@dataclass(frozen=True, kw_only=True)
class _Probe:
    backbone: str = "shapes"
    """The model to analyze: a name that `recast backbones` lists, a folder, or a hub id."""
    config: ProbeConfig = field(default_factory=ProbeConfig)
    settings: Settings = field(default_factory=Settings)
    json: bool = False
    """Print the numbers as JSON."""


@dataclass(frozen=True, kw_only=True)
class _Retrieve:
    backbone: str = "shapes"
    """The model to analyze: a name that `recast backbones` lists, a folder, or a hub id."""
    config: RetrievalConfig = field(default_factory=RetrievalConfig)
    settings: Settings = field(default_factory=Settings)
    out: Path | None = None
    """A .png file to write, which shows frames of some clips, and below each frame the one that was
    retrieved for it."""
    json: bool = False
    """Print the numbers as JSON."""


@dataclass(frozen=True, kw_only=True)
class _InvertFeatures:
    clip: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="CLIP")] = None
    """The clip to reconstruct from its features. By default these are scenes of the shapes world
    that the shipped models were not trained on."""
    prompt: str = "a video"
    """The prompt. It should be general, so that the content of the result comes from the
    features."""
    clips: int = 12
    """Number of scenes of the shapes world, if no clip is given."""
    seeds: int = 3
    """Number of results for each clip, each from different noise."""
    backbone: str = "shapes"
    """The model to analyze: a name that `recast backbones` lists, a folder, or a hub id."""
    out: Path = Path("out") / "invert-features"
    """Folder for the clips and the report. Results that exist there are not computed again."""
    threads: int = 1
    """Number of CPU threads. Another number changes the rounding of the results."""
    ray: str | None = None
    """Run on Ray, as with `recast bench --ray`."""
    settings: Settings = field(default_factory=Settings)


def probe(argv: list[str], command: str, about: str) -> None:
    """Print R² for every role and noise level."""
    call = flags.parse(_Probe, _Probe(), argv, command, about)
    backbone = memory_estimate.load(call.backbone, call.settings)
    rows = show(probing.probe(backbone, call.config))
    if call.json:
        say(json.dumps([dataclasses.asdict(row) for row in rows]))
    else:
        say(_table(call.config.levels, rows))


def retrieve(argv: list[str], command: str, about: str) -> None:
    """Print the distance between the subjects of each frame and of the frame retrieved for it."""
    call = flags.parse(_Retrieve, _Retrieve(), argv, command, about)
    backbone = memory_estimate.load(call.backbone, call.settings)
    retrievals: list[Retrieval] = show(retrieving.retrieve(backbone, call.config))
    if call.out is not None:
        best = min(retrievals, key=lambda retrieval: retrieval.distance)
        scenes = list(islice(moving_scenes(backbone.defaults.frames), call.config.clips))
        save_png(contact_sheet(_matches(best, scenes)), call.out)
    if call.json:
        columns = ("role", "level", "distance", "random", "best")
        say(json.dumps([{name: getattr(row, name) for name in columns} for row in retrievals]))
    else:
        lines = [
            f"{row.role}, level {row.level:g}: {row.distance:.3f} frame widths between the "
            f"subjects; {row.random:.3f} for a random frame, {row.best:.3f} for the nearest one"
            for row in retrievals
        ]
        say("\n".join(lines))


def invert_features(argv: list[str], command: str, about: str) -> None:
    """Run the suite of feature inversion and print the path of its report."""
    with missing_extra("bench"):
        from recast.analysis import feature_inversion
        from recast.bench import runner
    argv = flags.local_ray(argv)
    call = flags.parse(_InvertFeatures, _InvertFeatures(), argv, command, about)
    suite = feature_inversion.suite(call.clip, call.prompt, call.clips, call.seeds, call.backbone)
    config = runner.BenchConfig(
        suite=suite.name,
        out=call.out,
        threads=call.threads,
        ray=call.ray,
        settings=call.settings,
    )
    outcome: runner.Outcome = show(runner.bench(config, suite))
    say(f"{outcome.report}\n{outcome.rows} rows in {outcome.folder}")


def _matches(retrieval: Retrieval, scenes: list[world.Scene]) -> list[tuple[str, Video]]:
    """Rows of a contact sheet: frames of some clips, and below them the retrieved frames."""
    rendered = [world.render(scene) for scene in scenes]
    rows = []
    clips = list(dict.fromkeys(match.clip for match in retrieval.matches))
    for clip in clips[:: max(1, len(clips) // _CLIPS_ON_SHEET)][:_CLIPS_ON_SHEET]:
        rows.append(("frames of a clip", Video(rendered[clip], world.FPS)))
        matches = [match for match in retrieval.matches if match.clip == clip]
        frames = [rendered[match.retrieved_clip][match.retrieved_frame] for match in matches]
        label = f"nearest by {retrieval.role}, level {retrieval.level:g}"
        rows.append((label, Video(np.stack(frames), world.FPS)))
    return rows


def _table(levels: tuple[float, ...], rows: list[Row]) -> str:
    width = max(len(row.role) for row in rows)
    head = f"{'noise level':<{width}}" + "".join(f"{level:>8g}" for level in levels)
    lines = [f"{row.role:<{width}}" + "".join(f"{r2:8.2f}" for r2 in row.r2) for row in rows]
    title = "R² of the subject's displacement, predicted linearly from the spatial marginal mean"
    return "\n".join([title, head, *lines])
