"""Small pictures of a clip for the page: its timeline, the frames that are used, and their crop.

This module owns which frames are shown and how. It reads clips by `recast.media`, as a run does.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recast.backbones.base import Defaults
from recast.media import clip_facts
from recast.media import video as videos
from recast.media.video import Fit, Video
from recast.pipeline.source_clip import Source

_TIMELINE = 12
"""Number of pictures of a timeline."""
_SHOWN = 8
"""Largest number of pictures of the used frames."""
_SIDE = 128
_MASK_SIDE = 512
"""Longest side in pixels of the picture on which a mask is drawn."""
_OUTSIDE = 0.35
"""Brightness outside the crop."""
_QUALITY = 70


@dataclass(frozen=True, slots=True)
class Filmstrip:
    """The pictures of a clip for one choice of settings, as data URLs."""

    timeline: tuple[str, ...]
    frames: tuple[str, ...]
    canvas: str
    """The first used frame as the model gets it."""
    canvas_size: tuple[int, int]
    """Its width and height in pixels."""
    seconds: float
    """The length of the clip."""
    begin: float
    """Where the used part begins, as a share of the clip."""
    share: float
    """The share of the clip that is used."""
    note: str


def filmstrip(path: Path, source: Source, own: Defaults) -> Filmstrip:
    """The pictures of a clip for a model with these defaults. Raises `BadClip`, `BadCall`."""
    seconds, timeline = _timeline(path, path.stat().st_mtime)
    count, fps = source.frames or own.frames, source.fps or own.fps
    height, width = source.height or own.height, source.width or own.width
    clip = videos.read(path, start=source.start, frames=count, fps=fps)
    fitted = videos.fit(_first(clip), height, width, source.fit)
    chosen = np.linspace(0, len(clip) - 1, min(_SHOWN, len(clip))).round().astype(int)
    frames = tuple(_url(_framed(clip.frames[i], height, width, source.fit)) for i in chosen)
    scale = max(1, _MASK_SIDE / max(height, width))
    canvas_size = (round(width * scale), round(height * scale))
    notes = [f"{count} frames at {fps:g} per second", f"{width}×{height} pixels", *fitted.notes[:1]]
    return Filmstrip(
        timeline=timeline,
        frames=frames,
        canvas=_url(fitted.frames[0], side=_MASK_SIDE),
        canvas_size=canvas_size,
        seconds=seconds,
        begin=min(1.0, source.start / max(seconds, 1e-6)),
        share=min(1.0, count / fps / max(seconds, 1e-6)),
        note=", ".join(dict.fromkeys(note for note in notes if note)),
    )


@lru_cache(maxsize=128)
def clip_seconds(path: Path, _changed: float = 0.0) -> float:
    """The length of a clip in seconds. Raises `BadClip`."""
    return clip_facts.read_facts(path).seconds


@lru_cache(maxsize=64)
def _timeline(path: Path, _changed: float) -> tuple[float, tuple[str, ...]]:
    """The length of a clip and pictures evenly spread over it."""
    seconds = max(clip_seconds(path, _changed), 0.05)
    clip = videos.read(path, fps=max(0.02, min(1000.0, _TIMELINE / seconds)))
    return seconds, tuple(_url(frame) for frame in clip.frames[:_TIMELINE])


@lru_cache(maxsize=64)
def poster(path: Path, _changed: float) -> str:
    """One picture of a clip, as a data URL. Raises `BadClip`."""
    return _url(videos.read(path, frames=1).frames[0])


def _first(clip: Video) -> Video:
    return Video(clip.frames[:1], clip.fps)


def _framed(frame: NDArray[np.uint8], height: int, width: int, fit: Fit) -> NDArray[np.uint8]:
    """A frame with its fit drawn: dark outside the crop, with bars, or stretched."""
    old_height, old_width, _ = frame.shape
    if fit != "crop":
        return videos.fit(Video(frame[None], 8.0), height, width, fit).frames[0]
    scale = max(height / old_height, width / old_width)
    kept_height, kept_width = round(height / scale), round(width / scale)
    top, left = (old_height - kept_height) // 2, (old_width - kept_width) // 2
    shown = (frame * _OUTSIDE).astype(np.uint8)
    inside = (slice(top, top + kept_height), slice(left, left + kept_width))
    shown[inside] = frame[inside]
    return shown


def _url(frame: NDArray[np.uint8], side: int = _SIDE) -> str:
    image = Image.fromarray(np.ascontiguousarray(frame))
    if max(image.size) < side:  # small clips stay sharp
        factor = max(1, side // max(image.size))
        image = image.resize(_scaled(image.size, factor), Image.Resampling.NEAREST)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _scaled(size: Sequence[int], factor: int) -> tuple[int, int]:
    return size[0] * factor, size[1] * factor
