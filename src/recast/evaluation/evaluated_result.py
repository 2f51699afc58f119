"""A result to evaluate: its clip, and the part of the source from which it was generated.

This module owns reading both: from the manifest of a run, or, for a clip of another system, from
the whole source. It refuses to know metrics.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from recast.errors import BadClip, check_finite
from recast.media import video as videos
from recast.media.video import Fit, Video
from recast.pipeline import manifest, output_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedResult:
    """The file of a result, its prompt, and the part of the source from which it was generated."""

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

    def __post_init__(self) -> None:
        check_finite(self)


def read_result(path: Path) -> EvaluatedResult:
    """The result in a run's folder, as its manifest describes it; or the result in a clip's file.

    Raises `BadClip` for a manifest that is damaged, and for a folder with several results.
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
            f"{manifest_path} is damaged or not a manifest of Recast ({type(error).__name__}: "
            f"{error}); give the clip itself, {path / output_folder.VIDEO}"
        ) from error


def read_source(path: Path, result: EvaluatedResult) -> Video:
    """The part of the source from which a result was generated, fitted as for the model.

    If these are not the frames that the run used, a note says so. Raises `BadClip`, `BadCall`.
    """
    clip = videos.read(path, start=result.start, frames=result.frames, fps=result.fps)
    if result.size is None:
        return clip
    clip = videos.fit(clip, *result.size, result.fit)
    if manifest.frames_hash(clip) == result.fitted_sha256:
        return clip
    note = (
        "these are not the frames that the run used; give the same clip, and set `start` to the "
        "same part of it"
    )
    return replace(clip, notes=(*clip.notes, note))
