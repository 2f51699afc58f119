"""The source clip as a model takes it: the right frames at the right size, as tensors and back.

This module owns `Source`, whose fields are flags of the command line, and their defaults: for
frames, size and rate these are the model's own numbers. `structure_maps.py` reads and computes the
maps that it names. This module refuses to know methods.
"""

import unicodedata
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from recast.backbones.base import Backbone
from recast.errors import BadCall, BadClip, OneFrame, check_finite
from recast.media import video as videos
from recast.media.video import Fit, Video

MOTION_SUFFIX = ".safetensors"
"""The suffix that distinguishes a motion file from a clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Which part of the clip is used, and how it is fitted to the model. Raises `BadCall` for a
    value out of range."""

    start: float = 0.0
    """Time in the clip, in seconds, at which the used part begins."""
    frames: int | None = None
    """Number of frames to use. By default it is the number on which the model was trained."""
    fps: float | None = None
    """Frames per second to take from the clip. By default it is the model's own rate."""
    height: int | None = None
    """Height in pixels to which the frames are fitted. By default it is the model's own height."""
    width: int | None = None
    """Width in pixels to which the frames are fitted. By default it is the model's own width."""
    fit: Fit = "crop"
    """How the frames are fitted to that size: crop keeps the centre, pad adds black bars, stretch
    changes the aspect ratio."""
    source_prompt: str = ""
    """A description of the clip. Some methods require it, and others learn better with it."""
    control: Path | None = None
    """The structure maps of the clip, for a model with a ControlNet (`control_net`): canny computes
    its edges. A path names maps that you have: a video, a GIF or a folder of images, which is cut
    and fitted as the clip is. The run writes the maps as control.mp4."""
    control_model: Path | None = None
    """The folder or hub id of a model of transformers for depth estimation, or for poses (ViTPose).
    Its maps of the clip take the place of `control`."""

    def __post_init__(self) -> None:
        check_finite(self)
        check_characters("`source_prompt`", self.source_prompt)
        if self.start < 0:
            raise BadCall(f"`start` must be a time in seconds, at least 0, got {self.start}")
        check_frames(self.frames)
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadCall(f"`{name}` must be at least 1, got {value}")

    @property
    def named_maps(self) -> str | None:
        """The name of the field that names structure maps; None if none does."""
        return next((n for n in ("control", "control_model") if getattr(self, n) is not None), None)

    def changed_fields(self) -> list[str]:
        """The names of the fields that differ from their default."""
        default = Source()
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(default, f.name)]

    def size(self, backbone: Backbone) -> tuple[int, int, int]:
        """Frames, height and width for a model. Raises `BadCall` if the model cannot take them."""
        own = backbone.defaults
        size = (self.frames or own.frames, self.height or own.height, self.width or own.width)
        backbone.latent_shape(*size)
        return size

    def rate(self, backbone: Backbone) -> float:
        """Frames per second for a model."""
        return backbone.defaults.fps if self.fps is None else self.fps


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FittedClip:
    """A source clip, cut and fitted for one model."""

    video: Video
    name: str
    """The name of the clip in motion files and manifests."""
    source_size: tuple[int, int]
    """Height and width of the source in pixels before it was fitted."""


def check_frames(frames: int | None) -> None:
    """Raise `BadCall` for a number of frames below 2."""
    if frames is not None and frames < 2:
        raise BadCall(
            f"`frames` must be at least 2, because a single frame has no motion, got {frames}"
        )


def check_characters(name: str, text: str) -> None:
    """Raise `BadCall` for a text with a control character, such as a line break or a tab, or with
    bytes that are no text. `name` is what the message calls the text."""
    for position, character in enumerate(text, 1):
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise BadCall(
                f"{name} has the control character {character!r} at position {position}; write one "
                "line, with blanks in place of tabs and line breaks"
            )


def check_opens(path: Path, source: Source) -> None:
    """Find a bad clip, or one without motion, before a model is loaded. Raises `BadClip`,
    `BadCall`."""
    videos.check_opens(path, start=source.start, fps=source.fps)


def read(path: Path, source: Source, backbone: Backbone) -> FittedClip:
    """Read a clip from a file, and cut and fit it for a model. Raises `BadClip`, `BadCall`."""
    frames, height, width = source.size(backbone)
    clip = videos.read(path, start=source.start, frames=frames, fps=source.rate(backbone))
    return FittedClip(
        video=videos.fit(clip, height, width, source.fit),
        name=path.name,
        source_size=(clip.height, clip.width),
    )


def fit(clip: Video, source: Source, backbone: Backbone) -> FittedClip:
    """Cut and fit a clip in memory for a model, by the rule of `recast.read`: frame i of the result
    is the frame of the clip at `start + i / fps` seconds. Raises `BadClip`, `OneFrame`,
    `BadCall`."""
    frames, height, width = source.size(backbone)
    fps = source.rate(backbone)
    times = source.start + np.arange(frames) / float(videos.exact_rate(fps))
    # A thousandth of a frame is added, because rounding can lower a time stamp.
    chosen = np.floor(times * clip.fps + 1e-3).astype(int)
    begin = f" from `start={source.start:g}` on" if source.start else ""
    if min(chosen[-1], len(clip) - 1) == chosen[0]:
        raise OneFrame(
            f"the clip has only one frame at {fps:g} fps{begin}; motion needs at least two "
            "different frames"
        )
    if chosen[-1] >= len(clip):
        available = int((chosen < len(clip)).sum())
        raise BadClip(
            f"the clip has {available} frames at {fps:g} fps{begin}, {frames} are needed; use a "
            "longer clip, fewer `frames`, a higher `fps` or an earlier `start`"
        )
    notes = clip.notes
    if not np.array_equal(chosen, np.arange(len(clip))):
        notes = (*notes, f"took {frames} of {len(clip)} frames at {fps:g} fps")
    cut = replace(clip, frames=clip.frames[chosen], fps=fps, notes=notes)
    return FittedClip(
        video=videos.fit(cut, height, width, source.fit),
        name="clip in memory",
        source_size=(clip.height, clip.width),
    )


def repeat_frames(clip: Video, times: int) -> Video:
    """The clip with each frame but the last repeated `times` times, at `times` times the rate.

    This is the source beside the result of a cascade, which adds frames between those of the
    source.
    """
    if times == 1:
        return clip
    frames = clip.frames.repeat(times, axis=0)[: times * (len(clip) - 1) + 1]
    return replace(clip, frames=frames, fps=clip.fps * times)


def to_tensor(clip: Video) -> Tensor:
    """A clip as a tensor (1, 3, F, H, W) float32 in [-1, 1]."""
    frames = torch.from_numpy(np.ascontiguousarray(clip.frames)).float() / 127.5 - 1
    return rearrange(frames, "f h w c -> 1 c f h w")


def to_video(clip: Tensor, fps: float) -> Video:
    """A tensor (1, 3, F, H, W) in [-1, 1] as a clip, rounded to the nearest 8-bit level."""
    frames = rearrange(clip.detach().float().cpu(), "1 c f h w -> f h w c")
    levels = ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Video(levels.contiguous().numpy(), fps)
