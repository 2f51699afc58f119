"""Which frames of a source become a clip: the one that is on screen at each output time.

This module owns the choice by time stamps, the limit on memory, and the notes and errors about
what was repeated, skipped or missing. It decodes nothing and knows no file format.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NoReturn

import numpy as np

from recast.errors import BadClip, OneFrame
from recast.media.frame_source import Frame, FrameSource, Pixels

MAX_BYTES = 4 * 2**30
"""Limit for the decoded frames of one clip, in bytes: 16 frames of 8K, or 170 of 4K, pass."""


def select_frames(
    source: FrameSource, start: Fraction, rate: Fraction, count: int | None
) -> tuple[Pixels, tuple[str, ...]]:
    """Pixels (F, H, W, 3) of the frames on screen at `start + i / rate` seconds, and notes.

    `count=None` selects up to the end of the source. Only selected frames are converted to RGB,
    and the source is read no further than needed. Raises `BadClip` if the source has fewer frames
    than `count` or changes its size, and `OneFrame` if it has only one.
    """
    selection = _Selection()
    frames = _frames_on_screen(source, start, rate, count, selection)
    pixels = _collect(frames, source.name, count, selection)
    _check_enough(selection, source, start, rate, count)
    return pixels, tuple(_rate_notes(selection, source.rate, rate))


def check_has_motion(source: FrameSource, start: Fraction, rate: Fraction | None) -> None:
    """Check that a source has two frames from `start` on, and shows a second one at `rate`.

    The source is read no further than needed, and one frame is converted to RGB, to find damage.
    `rate` is None if it is not known yet. Raises `BadClip` for a source that ends before `start`,
    and `OneFrame`.
    """
    needed = start if rate is None else start + 1 / rate
    shown = 0
    for frame in source.frames:
        if frame.end - 2 * source.slack <= start:
            continue
        if not shown:
            frame.to_rgb()
        shown += 1
        if shown > 1 and frame.end - 2 * source.slack > needed:
            return
    at = "" if rate is None or shown < 2 else f" at {_fps(rate)} fps"
    _refuse_one_frame(source.name, f"{at}{_offset(start)}", start, shown)


@dataclass(slots=True)
class _Selection:
    """Counts of the frames selected so far, and the index of the first and the last of them."""

    count: int = 0
    distinct: int = 0
    first: int = 0
    last: int = -1
    end: Fraction = Fraction(0)
    """End in seconds of the last frame read, which is the end of a source that ran out."""

    def add(self, frame: Frame) -> None:
        self.first = self.first if self.count else frame.index
        self.distinct += not self.count or frame.index != self.last
        self.count += 1
        self.last = frame.index


def _frames_on_screen(
    source: FrameSource,
    start: Fraction,
    rate: Fraction,
    count: int | None,
    selection: _Selection,
) -> Iterator[Frame]:
    """For each output time the frame on screen, [time, next time), until `count` or the end."""
    current, index = None, 0
    for frame in source.frames:
        while current is not None and start + index / rate < frame.time - source.slack:
            yield current
            index += 1
            if index == count:
                return
        current, selection.end = frame, frame.end
    # Twice the slack: both the last time stamp and its duration are rounded.
    while current is not None and start + index / rate < current.end - 2 * source.slack:
        yield current
        index += 1
        if index == count:
            return


def _collect(
    frames: Iterable[Frame], name: str, count: int | None, selection: _Selection
) -> Pixels:
    """Pixels of the frames, (F, H, W, 3). A frame that is repeated is converted once."""
    pixels, shape = bytearray(), (1, 1, 3)
    for frame in frames:
        if not selection.count or frame.index != selection.last:
            image = frame.to_rgb()
        if not selection.count:
            shape = image.shape
        if image.shape != shape:
            raise BadClip(
                f"{name} changes its size from {_size(shape)} to {_size(image.shape)} at "
                f"{float(frame.time):.2f} s; all frames of a clip must have one size"
            )
        if max(count or 1, selection.count + 1) * image.nbytes > MAX_BYTES:
            raise BadClip(
                f"{name} at {_size(shape)} needs more than the limit of {MAX_BYTES // 2**30} GiB "
                f"for decoded frames; {MAX_BYTES // image.nbytes} frames fit, so set `frames` or "
                "lower `fps`"
            )
        selection.add(frame)
        pixels += image.tobytes()
    return np.frombuffer(pixels, np.uint8).reshape(-1, *shape)


def _check_enough(
    selection: _Selection,
    source: FrameSource,
    start: Fraction,
    rate: Fraction,
    count: int | None,
) -> None:
    """Raise `BadClip` or `OneFrame` if the source had fewer frames than are needed."""
    if selection.distinct < 2 and (count != 1 or not selection.count):
        _refuse_one_frame(source.name, _offset(start), start, selection.count)
    name, offset = source.name, _offset(start)
    if count is None or selection.count == count:
        return
    remedies = [f"lower `frames` to {selection.count}"]
    sufficient_rate = math.ceil(10 * count / (selection.end - start)) / 10
    if sufficient_rate <= source.rate:
        remedies.append(f"raise `fps` to {sufficient_rate:g}")
    if start:
        remedies.append("choose an earlier `start`")
    raise BadClip(
        f"{name} has {selection.count} frames at {_fps(rate)} fps{offset}, {count} are needed; "
        + " or ".join(remedies)
    )


def _refuse_one_frame(name: str, where: str, start: Fraction, count: int) -> NoReturn:
    if not count:
        raise BadClip(
            f"{name} ends before `start` at {float(start):g} s; choose an earlier `start`"
        )
    raise OneFrame(f"{name} has only one frame{where}; a clip needs at least two different frames")


def _offset(start: Fraction) -> str:
    return f" from {float(start):g} s on" if start else ""


def _rate_notes(selection: _Selection, own: Fraction, rate: Fraction) -> Iterator[str]:
    if rate != own:
        yield f"resampled from {_fps(own)} to {_fps(rate)} fps by time stamps"
        return
    repeated = selection.count - selection.distinct
    skipped = selection.last - selection.first + 1 - selection.distinct
    if repeated or skipped:
        yield (
            f"variable frame rate, resampled to {_fps(rate)} fps by time stamps "
            f"({repeated} frames repeated, {skipped} skipped)"
        )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _fps(rate: Fraction) -> str:
    return f"{float(rate):.5g}"
