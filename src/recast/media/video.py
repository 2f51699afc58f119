"""A clip in memory: read from a file, fit to a size, save. Pixels are (F, H, W, 3) uint8 RGB.

This module owns `Video`, the choice of a decoder by the kind of file, and the three ways to fit a
clip to a size. `ffmpeg.py` and `pillow.py` decode, `mp4.py` and `pillow.py` encode,
`frame_selection.py` chooses frames, and `repeated_frames.py` finds those that repeat. It refuses to
know torch and models: the length, rate and size that a model needs are arguments. Importing it
loads neither FFmpeg nor Pillow.
"""

import math
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from recast.errors import BadCall, BadClip
from recast.media.atomic_files import atomic, atomic_folder
from recast.media.frame_selection import check_has_motion, select_frames
from recast.media.frame_source import ColorConversion, Pixels
from recast.media.repeated_frames import repeated_frames

if TYPE_CHECKING:
    from recast.media.frame_source import FrameSource

Fit = Literal["crop", "pad", "stretch"]

_RATES = (0.01, 1000.0)
"""Lowest and highest rate in frames per second."""
_MAX_DENOMINATOR = 1001
"""Largest denominator of a rate: 29.97 becomes 30000/1001."""


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """A clip in memory. Raises `BadCall` for another shape or type of frames and for a bad rate."""

    frames: Pixels
    """(F, H, W, 3) uint8 RGB, F >= 1."""
    fps: float
    """Frames per second."""
    notes: tuple[str, ...] = ()
    """Notes about how the clip was read and fitted, for the user and the manifest."""

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if len(shape) != 4 or shape[-1] != 3 or 0 in shape or self.frames.dtype != np.uint8:
            raise BadCall(
                "the frames of a clip must be (F, H, W, 3) uint8 and not empty, got "
                f"{shape} {self.frames.dtype}"
            )
        exact_rate(self.fps)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.frames.shape[1])

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.frames.shape[2])

    def save(self, path: str | Path) -> Path:
        """Write the clip atomically, in the format of the suffix, and return the path.

        The same clip gives the same bytes. `.mp4` is H.264 yuv420p at the clip's rate; an odd
        width or height is made even by repeating the last column or row. `.gif` has one palette,
        and equal consecutive frames become one longer frame. No suffix means a folder of
        `00000.png`, `00001.png` and so on, which replaces only a folder of the same kind. Raises
        `BadCall` for another suffix or a path that cannot be written, `NoSpace` for a full disk.
        """
        path = Path(path)
        from recast.media import mp4, pillow  # here, because FFmpeg loads slowly

        match path.suffix.lower():
            case ".mp4":
                with atomic(path) as temporary:
                    mp4.write_mp4(self.frames, exact_rate(self.fps), temporary)
            case ".gif":
                with atomic(path) as temporary:
                    pillow.write_gif(self.frames, exact_rate(self.fps), temporary)
            case "":
                _check_replaceable(path)
                with atomic_folder(path) as temporary:
                    pillow.write_pngs(self.frames, temporary)
            case other:
                raise BadCall(
                    f"cannot write a clip as {other!r}; choose .mp4, .gif or no suffix for a "
                    "folder of PNG images"
                )
        return path


def read(
    path: str | Path,
    *,
    start: float = 0.0,
    frames: int | None = None,
    fps: float | None = None,
    background: tuple[int, int, int] = (0, 0, 0),
) -> Video:
    """Read a clip from a video file, a GIF, an animated WebP or PNG, or a folder of images.

    Output frame i is the source frame that is on screen at `start + i / fps` seconds after the
    first. `fps=None` means the source's own average rate, and 8 for a folder; for a folder `fps`
    is the rate of its images. `frames=None` reads to the end. Only the requested frames are kept
    in memory, and decoding stops after them. A note says how many of them repeat the previous
    frame. Transparent pixels are composited over `background`, an RGB colour. Raises `BadClip` if
    the source cannot be read, is damaged or has fewer than `frames` frames, `OneFrame` if it has
    fewer than two different frames, and `BadCall` if an argument is out of range.
    """
    _check_arguments(start, frames, background)
    requested = None if fps is None else exact_rate(fps)
    begin = Fraction(start).limit_denominator(10**6)
    source = _open(Path(path), begin, requested, background)
    rate = requested or source.rate
    with closing(source.frames):
        pixels, rate_notes = select_frames(source, begin, rate, frames)
    return Video(pixels, float(rate), (*source.notes, *rate_notes, *_repeat_notes(pixels)))


def _repeat_notes(pixels: Pixels) -> tuple[str, ...]:
    count = int(repeated_frames(pixels).sum())
    if not count:
        return ()
    return (f"{count} of {len(pixels)} frames repeat the previous frame",)


def check_opens(path: str | Path, *, start: float = 0.0, fps: float | None = None) -> None:
    """Open what `read` would read, and find a bad clip without reading all of it.

    `fps=None` means a rate that is not known yet. Raises as `read` does, and `OneFrame` for a clip
    that has fewer than two frames from `start` on, or shows only one at `fps`.
    """
    _check_arguments(start, None, (0, 0, 0))
    requested = None if fps is None else exact_rate(fps)
    begin = Fraction(start).limit_denominator(10**6)
    source = _open(Path(path), begin, requested, (0, 0, 0))
    with closing(source.frames):
        check_has_motion(source, begin, requested)


def fit(video: Video, height: int, width: int, how: Fit = "crop") -> Video:
    """The clip at `height` x `width` pixels, with a note about how it was fitted.

    `crop` keeps the centre and cuts to the new aspect ratio, `pad` keeps the whole frame and adds
    black bars, `stretch` changes the aspect ratio. Resampling is Lanczos, which averages over the
    area when it shrinks. Raises `BadCall` for a size below 1 or an unknown `how`.
    """
    if height < 1 or width < 1:
        raise BadCall(f"a clip must be at least 1x1 pixels, got {width}x{height}")
    if how not in ("crop", "pad", "stretch"):
        raise BadCall(f"unknown fit {how!r}; choose from crop, pad, stretch")
    if (video.height, video.width) == (height, width):
        return video
    resample = {"crop": _crop, "pad": _pad, "stretch": _stretch}[how]
    pixels, note = resample(video.frames, height, width)
    return replace(video, frames=pixels, notes=(*video.notes, note))


def resize(
    frames: Pixels, height: int, width: int, box: tuple[float, float, float, float] | None = None
) -> Pixels:
    """(F, H, W, 3) to (F, height, width, 3) by Lanczos. `box` is the part of each frame to use,
    as (left, top, right, bottom) in pixels; the default is the whole frame."""
    from PIL import Image

    out = np.empty((len(frames), height, width, 3), np.uint8)
    for into, frame in zip(out, frames, strict=True):
        image = Image.fromarray(np.ascontiguousarray(frame))
        into[:] = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box))
    return out


def same_aspect(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes, height and width, have the same aspect ratio, up to one pixel of rounding
    on a side."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def exact_rate(fps: float) -> Fraction:
    """The rate as a fraction, 29.97 as 30000/1001. Raises `BadCall` outside 0.01 to 1000 fps."""
    if not (math.isfinite(fps) and _RATES[0] <= fps <= _RATES[1]):
        raise BadCall(
            f"`fps` must be between {_RATES[0]} and {_RATES[1]:g} frames per second, got {fps}"
        )
    return Fraction(fps).limit_denominator(_MAX_DENOMINATOR)


# --- opening --------------------------------------------------------------------------------------


def _open(
    path: Path, start: Fraction, fps: Fraction | None, background: tuple[int, int, int]
) -> "FrameSource":
    """Open a video, an animation or a folder; the first frame it yields is at or before `start`.

    `fps` is the rate of a folder (None: 8) and of a video that states no rate. Raises `BadClip`.
    """
    from recast.media import ffmpeg, pillow  # here, because FFmpeg loads slowly

    conversion = ColorConversion(str(path), background)
    try:
        if path.is_dir():
            return pillow.open_folder(path, fps, conversion)
        if not path.exists():
            raise BadClip(f"{path} does not exist; check the name")
        if not path.is_file() or path.stat().st_size == 0:
            raise BadClip(f"{path} is empty or not a regular file; give a video or a folder")
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise BadClip(f"{path} cannot be opened: {(error.strerror or '').lower()}") from error
    if head.startswith((b"GIF8", b"\x89PNG")) or (head[:4], head[8:12]) == (b"RIFF", b"WEBP"):
        return pillow.open_animation(path, conversion)
    return ffmpeg.open_video(path, start, fps, conversion)


# --- fitting --------------------------------------------------------------------------------------


def _crop(frames: Pixels, height: int, width: int) -> tuple[Pixels, str]:
    _, old_h, old_w, _ = frames.shape
    scale = max(Fraction(height, old_h), Fraction(width, old_w))
    crop_h, crop_w = height / scale, width / scale
    top, left = (old_h - crop_h) // 2, (old_w - crop_w) // 2
    box = (float(left), float(top), float(left + crop_w), float(top + crop_h))
    actions = []
    if (crop_h, crop_w) != (old_h, old_w):
        crop = f"{float(crop_w):.4g}x{float(crop_h):.4g}"
        actions.append(f"cropped {old_w}x{old_h} to {crop} (centre)")
    if scale != 1:
        actions.append(f"resized {'' if actions else f'{old_w}x{old_h} '}to {width}x{height}")
    return resize(frames, height, width, box), ", ".join(actions)


def _pad(frames: Pixels, height: int, width: int) -> tuple[Pixels, str]:
    _, old_h, old_w, _ = frames.shape
    scale = min(Fraction(height, old_h), Fraction(width, old_w))
    inner_h, inner_w = max(1, round(old_h * scale)), max(1, round(old_w * scale))
    out = np.zeros((len(frames), height, width, 3), np.uint8)
    top, left = (height - inner_h) // 2, (width - inner_w) // 2
    out[:, top : top + inner_h, left : left + inner_w] = resize(frames, inner_h, inner_w)
    actions = []
    if (inner_h, inner_w) != (old_h, old_w):
        actions.append(f"resized {old_w}x{old_h} to {inner_w}x{inner_h}")
    if (inner_h, inner_w) != (height, width):
        actions.append(f"padded {inner_w}x{inner_h} to {width}x{height} with black")
    return out, ", ".join(actions)


def _stretch(frames: Pixels, height: int, width: int) -> tuple[Pixels, str]:
    _, old_h, old_w, _ = frames.shape
    same_ratio = old_h * width == old_w * height
    verb, remark = ("resized", "") if same_ratio else ("stretched", " (the aspect ratio changed)")
    note = f"{verb} {old_w}x{old_h} to {width}x{height}{remark}"
    return resize(frames, height, width), note


# --- checks ---------------------------------------------------------------------------------------


def _check_arguments(start: float, frames: int | None, background: tuple[int, int, int]) -> None:
    if not (math.isfinite(start) and start >= 0):
        raise BadCall(f"`start` must be a time in seconds, at least 0, got {start}")
    if frames is not None and frames < 1:
        raise BadCall(f"`frames` must be at least 1, got {frames}")
    if len(background) != 3 or not all(0 <= channel <= 255 for channel in background):
        raise BadCall(f"`background` must be three numbers from 0 to 255, got {background}")


def _check_replaceable(folder: Path) -> None:
    """Raise `BadCall` if the folder holds anything but what `save` writes."""
    if not folder.is_dir():
        return
    foreign = [item.name for item in folder.iterdir() if not _is_numbered_png(item)]
    if foreign:
        raise BadCall(
            f"the folder {folder} holds other files ({min(foreign)}) and is not replaced; "
            "choose a new name, or .mp4 or .gif for a video"
        )


def _is_numbered_png(item: Path) -> bool:
    return item.suffix == ".png" and len(item.stem) == 5 and item.stem.isdigit()
