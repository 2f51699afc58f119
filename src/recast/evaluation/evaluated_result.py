"""A result to evaluate: the clip, and which part of the source it was generated from.

This module owns the reading of a run's manifest for that purpose, and of the same part of the
source. A clip from another system has no manifest; then the whole source is used.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from recast.errors import BadClip
from recast.media import video as videos
from recast.media.video import Fit, Video
from recast.pipeline import manifest, output_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedResult:
    """The path of a result, its prompt, and the part of the source it was generated from."""

    video: Path
    prompt: str = ""
    start: float = 0.0
    """Start in the source in seconds."""
    frames: int | None = None
    """Number of frames; None means all."""
    fps: float | None = None
    """Frames per second taken from the source; None means its own rate."""
    size: tuple[int, int] | None = None
    """Height and width to which the source was fitted; None means its own size."""
    fit: Fit = "crop"
    fitted_sha256: str = ""
    """Hash of the fitted frames of the source."""


def read_result(path: Path) -> EvaluatedResult:
    """What the manifest in a run's folder says about its result; for a clip only its path.

    Raises `BadClip` for a manifest that no run wrote, and for a folder with several results.
    """
    manifest_path = path / output_folder.MANIFEST
    if not manifest_path.is_file():
        return EvaluatedResult(video=path)
    try:
        content = json.loads(manifest_path.read_text(encoding="utf-8"))
        if "samples" in content:
            folders = ", ".join(f"seed-{sample['seed']}" for sample in content["samples"])
            raise BadClip(f"{path} holds several results; choose one of its folders: {folders}")
        source, clip = content["config"]["source"], content["clip"]
        return EvaluatedResult(
            video=path / output_folder.VIDEO,
            prompt=content["prompt"],
            start=clip.get("start", source["start"]),
            frames=clip["frames"],
            fps=clip["fps"],
            size=(clip["height"], clip["width"]),
            fit=clip.get("fit", source["fit"]),
            fitted_sha256=clip["fitted_sha256"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadClip(
            f"{manifest_path} is damaged, or no run wrote it ({type(error).__name__}: {error}); "
            f"give the clip itself, {path / output_folder.VIDEO}"
        ) from error


def read_source(path: Path, result: EvaluatedResult) -> Video:
    """The part of the source that a result was generated from, fitted as it was for the model.

    A note says so if these are not the frames that the model saw. Raises `BadClip`, `BadCall`.
    """
    clip = videos.read(path, start=result.start, frames=result.frames, fps=result.fps)
    if result.size is None:
        return clip
    clip = videos.fit(clip, *result.size, result.fit)
    if manifest.frames_hash(clip) == result.fitted_sha256:
        return clip
    note = (
        "these are not the frames that the run used: it is another clip, or another part of it, "
        "which `start` sets"
    )
    return replace(clip, notes=(*clip.notes, note))
