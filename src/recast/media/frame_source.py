"""The types of reading: a `FrameSource` yields `Frame`s, and a `ColorConversion` makes them RGB.

This module owns the types that decoders return, and decodes nothing itself: `ffmpeg.py` and
`pillow.py` decode, and `frame_selection.py` chooses among the frames.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from recast.errors import BadClip

Pixels = NDArray[np.uint8]

MAX_PIXELS = 8192 * 8192
"""Limit for one frame, checked against the header before decoding: 8K (33 million) passes."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame of a source. It is on screen from `time` to `end`, in seconds after the first."""

    index: int
    time: Fraction
    end: Fraction
    to_rgb: Callable[[], Pixels]
    """Returns (H, W, 3) uint8 RGB. Raises `BadClip`."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameSource:
    """An opened source. `notes` grow while `frames` are consumed; close `frames` when done."""

    name: str
    rate: Fraction
    """The source's own average rate in frames per second."""
    slack: Fraction
    """Seconds by which time stamps may be wrong, because the container rounds them."""
    frames: Generator[Frame]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class ColorConversion:
    """How the pixels of one source become RGB, and notes about what was done to them."""

    name: str
    background: tuple[int, int, int]
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a note once, however many frames it applies to."""
        if text not in self.notes:
            self.notes.append(text)

    def check_size(self, width: int, height: int) -> None:
        """Raise `BadClip` for a frame without pixels and for one above `MAX_PIXELS`."""
        if width < 1 or height < 1:
            raise BadClip(f"{self.name} has frames of {width}x{height} pixels, which are empty")
        if width * height > MAX_PIXELS:
            raise BadClip(
                f"{self.name} has frames of {width}x{height} pixels, more than the limit of "
                f"{MAX_PIXELS // 10**6} million pixels; make the clip smaller first"
            )

    def composite(self, rgba: Pixels) -> Pixels:
        """(H, W, 4) with straight alpha to (H, W, 3) over the background, rounded to nearest."""
        alpha = rgba[..., 3:].astype(np.uint16)
        if alpha.min() == 255:
            return np.ascontiguousarray(rgba[..., :3])
        self.note(f"transparent pixels were composited over RGB {self.background}")
        under = np.array(self.background, np.uint16)
        mixed = rgba[..., :3] * alpha + under * (255 - alpha)
        return ((mixed + 127) // 255).astype(np.uint8)
