"""`recast analyze`: experiments about what the features of a model contain."""

import dataclasses
import json
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from recast.analysis import own_clips
from recast.analysis import probe as probing
from recast.analysis import retrieval as retrieving
from recast.analysis.probe import ProbeConfig, Row, moving_scenes
from recast.analysis.retrieval import ClipRetrieval, Retrieval, RetrievalConfig
from recast.backbones.base import Backbone, Settings
from recast.cli import flags
from recast.cli.console import say, show
from recast.errors import missing_extra
from recast.media.contact_sheet import contact_sheet, save_png
from recast.media.video import Video
from recast.pipeline import memory_estimate
from recast.worlds.shapes import world

_CLIPS_ON_SHEET = 4
"""Number of clips whose matches the contact sheet shows."""


_Folder = Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]


@dataclass(frozen=True, kw_only=True)
class _Probe:
    folder: _Folder = None
    """A folder of clips of your own, at least 20. They are inverted by DDIM, and the displacement
    of their tracked points that move is predicted. By default clips of the shapes world are
    rendered, in which the position of the subject is known."""
    backbone: str = "shapes"
    """The model to analyze: a name that `recast backbones` lists, a folder, or a hub id."""
    config: ProbeConfig = field(default_factory=ProbeConfig)
    settings: Settings = field(default_factory=Settings)
    json: bool = False
    """Print the numbers as JSON."""


@dataclass(frozen=True, kw_only=True)
class _Retrieve:
    folder: _Folder = None
    """A folder of clips of your own, at least 2. They are inverted by DDIM, and each frame is
    retrieved from the other clips. By default clips of the shapes world are rendered, in which the
    distance between the subjects of both frames is known."""
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
    paths = _own_clips(call.folder, call.config.clips, probing.MIN_CLIPS)
    backbone = memory_estimate.load(call.backbone, call.settings)
    if paths:
        clips = own_clips.read_clips(paths, backbone)
        rows = show(probing.probe_clips(backbone, clips, call.config))
    else:
        rows = show(probing.probe(backbone, call.config))
    if call.json:
        say(json.dumps([dataclasses.asdict(row) for row in rows]))
    else:
        say(_table(call.config.levels, rows, "moving points" if paths else "subject"))


def retrieve(argv: list[str], command: str, about: str) -> None:
    """Print how near each frame and the frame retrieved for it are."""
    call = flags.parse(_Retrieve, _Retrieve(), argv, command, about)
    paths = _own_clips(call.folder, call.config.clips, 2)
    backbone = memory_estimate.load(call.backbone, call.settings)
    if paths:
        _retrieve_own(call, paths, backbone)
        return
    retrievals: list[Retrieval] = show(retrieving.retrieve(backbone, call.config))
    if call.out is not None:
        best = min(retrievals, key=lambda retrieval: retrieval.distance)
        scenes = islice(moving_scenes(backbone.defaults.frames), call.config.clips)
        videos = [Video(world.render(scene), world.FPS) for scene in scenes]
        names = ["frames of a clip"] * len(videos)
        save_png(contact_sheet(_matches(best, videos, names)), call.out)
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


def _own_clips(folder: Path | None, count: int, least: int) -> list[Path]:
    """The clips of the folder, none without a folder; found before a model is loaded."""
    return [] if folder is None else own_clips.find_clips(folder, count, least)


def _retrieve_own(call: _Retrieve, paths: list[Path], backbone: Backbone) -> None:
    """Retrieve frames among clips of the user's own, and print the cosines or, as JSON, all
    matches."""
    clips, names = own_clips.read_clips(paths, backbone), [path.name for path in paths]
    retrievals: list[ClipRetrieval] = show(retrieving.retrieve_clips(backbone, clips, call.config))
    if call.out is not None:
        widest = max(retrievals, key=lambda retrieval: retrieval.similarity - retrieval.random)
        save_png(contact_sheet(_matches(widest, clips, names)), call.out)
    if call.json:
        rows = []
        for row in retrievals:
            matches = [
                match._asdict()
                | {"clip": names[match.clip], "retrieved_clip": names[match.retrieved_clip]}
                for match in row.matches
            ]
            rows.append(dataclasses.asdict(row) | {"matches": matches})
        say(json.dumps(rows))
        return
    lines = [
        f"{row.role}, level {row.level:g}: cosine {row.similarity:.3f} with the retrieved frame, "
        f"{row.random:.3f} with a random frame of the other clips"
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


def _matches(
    retrieval: Retrieval | ClipRetrieval, videos: list[Video], names: list[str]
) -> list[tuple[str, Video]]:
    """Rows of a contact sheet: frames of some clips, and below them the retrieved frames."""
    rows = []
    clips = list(dict.fromkeys(match.clip for match in retrieval.matches))
    for clip in clips[:: max(1, len(clips) // _CLIPS_ON_SHEET)][:_CLIPS_ON_SHEET]:
        rows.append((names[clip], videos[clip]))
        matches = [match for match in retrieval.matches if match.clip == clip]
        frames = [videos[match.retrieved_clip].frames[match.retrieved_frame] for match in matches]
        label = f"nearest by {retrieval.role}, level {retrieval.level:g}"
        rows.append((label, Video(np.stack(frames), videos[clip].fps)))
    return rows


def _table(levels: tuple[float, ...], rows: list[Row], what: str) -> str:
    width = max(len(row.role) for row in rows)
    head = f"{'noise level':<{width}}" + "".join(f"{level:>8g}" for level in levels)
    lines = [f"{row.role:<{width}}" + "".join(f"{r2:8.2f}" for r2 in row.r2) for row in rows]
    title = (
        f"R² of the displacement of the {what}, predicted linearly from the spatial marginal mean"
    )
    return "\n".join([title, head, *lines])
