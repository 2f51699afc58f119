"""The nouns of reading: a source is a stream of shots, seen through a look.

Owns nothing that decodes; `_codecs.py` (FFmpeg) and `_images.py` (Pillow) fill these in, and
`video.py` chooses among the shots.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from recast.errors import BadClip

Pixels = NDArray[np.uint8]

MAX_PIXELS = 8192 * 8192
"""Cap on one frame, read from the header before anything is decoded: 8K passes (33 million)."""


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """One frame of a source, on screen from `time` to `end` seconds after the first."""

    index: int
    time: Fraction
    end: Fraction
    picture: Callable[[], Pixels]
    """Gives (H, W, 3) uint8 RGB; raises `BadClip`."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """An opened source. `notes` grow while `shots` are taken; close `shots` when done."""

    name: str
    rate: Fraction
    """Own average rate in frames per second."""
    slack: Fraction
    """Seconds by which time stamps may be wrong, since the container rounds them."""
    shots: Generator[Shot]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Look:
    """How pixels of one source become RGB, and what was done to them."""

    name: str
    background: tuple[int, int, int]
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Say it once, however many frames it is done to."""
        if text not in self.notes:
            self.notes.append(text)

    def check_size(self, width: int, height: int) -> None:
        """Refuse empty and enormous frames."""
        if width < 1 or height < 1:
            raise BadClip(f"{self.name} has frames of {width}x{height} pixels; nothing to see")
        if width * height > MAX_PIXELS:
            raise BadClip(
                f"{self.name} has frames of {width}x{height} pixels, more than the "
                f"{MAX_PIXELS // 10**6} million that Recast reads; make it smaller first"
            )

    def flatten(self, rgba: Pixels) -> Pixels:
        """(H, W, 4) with straight alpha to (H, W, 3) on the background, rounded to nearest."""
        alpha = rgba[..., 3:].astype(np.uint16)
        if alpha.min() == 255:
            return np.ascontiguousarray(rgba[..., :3])
        self.note(f"transparent pixels laid on RGB {self.background}")
        under = np.array(self.background, np.uint16)
        mixed = rgba[..., :3] * alpha + under * (255 - alpha)
        return ((mixed + 127) // 255).astype(np.uint8)
