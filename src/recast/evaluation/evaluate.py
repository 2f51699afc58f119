"""The evaluation itself: track points, embed frames, and compute every metric that applies.

This module owns which tracker and networks run and in which order, and why a metric has no value.
The formulas are in `recast.metrics`, and the clips come aligned from `alignment.py`.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from recast import registry
from recast.errors import BadCall, reason_of
from recast.evaluation import trackers
from recast.evaluation.alignment import Mask
from recast.evaluation.trackers import Tracker
from recast.events import Event, Note, Step, job
from recast.media.repeated_frames import repeated_frames
from recast.media.video import Video
from recast.metrics.base import ClipView, GroundTruth, Metric, MetricInput, NoValue, Tracks

if TYPE_CHECKING:
    from recast.evaluation.clip import Embedder

_GREY = 127  # the value that CLIP and LPIPS see outside a mask


@dataclass(frozen=True, kw_only=True, slots=True)
class Tools:
    """The tracker and the networks whose output the metrics read."""

    tracker: Literal["flow", "cotracker"] = "flow"
    """The point tracker. flow needs no weights; cotracker is the one of published numbers, and its
    licence (CC-BY-NC) forbids commercial use."""
    cotracker: Path | None = None
    """A clone of CoTracker's repository with its checkpoint. By default torch.hub downloads it."""
    clip: str = "shapes"
    """The CLIP model for text similarity and other metrics: shapes, which ships with Recast and
    knows only the shapes world; ViT-B/32; ViT-L/14; a hub id; or a folder."""
    lpips: Literal["none", "alex", "squeeze", "vgg"] = "none"
    """The network of Frame-LPIPS; none leaves the metric out. torchvision downloads the weights on
    first use."""


@dataclass(frozen=True, slots=True)
class Score:
    """The value of one metric."""

    metric: Metric
    value: float | None
    reason: str = ""
    """Why there is no value."""


def metrics() -> Mapping[str, Metric]:
    """All metrics by name, including those of other installed packages."""
    known: dict[str, Metric] = {}
    for name in registry.names("metrics"):
        known |= registry.load("metrics", name).METRICS
    return known


@job
def evaluate(
    source: Video,
    result: Video,
    prompt: str,
    tools: Tools,
    mask: Mask | None = None,
    ground_truth: GroundTruth | None = None,
    device: str = "cpu",
    given_tracks: Tracks | None = None,
) -> Generator[Event, None, list[Score]]:
    """Every metric of two aligned clips, as a list of `Score`.

    A metric that lacks an input, such as a prompt, or that has no value for these clips, has a
    reason instead of a value. Metrics that need a ground truth are left out without one. Raises
    `BadCall` for a device that does not exist, `BadModel` for a tracker or network that cannot be
    loaded.
    """
    inputs, missing = yield from _compute_inputs(source, result, prompt, tools, mask, device)
    inputs = replace(inputs, ground_truth=ground_truth)
    if mask is None:
        missing["mask"] = "no mask was given"
    if given_tracks is None:
        missing["given_tracks"] = "no file of tracks was given"
    else:
        inputs = _with_given_tracks(inputs, given_tracks, _tracker(tools, device))
    if ground_truth is not None and ground_truth.camera_error is None:
        missing["camera"] = "a plain or striped background does not show the camera's motion"
    scores = []
    for metric in metrics().values():
        if ground_truth is None and "truth" in metric.needs:
            continue
        reasons = [missing[need] for need in sorted(metric.needs) if need in missing]
        value = NoValue(reasons[0]) if reasons else metric.score(inputs)
        scores.append(
            Score(metric, None, value.reason)
            if isinstance(value, NoValue)
            else Score(metric, value)
        )
    return scores


def _with_given_tracks(
    inputs: MetricInput, given: Tracks, tracker: Callable[..., Tracks]
) -> MetricInput:
    """The input with the given tracks, and the tracks of the same points in the result."""
    found = tracker(inputs.result.frames, start=given.points[0])
    return replace(inputs, given_tracks=given, result=replace(inputs.result, given_tracks=found))


def _compute_inputs(
    source: Video, result: Video, prompt: str, tools: Tools, mask: Mask | None, device: str
) -> Generator[Event, None, tuple[MetricInput, dict[str, str]]]:
    """The input of the metrics, and for each input that is missing the reason."""
    from recast.evaluation.lpips import lpips

    _check_device(device)
    missing: dict[str, str] = {}
    if not prompt:
        missing["prompt"] = "no prompt was given"
    embedder, tracker = _embedder(tools.clip, device), _tracker(tools, device)
    views = []
    for index, clip in enumerate((source, result)):
        views.append(_view(clip, embedder, tracker, mask))
        yield Step(stage="track and embed", index=index + 1, total=2)
    distance = None
    if tools.lpips == "none":
        missing["lpips"] = "no LPIPS network was chosen"
    else:
        distance = lpips(
            _masked_frames(source, mask), _masked_frames(result, mask), tools.lpips, device
        )
    text = embedder.embed_text(prompt) if prompt else None
    if prompt and (note := embedder.truncation_note(prompt)):
        yield Note(text=note)
    inputs = MetricInput(source=views[0], result=views[1], text=text, lpips=distance, mask=mask)
    return inputs, missing


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch build without CUDA asserts
        raise BadCall(
            f"`device={device}` is not available ({reason_of(error)}); cpu is always available"
        ) from error


@lru_cache(maxsize=1)
def _embedder(name: str, device: str) -> "Embedder":
    """The CLIP that was used last is cached, because a benchmark evaluates many clips with it."""
    with registry.quiet_imports():
        from recast.evaluation.clip import Embedder
    return Embedder(name, device)


def _tracker(tools: Tools, device: str) -> Callable[..., Tracks]:
    if tools.tracker == "cotracker":
        return partial(trackers.cotracker, folder=tools.cotracker, device=device)
    return trackers.flow


def _view(clip: Video, embedder: "Embedder", tracker: Tracker, mask: Mask | None) -> ClipView:
    tracks = background = tracker(clip.frames)
    if mask is not None:
        inside = _starts_inside(tracks, mask[0])
        tracks, background = tracks.only(inside), tracks.only(~inside)
    embeddings = embedder.embed_frames(_masked_frames(clip, mask))
    repeats = repeated_frames(clip.frames)
    return ClipView(
        frames=clip.frames,
        tracks=tracks,
        background_tracks=background,
        embeddings=embeddings,
        repeats=repeats,
    )


def _masked_frames(clip: Video, mask: Mask | None) -> NDArray[np.uint8]:
    """The frames, grey outside the mask."""
    if mask is None:
        return clip.frames
    return np.where(mask[..., None], clip.frames, np.uint8(_GREY))


def _starts_inside(tracks: Tracks, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """For each track whether it begins inside the mask (H, W) of the first frame, (N,)."""
    height, width = mask.shape
    x, y = tracks.points[0].astype(int).clip(0, (width - 1, height - 1)).T
    return np.asarray(mask[y, x])
