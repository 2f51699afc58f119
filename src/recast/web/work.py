"""The work of one job: its run by the pipeline, the scores of the results, and the motion to keep.

This module owns what a job adds to a run, and the model that a worker keeps between two jobs. It
refuses to know the queue.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recast.backbones.base import Backbone, Settings
from recast.errors import RecastError
from recast.evaluation import Score, Tools, align, read_result, read_source
from recast.evaluation.evaluate import evaluate as every_metric
from recast.evaluation.evaluated_result import EvaluatedResult
from recast.events import Event, Job, Note, Step, job
from recast.media import video as videos
from recast.media.video import Video
from recast.motions.motion import Motion
from recast.pipeline import memory_estimate, run
from recast.pipeline.config import RunConfig
from recast.pipeline.run import RunOutput
from recast.pipeline.source_clip import MOTION_SUFFIX, Source
from recast.web import equivalents
from recast.web.fields import with_values
from recast.web.requests import (
    EVALUATE,
    EvaluateRequest,
    TransferRequest,
    clip_path,
    from_json,
)
from recast.web.server_folder import ServerFolder

SCORES = (
    *("text_similarity", "moving_fidelity", "motion_fidelity_plain", "hybrid_motion_fidelity"),
    *("frame_consistency", "warping_error", "speed_ratio", "leakage"),
)
"""The metrics that a page shows first, where they have a value."""


@dataclass(slots=True)
class LoadedModel:
    """The model of a worker, which stays loaded until a job needs another one."""

    key: tuple[str, Settings] | None = None
    backbone: Backbone | None = None

    def load(self, name: str, settings: Settings) -> Backbone:
        """The named model. The former one is dropped before another is loaded. Raises
        `RecastError`."""
        if self.backbone is None or self.key != (name, settings):
            self.key = self.backbone = None
            self.backbone, self.key = memory_estimate.load(name, settings), (name, settings)
        return self.backbone


def work_of(
    kind: str, id: str, request: Mapping[str, Any], folder: ServerFolder, model: LoadedModel
) -> Job[dict[str, Any]]:
    """The work of a job of the queue. Raises `RecastError` for a request that is none."""
    if kind == EVALUATE:
        return evaluate(from_json(EvaluateRequest, request), folder)
    return transfer(from_json(TransferRequest, request), id, folder, model)


@job
def transfer(
    request: TransferRequest, job_id: str, folder: ServerFolder, model: LoadedModel
) -> Generator[Event, None, dict[str, Any]]:
    """Run a transfer. The result is what the page shows beside the files."""
    config = request.run_config(folder, job_id)
    run.check(config)
    folder.check_space()
    backbone = model.load(config.backbone, config.settings)
    yield Step(stage="load", index=1, total=1)
    output = yield from run.transfer(config, backbone, folder.motion_cache())
    has_source = config.clip.suffix != MOTION_SUFFIX
    scores: list[Any] = []
    if request.score and has_source:
        scores = yield from _score_each(config, output)
    motion = ""
    if request.keep_motion and has_source:
        motion = yield from _keep_motion(request, job_id, folder, config, backbone)
    clip, mask = config.clip.name, _mask_name(request, config)
    return {
        "results": [str(path.parent.relative_to(output.folder)) for path in output.videos],
        "seeds": [config.draw.seed + index for index in range(len(output.videos))],
        "method": config.method,
        "clip_name": clip,
        "scores": scores,
        "motion": motion,
        "command": equivalents.command_line(config, clip, mask),
        "python": equivalents.python(config, clip, mask),
        "notes": _notes(output.manifest),
    }


@job
def evaluate(
    request: EvaluateRequest, folder: ServerFolder
) -> Generator[Event, None, dict[str, Any]]:
    """Compare a clip of another system with a source."""
    source = with_values(Source(), request.source)
    clip = clip_path(folder, request.result)
    result = videos.read(clip)
    other = EvaluatedResult(
        video=clip,
        prompt=request.prompt,
        start=source.start,
        frames=source.frames,
        fps=source.fps or result.fps,
    )
    original = videos.read(
        clip_path(folder, request.clip), start=other.start, fps=other.fps, frames=other.frames
    )
    scores = yield from _scores(original, result, request.prompt)
    return {"scores": [scores], "method": request.name, "clip_name": clip.name}


def _score_each(
    config: RunConfig[Any], output: RunOutput
) -> Generator[Event, None, list[list[dict[str, Any]]]]:
    """The scores of each result; empty lists with a note if they cannot be computed."""
    scored = []
    for path in output.videos:
        try:
            result = read_result(path.parent)
            source = read_source(config.clip, result)
            scores = yield from _scores(source, videos.read(path), config.prompt)
        except RecastError as error:
            yield Note(text=f"the result has no scores: {error}")
            scores = []
        scored.append(scores)
    return scored


def _scores(
    source: Video, result: Video, prompt: str
) -> Generator[Event, None, list[dict[str, Any]]]:
    aligned = align(source, result)
    found = yield from every_metric(*aligned, prompt, Tools())
    return [_score_as_json(score) for score in _in_order(found)]


def _in_order(scores: Sequence[Score]) -> list[Score]:
    """The scores of `SCORES`, and then the others that have a value."""
    order = {name: index for index, name in enumerate(SCORES)}
    shown = [score for score in scores if score.metric.name in order or score.value is not None]
    return sorted(shown, key=lambda score: order.get(score.metric.name, len(order)))


def _score_as_json(score: Score) -> dict[str, Any]:
    metric = score.metric
    return {
        "name": metric.name,
        "title": metric.title,
        "value": score.value,
        "reason": score.reason,
        "unit": metric.unit,
        "better": metric.better,
        "first": metric.name in SCORES,
    }


def _keep_motion(
    request: TransferRequest,
    job_id: str,
    folder: ServerFolder,
    config: RunConfig[Any],
    backbone: Backbone,
) -> Generator[Event, None, str]:
    """Save the motion of the run as a file; returns its id, empty if there is none.

    The store holds the motion, so nothing is learned again. If the store could not hold it, this
    stops at the first step of learning.
    """
    path = folder.motion(job_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = run.learn(request.learn_config(folder, path, config), backbone, folder.motion_cache())
    try:
        for event in work:
            if isinstance(event, Step) and event.stage != "load":
                yield Note(text="the motion is too large to be kept")
                return ""
    except RecastError as error:
        yield Note(text=f"the motion is not kept: {error}")
        return ""
    finally:
        work.close()
    return job_id


def _mask_name(request: TransferRequest, config: RunConfig[Any]) -> str | None:
    return None if config.mask is None else request.mask if "," in config.mask else config.mask


def _notes(manifest: Mapping[str, Any]) -> list[str]:
    samples = manifest.get("samples", [manifest])
    return list(dict.fromkeys(note for sample in samples for note in sample["notes"]))


def describe_motion(path: Path) -> dict[str, Any]:
    """What a gallery shows of a motion file. Raises `BadMotion`."""
    motion = Motion.load(path)
    clip = motion.metadata.get("clip", {})
    return {
        "id": path.stem,
        "method": motion.method,
        "model": motion.metadata.get("backbone_name", motion.backbone),
        "prompt": motion.source_prompt,
        "preview": motion.metadata.get("preview", ""),
        "clip": clip.get("name", ""),
        "frames": clip.get("frames"),
        "bytes": path.stat().st_size,
        "mixes": bool(motion.metadata.get("mixed")),
    }
