"""Judging a result against its source: two clips made comparable, and every metric that applies.

Owns which part of a source a result is compared with, the rules by which clips of other lengths,
rates and sizes are compared, and what a mask leaves of them. The numbers are those of
`recast.metrics`.
"""

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from recast import registry
from recast.errors import BadCall, BadClip, OneFrame
from recast.evaluation import trackers
from recast.evaluation.trackers import Tracker
from recast.events import Event, Note, Step, job
from recast.media import video as videos
from recast.media.video import Fit, Video
from recast.metrics.base import ClipView, Judged, Metric, Tracks, Truth
from recast.pipeline import manifest, output_folder

if TYPE_CHECKING:
    from recast.evaluation.clip import Embedder

Masks = NDArray[np.bool_]
_GREY = 127  # what CLIP and LPIPS see where a mask hides a frame


@dataclass(frozen=True, kw_only=True, slots=True)
class Tools:
    """What looks at the clips before they are judged."""

    tracker: Literal["flow", "cotracker"] = "flow"
    """flow needs no weights; cotracker is what published numbers use (CC-BY-NC)."""
    cotracker: Path | None = None
    """Clone of CoTracker's repository with its checkpoint; without it torch.hub fetches it."""
    clip: str = "shapes"
    """CLIP of the text and frame scores: shapes (ships with Recast and knows the shapes world
    only), ViT-B/32, ViT-L/14, a hub id, or a folder."""
    lpips: Literal["none", "alex", "squeeze", "vgg"] = "none"
    """Network of Frame-LPIPS; its weights are downloaded by torchvision on first use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A result, and which part of the source it was made from, as far as that is known."""

    video: Path
    prompt: str = ""
    start: float = 0.0
    """In seconds."""
    frames: int | None = None
    fps: float | None = None
    size: tuple[int, int] | None = None
    """Height and width that the source was fitted to."""
    fit: Fit = "crop"
    fitted_sha256: str = ""
    """Of the fitted frames."""


@dataclass(frozen=True, slots=True)
class Score:
    """One line of an evaluation."""

    metric: Metric
    value: float | None
    reason: str = ""
    """Why there is no value."""


def metrics() -> Mapping[str, Metric]:
    """Every metric there is, those of outside packages too."""
    found: dict[str, Metric] = {}
    for name in registry.names("metrics"):
        found |= registry.load("metrics", name).METRICS
    return found


def made(path: Path) -> Made:
    """What a run's folder tells of its result; of a clip, only where it is.

    Raises `BadClip` for a manifest that no run wrote, and for the folder of several results.
    """
    told = path / output_folder.MANIFEST
    if not told.is_file():
        return Made(video=path)
    try:
        there = json.loads(told.read_text(encoding="utf-8"))
        if "samples" in there:
            folders = ", ".join(f"seed-{one['seed']}" for one in there["samples"])
            raise BadClip(f"{path} holds several results; choose one of its folders: {folders}")
        source, clip = there["config"]["source"], there["clip"]
        return Made(
            video=path / output_folder.VIDEO,
            prompt=there["prompt"],
            start=clip.get("start", source["start"]),
            frames=clip["frames"],
            fps=clip["fps"],
            size=(clip["height"], clip["width"]),
            fit=clip.get("fit", source["fit"]),
            fitted_sha256=clip["fitted_sha256"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadClip(
            f"{told} is damaged, or no run wrote it ({type(error).__name__}: {error}); give the "
            f"clip itself, {path / output_folder.VIDEO}"
        ) from error


def source_of(path: Path, result: Made) -> Video:
    """The part of a clip that a result was made from, fitted as it was for the model. A note says
    so where these are not the frames that the model saw. Raises `BadClip`, `BadCall`."""
    clip = videos.read(path, start=result.start, frames=result.frames, fps=result.fps)
    if result.size is None:
        return clip
    clip = videos.fit(clip, *result.size, result.fit)
    if manifest.frames_hash(clip) == result.fitted_sha256:
        return clip
    note = "not the frames that the run saw: another clip, or another part of it, see --start"
    return replace(clip, notes=(*clip.notes, note))


def aligned(source: Video, result: Video) -> tuple[Video, Video]:
    """Both clips with as many frames and of one size; what was done is in the notes.

    Of equal length they are compared frame by frame, whatever their rates. Else frames that repeat
    the one before them (as systems with another rate write them) are dropped from the longer
    clip, and if it is still longer, frames are taken from it evenly, first to last. The source is
    cropped about its centre and resized to the result's size. Raises `BadClip` for a clip of one
    frame.
    """
    for clip, name in ((source, "source"), (result, "result")):
        if len(clip) < 2:
            raise BadClip(f"the {name} has one frame; motion needs at least two")
    if len(source) > len(result):
        source = _shortened(source, len(result))
    elif len(result) > len(source):
        result = _shortened(result, len(source))
    if len(result) != len(source):  # dropping repeated frames made the longer one the shorter
        count = min(len(result), len(source))
        source, result = _evenly(source, count), _evenly(result, count)
    return videos.fit(source, result.height, result.width, "crop"), result


def _shortened(clip: Video, count: int) -> Video:
    fresh = np.flatnonzero([True, *(clip.frames[1:] != clip.frames[:-1]).any((1, 2, 3))])
    if len(clip) > len(fresh) >= 2:
        note = f"dropped {len(clip) - len(fresh)} of {len(clip)} frames that repeat the one before"
        clip = replace(clip, frames=clip.frames[fresh], notes=(*clip.notes, note))
    return _evenly(clip, count) if len(clip) > count else clip


def _evenly(clip: Video, count: int) -> Video:
    if len(clip) == count:
        return clip
    chosen = np.linspace(0, len(clip) - 1, count).round().astype(int)
    note = f"took {count} of {len(clip)} frames, evenly"
    return replace(clip, frames=clip.frames[chosen], notes=(*clip.notes, note))


def read_mask(path: Path, like: Video) -> Masks:
    """A mask (F, H, W) from an image, which serves every frame, or from a video: bright is judged.

    It is fitted to the clip as the source is. Raises `BadClip` for another number of frames, for
    an empty one, and for a video that is cut short.
    """
    try:
        clip = videos.read(path)
    except OneFrame:
        clip = videos.read(path, frames=1)
    if len(clip) not in (1, len(like)):
        raise BadClip(
            f"the mask {path.name} has {len(clip)} frames; give one image, or {len(like)} frames, "
            "as the clips have once aligned"
        )
    fitted = videos.fit(clip, like.height, like.width, "crop").frames
    mask = np.broadcast_to(fitted.mean(-1) >= 128, (len(like), like.height, like.width))
    if not mask.any():
        raise BadClip(f"the mask {path.name} is empty: no pixel of it is brighter than 127")
    return mask


@job
def evaluate(
    source: Video,
    result: Video,
    prompt: str,
    tools: Tools,
    mask: Masks | None = None,
    truth: Truth | None = None,
    device: str = "cpu",
) -> Generator[Event, None, list[Score]]:
    """Every metric of two aligned clips. The result is a list of `Score`; one that lacks what it
    needs, such as a prompt, says so instead of a value. Those of a truth are there if it is."""
    judged, missing = yield from _looked(source, result, prompt, tools, mask, device)
    judged = replace(judged, truth=truth)
    if truth is not None and truth.camera is None:
        missing["camera"] = "a plain or striped background does not show it"
    scores = []
    for metric in metrics().values():
        if truth is None and "truth" in metric.needs:
            continue
        lacking = [missing[need] for need in sorted(metric.needs) if need in missing]
        value = None if lacking else metric.score(judged)
        scores.append(Score(metric, value, lacking[0] if lacking else ""))
    return scores


def _looked(
    source: Video, result: Video, prompt: str, tools: Tools, mask: Masks | None, device: str
) -> Generator[Event, None, tuple[Judged, dict[str, str]]]:
    """What metrics need of the clips, and why what is missing is."""
    from recast.evaluation.lpips import lpips

    _check_device(device)
    missing: dict[str, str] = {}
    if not prompt:
        missing["prompt"] = "no prompt was given"
    embedder, tracker = _embedder(tools.clip, device), _tracker(tools, device)
    looks = []
    for index, clip in enumerate((source, result)):
        looks.append(_look(clip, embedder, tracker, mask))
        yield Step(stage="look", index=index + 1, total=2)
    distance = None
    if tools.lpips == "none":
        missing["lpips"] = "off; --lpips alex"
    else:
        distance = lpips(_hidden(source, mask), _hidden(result, mask), tools.lpips, device)
    text = embedder.text(prompt) if prompt else None
    if prompt and (unread := embedder.unread(prompt)):
        yield Note(text=unread)
    judged = Judged(source=looks[0], result=looks[1], text=text, lpips=distance, mask=mask)
    return judged, missing


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        reason = str(error).splitlines()[0][:120]
        raise BadCall(f"--device {device} is not there ({reason}); cpu always is") from error


@lru_cache(maxsize=1)
def _embedder(name: str, device: str) -> "Embedder":
    """The last CLIP that was asked for: a benchmark judges many clips by one."""
    with registry.unheard():
        from recast.evaluation.clip import Embedder
    return Embedder(name, device)


def _tracker(tools: Tools, device: str) -> Tracker:
    if tools.tracker == "cotracker":
        return partial(trackers.cotracker, folder=tools.cotracker, device=device)
    return trackers.flow


def _look(clip: Video, embedder: "Embedder", tracker: Tracker, mask: Masks | None) -> ClipView:
    tracks = tracker(clip.frames)
    if mask is not None:
        tracks = tracks.only(_inside(tracks, mask[0]))
    return ClipView(
        frames=clip.frames, tracks=tracks, embeddings=embedder.frames(_hidden(clip, mask))
    )


def _hidden(clip: Video, mask: Masks | None) -> NDArray[np.uint8]:
    """The frames with grey where the mask is not."""
    if mask is None:
        return clip.frames
    return np.where(mask[..., None], clip.frames, np.uint8(_GREY))


def _inside(tracks: Tracks, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which tracks begin inside the mask of the first frame (H, W)."""
    height, width = mask.shape
    x, y = tracks.points[0].astype(int).clip(0, (width - 1, height - 1)).T
    return np.asarray(mask[y, x])
