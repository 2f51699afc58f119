"""The evaluation itself: track points, embed frames, and compute every metric that applies.

This module owns the order of the work, and why a metric has no value. The formulas are in
`recast.metrics`, the clips come aligned from `alignment.py`, and the tracks and embeddings from
`clip_view.py`.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace

import torch

from recast import registry
from recast.errors import BadCall, reason_of
from recast.evaluation import clip_choice, clip_domain
from recast.evaluation.alignment import Mask
from recast.evaluation.clip_view import clip_view, embedder, masked_frames
from recast.evaluation.tools import Tools
from recast.evaluation.trackers import Tracker
from recast.events import Event, Note, Step, job
from recast.media.video import Video
from recast.metrics.base import WORLDS, GroundTruth, Metric, MetricInput, Need, NoValue, Tracks


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


def metrics_of_rows() -> Mapping[str, Metric]:
    """All metrics by name, and the retired ones that only rows of earlier versions have."""
    retired: dict[str, Metric] = {}
    for name in registry.names("metrics"):
        retired |= getattr(registry.load("metrics", name), "RETIRED", {})
    return {**metrics(), **retired}


def with_chosen_clip(tools: Tools, source: Video, result: Video, prompt: str) -> Tools:
    """The tools with the CLIP that `clip=auto` means for these clips and this prompt."""
    chosen = clip_choice.choose(tools.clip, source.frames, result.frames, prompt)
    return replace(tools, clip=chosen)


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
    reason instead of a value. Metrics that need a ground truth are not in the list without one, and
    those of another world never are. Raises `BadCall` for a device that does not exist, `BadModel`
    for a tracker or network that cannot be loaded.
    """
    inputs, missing = yield from _compute_inputs(source, result, prompt, tools, mask, device)
    inputs = replace(inputs, ground_truth=ground_truth)
    if mask is None:
        missing["mask"] = "no mask was given"
    if given_tracks is None:
        missing["given_tracks"] = "no file of tracks was given"
    else:
        inputs = _with_given_tracks(inputs, given_tracks, tools.track(device))
    scores = []
    for metric in metrics().values():
        if not _applies(metric, ground_truth):
            continue
        reasons = [missing[need] for need in sorted(metric.needs) if need in missing]
        value = NoValue(reasons[0]) if reasons else metric.score(inputs)
        scores.append(
            Score(metric, None, value.reason)
            if isinstance(value, NoValue)
            else Score(metric, value)
        )
    return scores


def _applies(metric: Metric, ground_truth: GroundTruth | None) -> bool:
    """Whether a metric is about clips with such a ground truth: those of its own world."""
    if ground_truth is None:
        return "truth" not in metric.needs
    return not metric.needs & (set(WORLDS) - {ground_truth.world})


def _with_given_tracks(inputs: MetricInput, given: Tracks, tracker: Tracker) -> MetricInput:
    """The input with the given tracks, and the tracks of the same points in the result."""
    found = tracker(inputs.result.frames, given.points[0])
    return replace(inputs, given_tracks=given, result=replace(inputs.result, given_tracks=found))


def _compute_inputs(
    source: Video, result: Video, prompt: str, tools: Tools, mask: Mask | None, device: str
) -> Generator[Event, None, tuple[MetricInput, dict[Need, str]]]:
    """The input of the metrics, and for each input that is missing the reason."""
    from recast.evaluation.lpips import lpips

    _check_device(device)
    tools = with_chosen_clip(tools, source, result, prompt)
    missing = _missing(tools, source, result, prompt)
    if "clip" not in missing:
        embedder(tools.clip, device)  # a CLIP that cannot be loaded is found before the tracking
    views = []
    for index, (clip, need) in enumerate(((source, "source_clip"), (result, "clip"))):
        views.append(clip_view(clip, tools, mask, device, embeds=need not in missing))
        yield Step(stage="track and embed", index=index + 1, total=2)
    distance = None
    if tools.lpips != "none":
        distance = lpips(
            masked_frames(source, mask), masked_frames(result, mask), tools.lpips, device
        )
    text = None
    if "prompt" not in missing and "clip" not in missing:
        network = embedder(tools.clip, device)
        text = network.embed_text(prompt)
        if note := network.truncation_note(prompt):
            yield Note(text=note)
    inputs = MetricInput(source=views[0], result=views[1], text=text, lpips=distance, mask=mask)
    return inputs, missing


def _missing(tools: Tools, source: Video, result: Video, prompt: str) -> dict[Need, str]:
    """For each input that the metrics cannot have, the reason."""
    missing: dict[Need, str] = {}
    domain = clip_choice.domain_of(tools.clip)
    if domain is not None:
        clips = source.frames, result.frames
        missing |= clip_domain.objections(domain, tools.clip, *clips, prompt)
    if not prompt:
        missing["prompt"] = "no prompt was given"
    if tools.lpips == "none":
        missing["lpips"] = "no LPIPS network was chosen"
    return missing


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch build without CUDA asserts
        raise BadCall(
            f"`device={device}` is not available ({reason_of(error)}); cpu is always available"
        ) from error
