"""What the header of a clip says about it: size, frames and length, before anything is decoded.

This module owns the checks that come before a clip of unknown origin is read. `ffmpeg.py` and
`pillow.py` read the headers. It refuses to know which size or length is too large.
"""

import io
from dataclasses import dataclass
from pathlib import Path

from recast.errors import BadClip

_ANIMATION_SECONDS = 0.1
"""Length of a frame of an animation, whose own length stands behind its pixels."""


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """Size and length of a clip, as its header states them."""

    width: int
    height: int
    seconds: float
    """For an animation and for images an estimate, with 0.1 s for each frame."""

    @property
    def pixels(self) -> int:
        """The number of pixels of one frame."""
        return self.width * self.height


def read_facts(path: Path) -> ClipFacts:
    """The facts of a video, an animation, an image or a folder of images. Raises `BadClip`."""
    from recast.media import ffmpeg, pillow  # here, because FFmpeg loads slowly

    if path.is_dir():
        sizes = [pillow.image_facts(file)[:2] for file in sorted(path.iterdir())]
        if not sizes:
            raise BadClip(f"{path} holds no images; give a folder of PNG, JPEG or WebP images")
        width, height = (max(side) for side in zip(*sizes, strict=True))
        return ClipFacts(width, height, len(sizes) * _ANIMATION_SECONDS)
    if container_of(path) in ("gif", "webp", "png"):
        width, height, frames = pillow.image_facts(path)
        return ClipFacts(width, height, frames * _ANIMATION_SECONDS)
    return ClipFacts(*ffmpeg.video_facts(path))


def container_of(path: Path) -> str | None:
    """The kind of a file by its first bytes: "mp4", "matroska", "avi", "gif", "webp", "png", "jpeg"
    or "zip"; None for any other file, such as a playlist that names other files."""
    with path.open("rb", buffering=io.DEFAULT_BUFFER_SIZE) as file:
        head = file.read(16)
    if head[4:8] == b"ftyp":
        return "mp4"
    if head.startswith(b"RIFF"):
        return {b"AVI ": "avi", b"WEBP": "webp"}.get(head[8:12])
    signatures = {
        b"\x1a\x45\xdf\xa3": "matroska",
        b"GIF8": "gif",
        b"\x89PNG": "png",
        b"\xff\xd8\xff": "jpeg",
        b"PK\x03\x04": "zip",
    }
    return next((kind for start, kind in signatures.items() if head.startswith(start)), None)
