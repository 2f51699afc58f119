"""`recast evaluate`: a result against its source, as one table."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from recast.bench import pairs
from recast.cli import flags
from recast.cli.console import complain, say, show
from recast.evaluation import (
    EvaluatedResult,
    Score,
    Tools,
    align,
    read_mask,
    read_result,
    read_source,
)
from recast.evaluation import evaluate as evaluation
from recast.media import video
from recast.media.video import Video
from recast.metrics.base import STILL

_MISSING: Any = tyro.MISSING


@dataclass(frozen=True, kw_only=True, slots=True)
class _Evaluate:
    source: Annotated[Path, tyro.conf.Positional]
    """The clip whose motion was taken."""
    result: Annotated[Path, tyro.conf.Positional]
    """What was made of it, by whatever system: a clip, or the folder of a `recast transfer`."""
    prompt: str = ""
    """What the result should show; without it what the folder's manifest says, and if that says
    nothing text similarity is left out."""
    start: float | None = None
    """Where in the source the result begins, in seconds; without it what the folder's manifest
    says, else 0."""
    frames: int | None = None
    """How many frames of the source; without it what the folder's manifest says, else all."""
    fps: float | None = None
    """Frames per second to take from the source; without it what the folder's manifest says, else
    its own rate."""
    mask: Path | None = None
    """Image or video: only where it is bright is judged."""
    truth: Path | None = None
    """The .json that `recast shapes render` wrote beside the source: then true motion is told."""
    tools: Tools = field(default_factory=Tools)
    device: str = "cpu"
    """Where trackers and networks run: cpu, cuda or mps."""
    json: bool = False
    """Print the numbers as JSON, and nothing else on stdout."""


def evaluate(argv: list[str], command: str, about: str) -> None:
    """Print every metric that applies."""
    default = _Evaluate(source=_MISSING, result=_MISSING)
    asked: _Evaluate = flags.parse(_Evaluate, default, argv, command, about)
    made = _made(asked)
    prompt = made.prompt
    source, result = align(read_source(asked.source, made), video.read(made.video))
    for name, clip in (("source", source), ("result", result)):
        for note in clip.notes:
            complain(f"note: {name}: {note}")
    mask = None if asked.mask is None else read_mask(asked.mask, result)
    truth = (
        None
        if asked.truth is None
        else pairs.ground_truth_from_file(asked.truth, prompt, result.frames)
    )
    scores = show(
        evaluation.evaluate(source, result, prompt, asked.tools, mask, truth, asked.device)
    )
    if asked.json:
        say(json.dumps(_plain(scores, asked.tools, result, prompt)))
    else:
        say(_table(scores, asked.tools, result))


def _made(asked: _Evaluate) -> EvaluatedResult:
    """What the result's folder tells, but for what the user says."""
    told = read_result(asked.result)
    return replace(
        told,
        prompt=asked.prompt or told.prompt,
        start=told.start if asked.start is None else asked.start,
        frames=told.frames if asked.frames is None else asked.frames,
        fps=told.fps if asked.fps is None else asked.fps,
    )


def _plain(scores: list[Score], tools: Tools, result: Video, prompt: str) -> dict[str, Any]:
    return {
        "scores": {score.metric.name: score.value for score in scores},
        "left_out": {score.metric.name: score.reason for score in scores if score.reason},
        "prompt": prompt,
        "tools": asdict(tools),
        "still_below_pixels": STILL * min(result.height, result.width),
        "frames": len(result),
        "height": result.height,
        "width": result.width,
    }


def _table(scores: list[Score], tools: Tools, result: Video) -> str:
    width = max(len(score.metric.title) for score in scores)
    lines = []
    for score in scores:
        better = "higher" if score.metric.higher_is_better else "lower"
        if score.value is None:
            lines.append(f"{score.metric.title:<{width}}       –  left out: {score.reason}")
        else:
            value = f"{score.value:8.4f}"
            lines.append(
                f"{score.metric.title:<{width}}{value}  {better} is better, {score.metric.unit}"
            )
    still = STILL * min(result.height, result.width)
    lines += [
        "",
        f"{len(result)} frames of {result.width}x{result.height}; tracker {tools.tracker}, CLIP "
        f"{tools.clip}; a point that moves by less than {still:.2g} pixels a frame stands still",
    ]
    return "\n".join(lines)
