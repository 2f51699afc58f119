"""Structure maps: what a ControlNet reads of the source, such as its edges or its depth.

This module owns the ways to get them: edges by Canny, depth or poses by a model of the user, or
maps that the user has. It refuses to know how a method uses them.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recast.errors import BadCall, BadClip, OneFrame
from recast.media import edges
from recast.media import video as videos
from recast.media.frame_source import Pixels
from recast.media.video import Video
from recast.pipeline import manifest
from recast.pipeline.source_clip import FittedClip, Source

CANNY = Path("canny")


def check(source: Source) -> None:
    """Check the maps of a call before a model is loaded. Raises `BadClip` for maps that cannot be
    read, `BadModel` for another model than one for depth or poses, and `BadCall` for both at
    once."""
    if source.control is not None and source.control_model is not None:
        raise BadCall(
            f"`control` is {source.control} and `control_model` is {source.control_model}; the "
            "maps are either of the one or by the other, so leave one out"
        )
    if source.control_model is not None:
        from recast.networks import structure_model  # here, because transformers loads slowly

        structure_model.find(source.control_model)
    elif source.control not in (None, CANNY):
        _check_exists(source.control)
        with contextlib.suppress(OneFrame):  # a structure that does not move
            videos.check_opens(source.control, start=source.start, fps=source.fps)


def maps_of(
    clip: FittedClip, source: Source, device: torch.device
) -> tuple[Video, Mapping[str, Any]] | None:
    """The structure maps of a fitted clip, with as many frames and of the same size, and what the
    manifest says about them; None if the call names none.

    A clip or folder of maps is cut and fitted as the clip was. Raises `BadClip` for maps of another
    length or aspect ratio, and `BadModel` for a damaged model.
    """
    if source.control_model is not None:
        from recast.networks import depth_estimator, pose_estimator, structure_model

        _, kind = structure_model.find(source.control_model)
        estimate = depth_estimator.depth_maps if kind == "depth" else pose_estimator.pose_maps
        frames = estimate(source.control_model, clip.video.frames, device)
        facts: dict[str, Any] = {"kind": kind, "model": source.control_model.as_posix()}
    elif source.control == CANNY:
        frames = edges.canny(clip.video.frames)
        facts = {"kind": "canny", "low": edges.LOW, "high": edges.HIGH}
    elif source.control is not None:
        frames = _read(source.control, clip, source)
        facts = {
            "kind": "maps",
            "name": source.control.name,
            "sha256": manifest.file_hash(source.control),
        }
    else:
        return None
    maps = replace(clip.video, frames=frames, notes=())
    return maps, {**facts, "fitted_sha256": manifest.frames_hash(maps)}


def _read(path: Path, clip: FittedClip, source: Source) -> Pixels:
    """The maps of a file or folder, for a fitted clip."""
    video = clip.video
    try:
        maps = videos.read(path, start=source.start, frames=len(video), fps=video.fps)
    except BadClip as error:
        raise BadClip(
            f"the structure maps do not fit the clip, of which {len(video)} frames at "
            f"{video.fps:g} fps are used: {error}"
        ) from error
    own, fitted = clip.source_size, (video.height, video.width)
    if not any(videos.same_aspect((maps.height, maps.width), size) for size in (own, fitted)):
        raise BadClip(
            f"the structure maps {path} are {maps.width}x{maps.height}, which is not the aspect "
            f"ratio of the clip; give maps like the source, {own[1]}x{own[0]}, or like the fitted "
            f"clip, {fitted[1]}x{fitted[0]}, at any scale"
        )
    return videos.fit(maps, *fitted, source.fit).frames


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise BadClip(
            f"`control` is {path}, and there is no such file or folder; it is canny, or the path "
            "of a clip or folder of maps"
        )
