"""Clips at the edge of Recast: read, choose frames, fit, save. Pixels are (F, H, W, 3) uint8 RGB.

Owns which frames are taken and what is said about it. The codecs stand in `_codecs.py`, contact
sheets and pairs in `sheet.py`. Knows no torch and no model; the clip length, the rate and the size
that a model wants come in as arguments. Importing this loads neither FFmpeg nor Pillow.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from recast.errors import BadCall, BadClip, OneFrame
from recast.media.atomic_files import atomic, atomic_folder

if TYPE_CHECKING:
    from recast.media.frame_source import Shot, Source

Fit = Literal["crop", "pad", "stretch"]
Pixels = NDArray[np.uint8]

MAX_BYTES = 4 * 2**30
"""Cap on the decoded frames of one clip, in bytes: 16 frames of 8K, or 170 of 4K, pass."""

_RATES = (0.01, 1000.0)
_FRACTION = 1001
"""Greatest denominator of a rate: 29.97 becomes 30000/1001."""


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """A clip in memory. Raises `BadCall` if the array is not a clip."""

    frames: Pixels
    """(F, H, W, 3) uint8 RGB, F >= 1."""
    fps: float
    """Frames per second."""
    notes: tuple[str, ...] = ()
    """What was done to the clip on its way in, for the user and the manifest."""

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if len(shape) != 4 or shape[-1] != 3 or 0 in shape or self.frames.dtype != np.uint8:
            raise BadCall(
                f"frames are (F, H, W, 3) uint8 and not empty, got {shape} {self.frames.dtype}"
            )
        exact_rate(self.fps)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.frames.shape[1])

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.frames.shape[2])

    def save(self, path: str | Path) -> Path:
        """Write the clip, whole or not at all; the suffix says how. The same clip, the same bytes.

        `.mp4` is H.264 yuv420p at the clip's rate; an odd width or height is made even by
        repeating the last column or row. `.gif` has one palette, and equal neighbours become one
        longer frame. No suffix is a folder of `00000.png` and so on, which replaces an older
        folder of that kind and no other. Raises `BadCall`, `NoSpace`.
        """
        path = Path(path)
        from recast.media import ffmpeg, pillow  # here, since FFmpeg loads slowly

        match path.suffix.lower():
            case ".mp4":
                with atomic(path) as temporary:
                    ffmpeg.write_mp4(self.frames, exact_rate(self.fps), temporary)
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
                    "folder of PNGs"
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
    """The clip at `path`: a video file, a GIF or animated WebP, or a folder of images.

    Output frame i is the source frame that is on screen at `start + i / fps` seconds after the
    source's first. `fps=None` is the source's own average rate, and for a folder 8; for a folder
    `fps` says how fast its images follow each other. `frames=None` reads to the end. Only the
    frames that are asked for are kept, and decoding stops after them. Transparent pixels are laid
    on `background`. Raises `BadClip` if the source cannot be read, is damaged, or holds less than
    two different frames (`OneFrame`) or than `frames`; `BadCall` if the request makes no sense.
    """
    _check_request(start, frames, background)
    asked = None if fps is None else exact_rate(fps)
    begin = Fraction(start).limit_denominator(10**6)
    from recast.media import ffmpeg  # here, since FFmpeg loads slowly

    source = ffmpeg.open_source(Path(path), begin, asked, background)
    rate = asked or source.rate
    with closing(source.shots):
        taken = _Taken()
        chosen = _on_screen(source, begin, rate, frames, taken)
        pixels = _collect(chosen, source.name, frames, taken)
    _check_taken(taken, source, begin, rate, frames)
    notes = (*source.notes, *_rate_notes(taken, source.rate, rate))
    return Video(pixels, float(rate), notes)


def fit(video: Video, height: int, width: int, how: Fit = "crop") -> Video:
    """The clip at `height` x `width` pixels, and a note that says how it got there.

    `crop` keeps the centre at the asked shape, `pad` keeps all and adds black bars, `stretch`
    changes the shape. Resampling is Lanczos, which averages over the area when shrinking. Raises
    `BadCall` for a size below 1 or an unknown `how`.
    """
    if height < 1 or width < 1:
        raise BadCall(f"a clip is at least 1x1 pixels, got {width}x{height}")
    if how not in ("crop", "pad", "stretch"):
        raise BadCall(f"unknown fit {how!r}; choose from crop, pad, stretch")
    if (video.height, video.width) == (height, width):
        return video
    work = {"crop": _crop, "pad": _pad, "stretch": _stretch}[how]
    pixels, note = work(video.frames, height, width)
    return replace(video, frames=pixels, notes=(*video.notes, note))


def resize(
    frames: Pixels, height: int, width: int, box: tuple[float, float, float, float] | None = None
) -> Pixels:
    """(F, H, W, 3) to (F, height, width, 3) by Lanczos, from `box` (left, top, right, bottom)."""
    from PIL import Image

    out = np.empty((len(frames), height, width, 3), np.uint8)
    for into, frame in zip(out, frames, strict=True):
        image = Image.fromarray(np.ascontiguousarray(frame))
        into[:] = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box))
    return out


def exact_rate(fps: float) -> Fraction:
    """The rate as a fraction, 29.97 as 30000/1001. Raises `BadCall` outside 0.01 to 1000 fps."""
    if not (math.isfinite(fps) and _RATES[0] <= fps <= _RATES[1]):
        raise BadCall(f"frames per second lie between {_RATES[0]} and {_RATES[1]:g}, got {fps}")
    return Fraction(fps).limit_denominator(_FRACTION)


# --- which frames ---------------------------------------------------------------------------------


def _on_screen(
    source: "Source", start: Fraction, rate: Fraction, frames: int | None, taken: "_Taken"
) -> Iterator["Shot"]:
    """For each output time the shot that is on screen, [time, next time), until `frames` or end."""
    held, index = None, 0
    for shot in source.shots:
        while held is not None and start + index / rate < shot.time - source.slack:
            yield held
            index += 1
            if index == frames:
                return
        held, taken.end = shot, shot.end
    # Twice the slack: both the last time stamp and its duration are rounded.
    while held is not None and start + index / rate < held.end - 2 * source.slack:
        yield held
        index += 1
        if index == frames:
            return


@dataclass(slots=True)
class _Taken:
    """Which shots were taken, to count what was repeated and skipped, and where the last one ends.

    `end` is that of the last shot that was looked at, so that of the source if it ran out.
    """

    count: int = 0
    distinct: int = 0
    first: int = 0
    last: int = -1
    end: Fraction = Fraction(0)

    def add(self, shot: "Shot") -> None:
        self.first = self.first if self.count else shot.index
        self.distinct += not self.count or shot.index != self.last
        self.count += 1
        self.last = shot.index


def _collect(chosen: Iterable["Shot"], name: str, frames: int | None, taken: _Taken) -> Pixels:
    """The pixels of the shots, (F, H, W, 3). A shot that is taken twice is decoded once."""
    pixels, shape = bytearray(), (1, 1, 3)
    for shot in chosen:
        if not taken.count or shot.index != taken.last:
            picture = shot.picture()
        if not taken.count:
            shape = picture.shape
        if picture.shape != shape:
            raise BadClip(
                f"{name} changes its size from {_size(shape)} to {_size(picture.shape)} at "
                f"{float(shot.time):.2f} s; all frames of a clip have one size"
            )
        if max(frames or 1, taken.count + 1) * picture.nbytes > MAX_BYTES:
            raise BadClip(
                f"{name} at {_size(shape)} needs more than the {MAX_BYTES // 2**30} GiB that "
                f"decoded frames may take; {MAX_BYTES // picture.nbytes} frames fit, so set "
                "--frames or a lower --fps"
            )
        taken.add(shot)
        pixels += picture.tobytes()
    return np.frombuffer(pixels, np.uint8).reshape(-1, *shape)


def _check_taken(
    taken: _Taken, source: "Source", start: Fraction, rate: Fraction, frames: int | None
) -> None:
    """Refuse a source that had too little to take."""
    name, where = source.name, f" from {float(start):g} s on" if start else ""
    if not taken.count:
        raise BadClip(f"{name} ends before --start {float(start):g} s; choose an earlier --start")
    if taken.distinct == 1 and frames != 1:
        raise OneFrame(
            f"{name} has only one frame{where}; a clip needs at least two different frames"
        )
    if frames is None or taken.count == frames:
        return
    ways = [f"lower --frames to {taken.count}"]
    needed = math.ceil(10 * frames / (taken.end - start)) / 10
    if needed <= source.rate:
        ways.append(f"raise --fps to {needed:g}")
    if start:
        ways.append("choose an earlier --start")
    raise BadClip(
        f"{name} has {taken.count} frames at {_fps(rate)} fps{where}, {frames} are needed; "
        + " or ".join(ways)
    )


def _rate_notes(taken: _Taken, own: Fraction, rate: Fraction) -> Iterator[str]:
    if rate != own:
        yield f"resampled from {_fps(own)} to {_fps(rate)} fps by time stamps"
        return
    repeated = taken.count - taken.distinct
    skipped = taken.last - taken.first + 1 - taken.distinct
    if repeated or skipped:
        yield (
            f"variable frame rate, resampled to {_fps(rate)} fps by time stamps "
            f"({repeated} frames repeated, {skipped} skipped)"
        )


# --- fitting --------------------------------------------------------------------------------------


def _crop(frames: Pixels, height: int, width: int) -> tuple[Pixels, str]:
    _, tall, wide, _ = frames.shape
    scale = max(Fraction(height, tall), Fraction(width, wide))
    keep_h, keep_w = height / scale, width / scale
    top, left = (tall - keep_h) // 2, (wide - keep_w) // 2
    box = (float(left), float(top), float(left + keep_w), float(top + keep_h))
    done = []
    if (keep_h, keep_w) != (tall, wide):
        done.append(f"cropped {wide}x{tall} to {float(keep_w):.4g}x{float(keep_h):.4g} (centre)")
    if scale != 1:
        done.append(f"resized {'' if done else f'{wide}x{tall} '}to {width}x{height}")
    return resize(frames, height, width, box), ", ".join(done)


def _pad(frames: Pixels, height: int, width: int) -> tuple[Pixels, str]:
    _, tall, wide, _ = frames.shape
    scale = min(Fraction(height, tall), Fraction(width, wide))
    inner_h, inner_w = max(1, round(tall * scale)), max(1, round(wide * scale))
    out = np.zeros((len(frames), height, width, 3), np.uint8)
    top, left = (height - inner_h) // 2, (width - inner_w) // 2
    out[:, top : top + inner_h, left : left + inner_w] = resize(frames, inner_h, inner_w)
    done = []
    if (inner_h, inner_w) != (tall, wide):
        done.append(f"resized {wide}x{tall} to {inner_w}x{inner_h}")
    if (inner_h, inner_w) != (height, width):
        done.append(f"padded {inner_w}x{inner_h} to {width}x{height} with black")
    return out, ", ".join(done)


def _stretch(frames: Pixels, height: int, width: int) -> tuple[Pixels, str]:
    _, tall, wide, _ = frames.shape
    same = tall * width == wide * height
    verb, aside = ("resized", "") if same else ("stretched", " (the shape changed)")
    note = f"{verb} {wide}x{tall} to {width}x{height}{aside}"
    return resize(frames, height, width), note


# --- checks and words -----------------------------------------------------------------------------


def _check_request(start: float, frames: int | None, background: tuple[int, int, int]) -> None:
    if not (math.isfinite(start) and start >= 0):
        raise BadCall(f"--start is a time in seconds from 0 on, got {start}")
    if frames is not None and frames < 1:
        raise BadCall(f"--frames is at least 1, got {frames}")
    if len(background) != 3 or not all(0 <= part <= 255 for part in background):
        raise BadCall(f"a background is three numbers from 0 to 255, got {background}")


def _check_replaceable(folder: Path) -> None:
    """A folder is replaced only if it holds nothing but what `save` writes."""
    if not folder.is_dir():
        return
    foreign = [item.name for item in folder.iterdir() if not _is_ours(item)]
    if foreign:
        raise BadCall(
            f"the folder {folder} holds other files ({sorted(foreign)[0]}) and is not replaced; "
            "choose a new name, or .mp4 or .gif for a video"
        )


def _is_ours(item: Path) -> bool:
    return item.suffix == ".png" and len(item.stem) == 5 and item.stem.isdigit()


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _fps(rate: Fraction) -> str:
    return f"{float(rate):.5g}"
