"""`recast evaluate`: a result compared with its source, as a table of metrics."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from recast.bench import worlds
from recast.cli import flags
from recast.cli.console import complain, say, show, with_flags
from recast.evaluation import (
    EvaluatedResult,
    Score,
    Tools,
    align,
    read_mask,
    read_result,
    read_source,
    read_tracks,
    with_chosen_clip,
)
from recast.evaluation import evaluate as evaluation
from recast.media import video
from recast.media.video import Video
from recast.metrics.base import STILL, GroundTruth
from recast.metrics.motion_fidelity import NO_DISPLACEMENT
from recast.pipeline import manifest

_MISSING: Any = tyro.MISSING


@dataclass(frozen=True, kw_only=True, slots=True)
class _Evaluate:
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The clip whose motion was transferred."""
    result: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RESULT")]
    """The new clip, from any system; or a folder that `recast transfer` wrote, whose manifest.json
    sets the defaults of the flags below."""
    prompt: str = ""
    """What the result should show. By default it is the prompt in the manifest; without a prompt,
    text similarity is left out."""
    start: float | None = None
    """Time in the source, in seconds, at which the result begins. By default it is that in the
    manifest, or else 0."""
    frames: int | None = None
    """Number of frames of the source. By default it is that in the manifest, or else all."""
    fps: float | None = None
    """Frames per second to take from the source. By default it is the rate in the manifest, or else
    that of the source."""
    mask: Path | None = None
    """An image or a video that is bright in the region to evaluate. By default it is the whole
    frame."""
    tracks: Path | None = None
    """An .npz file of tracks, which say where points of the result should be: the array points
    (F, N, 2) with x and y in pixels, and visible (F, N). Without it, the end-point error is left
    out."""
    world: Literal["shapes", "menagerie"] | None = None
    """The rendered world of both clips. With it, the detector of this world finds the subject in
    both, and the metrics of the true motion are computed too."""
    truth: Path | None = None
    """The .json file that `recast shapes render` or `recast menagerie render` wrote beside the
    source. With it, the result is compared with the exact scene instead of what a detector finds in
    the source. The file names the world."""
    tools: Tools = field(default_factory=Tools)
    device: str = "cpu"
    """Device of the tracker and the networks: cpu, cuda or mps."""
    json: bool = False
    """Print the numbers as JSON, and nothing else on stdout."""


def evaluate(argv: list[str], command: str, about: str) -> None:
    """Print every metric that applies."""
    default = _Evaluate(source=_MISSING, result=_MISSING)
    call: _Evaluate = flags.parse(_Evaluate, default, argv, command, about)
    evaluated = _with_flags(read_result(call.result), call)
    prompt = evaluated.prompt
    source, result = align(read_source(call.source, evaluated), video.read(evaluated.video))
    for name, clip in (("source", source), ("result", result)):
        for note in clip.notes:
            complain(f"note: {name}: {note}")
    mask = None if call.mask is None else read_mask(call.mask, result)
    truth = _truth(call, source, result, prompt)
    tools = with_chosen_clip(call.tools, source, result, prompt)
    tracks = None if call.tracks is None else read_tracks(call.tracks, result)
    scores = show(
        evaluation.evaluate(
            source, result, prompt, tools, mask, truth, call.device, given_tracks=tracks
        )
    )
    if call.json:
        say(json.dumps(_as_json(scores, tools, result, prompt)))
    else:
        say(_table(scores, tools, result))


def _truth(call: _Evaluate, source: Video, result: Video, prompt: str) -> GroundTruth | None:
    """What is known about the result in a rendered world; None for a clip of none."""
    if call.truth is not None:
        return worlds.ground_truth_from_file(call.truth, prompt, result.frames, call.world)
    if call.world is not None:
        world = worlds.WORLDS[call.world]
        return world.ground_truth_from_source(source.frames, prompt, result.frames)
    return None


def _with_flags(result: EvaluatedResult, call: _Evaluate) -> EvaluatedResult:
    """What the manifest says about a result, changed by the flags of the call."""
    return replace(
        result,
        prompt=call.prompt or result.prompt,
        start=result.start if call.start is None else call.start,
        frames=result.frames if call.frames is None else call.frames,
        fps=result.fps if call.fps is None else call.fps,
    )


def _as_json(scores: list[Score], tools: Tools, result: Video, prompt: str) -> dict[str, Any]:
    side = min(result.height, result.width)
    return {
        "scores": {score.metric.name: score.value for score in scores},
        "left_out": {
            score.metric.name: with_flags(score.reason) for score in scores if score.reason
        },
        "prompt": prompt,
        "tools": manifest.plain(tools),
        "still_below_pixels": STILL * side,
        "no_displacement_below_pixels": NO_DISPLACEMENT * side,
        "frames": len(result),
        "height": result.height,
        "width": result.width,
    }


def _table(scores: list[Score], tools: Tools, result: Video) -> str:
    width = max(len(score.metric.title) for score in scores)
    lines = []
    for score in scores:
        if score.value is None:
            lines.append(
                f"{score.metric.title:<{width}}       –  left out: {with_flags(score.reason)}"
            )
        else:
            value = f"{score.value:8.4f}"
            lines.append(
                f"{score.metric.title:<{width}}{value}  {score.metric.better} is better, "
                f"{score.metric.unit}"
            )
    side = min(result.height, result.width)
    lines += [
        "",
        f"{len(result)} frames of {result.width}x{result.height}; CLIP {tools.clip}; tracker "
        f"{tools.tracker} with {tools.grid} points along the shorter side "
        f"({tools.legacy_grid}x{tools.legacy_grid} for the released script). A point that moves "
        f"less than {STILL * side:.2g} pixels per frame stands still; in the plain form, it has no "
        f"direction below {NO_DISPLACEMENT * side:.2g} pixels.",
    ]
    return "\n".join(lines)
