"""Source files for tests, written with PyAV and Pillow and without the code under test."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def numbered(count: int, height: int = 32, width: int = 48) -> Pixels:
    """Flat grey frames. The level of frame i is 20 + 3 i, modulo 72 frames."""
    levels = 20 + 3 * (np.arange(count) % 72)
    return np.broadcast_to(
        levels[:, None, None, None].astype(np.uint8), (count, height, width, 3)
    ).copy()


def numbers(frames: Pixels) -> list[int]:
    """The numbers of frames that `numbered` made."""
    return [round((float(frame.mean()) - 20) / 3) for frame in frames]


def moving(count: int, height: int, width: int) -> Pixels:
    """Smooth coloured waves that travel."""
    y, x = np.mgrid[:height, :width]
    phases = [0.0, 2.0, 4.0]
    waves = [
        [127.5 + 110 * np.sin(x / 9 + y / 13 + 0.4 * i + phase) for phase in phases]
        for i in range(count)
    ]
    return np.moveaxis(np.array(waves), 1, -1).round().astype(np.uint8)


def corners(height: int = 32, width: int = 48) -> Pixels:
    """An image with red, green, blue and white quarters, in which every rotation is visible."""
    picture = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    picture[:h, :w], picture[:h, w:] = (255, 0, 0), (0, 255, 0)
    picture[h:, :w], picture[h:, w:] = (0, 0, 255), (255, 255, 255)
    return picture


def encode(
    path: Path,
    frames: Pixels,
    *,
    rate: Fraction | int = 8,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    stamps: Sequence[int] | None = None,
    tick: Fraction | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    rotation: int = 0,
    hflip: bool = False,
    pixel: Fraction | None = None,
) -> Path:
    """Write a video file. `stamps` are times in units of `tick`, by default one per 1 / rate."""
    tick = tick or 1 / Fraction(rate)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, Fraction(rate), {"threads": "1", **(options or {})})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.time_base = stream.time_base = tick
        if rotation or hflip:
            stream.set_display_rotation(rotation, hflip=hflip)
        if pixel:
            stream.codec_context.sample_aspect_ratio = pixel
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format=pix_fmt)
            picture.pts, picture.time_base = (stamps[index] if stamps else index), tick
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def images(folder: Path, frames: Iterable[Pixels], name: str = "{}.png") -> Path:
    """Write a folder of images, named with their numbers."""
    folder.mkdir(exist_ok=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / name.format(index))
    return folder


def psnr(one: Pixels, other: Pixels) -> float:
    """The peak signal-to-noise ratio over the whole clip, in dB."""
    error = ((one.astype(float) - other.astype(float)) ** 2).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
