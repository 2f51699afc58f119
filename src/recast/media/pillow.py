"""Images through Pillow: animations and folders of images are read, GIF and PNG are written.

This module owns the decoding and encoding of these formats, and refuses to know which frames are
needed. Images are encoded in memory and then written by Python, because Pillow's own writing loses
the error number of the system, and a full disk could not be recognised.
"""

import io
import itertools
import re
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from recast.errors import BadCall, BadClip
from recast.media.frame_source import (
    MAX_PIXELS,
    ColorConversion,
    Frame,
    FrameSource,
    Pixels,
)

FOLDER_RATE = Fraction(8)
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}

_ORIENTATION = 0x0112
"""The EXIF tag of a photo's orientation; values of 5 and above swap width and height."""

_MAX_GIF_RATE = 50
"""GIF counts in units of 10 ms, and players slow down frames shorter than two units."""

_GIF_SLACK = Fraction(1, 200)
"""Largest error of that rounding in seconds; at 8 fps the durations are 120, 130, 120 … ms."""


def open_animation(path: Path, conversion: ColorConversion) -> FrameSource:
    """Open a GIF, an animated WebP or an animated PNG. Raises `BadClip` if it is damaged.

    The file is decoded once to read the durations of its frames.
    """
    durations = _durations(path, conversion)
    rate = (len(durations) / sum(durations, Fraction(0))).limit_denominator(1001)
    slack = _GIF_SLACK if rate <= _MAX_GIF_RATE else Fraction(0)
    frames = _animation_frames(path, durations, conversion)
    return FrameSource(str(path), rate, slack, frames, conversion.notes)


def image_facts(path: Path) -> tuple[int, int, int]:
    """Width, height and number of frames of an image or an animation, without decoding it. Raises
    `BadClip`."""
    with _image(path, ColorConversion(str(path), (0, 0, 0))) as image:
        return *image.size, _count(image)


def _durations(path: Path, conversion: ColorConversion) -> list[Fraction]:
    """The duration of each frame in seconds."""
    durations: list[Fraction] = []
    try:
        with _image(path, conversion) as image:
            for index in range(_count(image)):
                image.seek(index)
                image.load()
                duration = Fraction(round(1000 * image.info.get("duration", 0)), 10**6)
                if duration <= Fraction(1, 100):
                    conversion.note("frames without a duration last 100 ms, as in browsers")
                    duration = Fraction(1, 10)
                durations.append(duration)
    except BadClip as error:
        if error.__cause__ is None:
            raise
        raise BadClip(
            f"{path} is cut short or damaged: {len(durations)} frames are readable; copy it again"
        ) from error
    return durations


def _count(image: Image.Image) -> int:
    return int(getattr(image, "n_frames", 1))


def _animation_frames(
    path: Path, durations: list[Fraction], conversion: ColorConversion
) -> Generator[Frame]:
    time = Fraction(0)
    with _image(path, conversion) as image:
        for index, duration in enumerate(durations):
            image.seek(index)
            pixels = _rgb(image, conversion)  # now, because the next seek overwrites the image
            yield Frame(index, time, time + duration, partial(_unchanged, pixels))
            time += duration


def _unchanged(pixels: Pixels) -> Pixels:
    return pixels


def open_folder(path: Path, fps: Fraction | None, conversion: ColorConversion) -> FrameSource:
    """Open the PNG, JPEG and WebP images of a folder in natural order: frame2 before frame10.

    `fps=None` means 8. Raises `BadClip` if there are no images or if their sizes differ.
    """
    files = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    files = sorted((file for file in files if file.name[0] != "."), key=_natural)
    if not files:
        raise BadClip(f"{path} holds no images; give a folder of PNG, JPEG or WebP images")
    sizes = [_header_size(file, conversion) for file in files]
    for file, size in zip(files, sizes, strict=True):
        if size != sizes[0]:
            raise BadClip(
                f"{path} mixes sizes: {files[0].name} is {sizes[0][0]}x{sizes[0][1]} and "
                f"{file.name} is {size[0]}x{size[1]}; all images of a clip must have one size"
            )
    rate = fps or FOLDER_RATE
    if fps is None:
        conversion.note(f"a folder of images states no frame rate, {FOLDER_RATE} fps is assumed")
    frames = _folder_frames(files, rate, conversion)
    return FrameSource(str(path), rate, Fraction(0), frames, conversion.notes)


def _natural(file: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort key: runs of digits compare as numbers; the name itself orders "1" and "01"."""
    parts = re.findall(r"[0-9]+|[^0-9]+", file.name.lower())
    return [(int(part), "") if part[0] in "0123456789" else (-1, part) for part in parts], file.name


def _header_size(file: Path, conversion: ColorConversion) -> tuple[int, int]:
    """Width and height after rotation, read from the header alone."""
    with _image(file, conversion) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(_ORIENTATION, 1) >= 5 else (width, height)


def _folder_frames(
    files: list[Path], rate: Fraction, conversion: ColorConversion
) -> Generator[Frame]:
    for index, file in enumerate(files):
        to_rgb = partial(_read_image, file, conversion)
        yield Frame(index, index / rate, (index + 1) / rate, to_rgb)


def _read_image(file: Path, conversion: ColorConversion) -> Pixels:
    with _image(file, conversion) as image:
        if image.getexif().get(_ORIENTATION, 1) > 1:
            conversion.note("photos were rotated as their EXIF data says")
        return _rgb(ImageOps.exif_transpose(image), conversion)


def _rgb(image: Image.Image, conversion: ColorConversion) -> Pixels:
    """Any mode to (H, W, 3) uint8."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it at 255
        grey = (np.asarray(image).clip(0, 65535).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        return conversion.composite(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


@contextmanager
def _image(path: Path, conversion: ColorConversion) -> Iterator[Image.Image]:
    """An opened image of checked size. Any error that Pillow raises becomes `BadClip`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower
            image = Image.open(path)
        with image:
            conversion.check_size(*image.size)
            yield image
    except (BadClip, GeneratorExit, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise BadClip(
            f"{path} has more pixels than the limit of {MAX_PIXELS // 10**6} million; "
            "make it smaller first"
        ) from None
    except Exception as error:  # Pillow leaks IndexError, SyntaxError, struct.error and more
        raise BadClip(f"{path} is cut short, damaged or not an image; copy it again") from error


# --- writing --------------------------------------------------------------------------------------


def write_gif(frames: Pixels, rate: Fraction, path: Path) -> None:
    """Write frames (F, H, W, 3) as a looping GIF with one palette of 256 colours.

    Raises `BadCall` for a rate above 50 fps.
    """
    if rate > _MAX_GIF_RATE:
        raise BadCall(
            f"a GIF must run at {_MAX_GIF_RATE} fps or less, got {float(rate):g}; use .mp4"
        )
    palette = _palette(frames)
    images = [Image.fromarray(frame).quantize(palette=palette) for frame in frames]
    # Times are rounded, not durations: 8 fps becomes 12, 13, 12 … hundredths and does not drift.
    times = [round(100 * index / rate) for index in range(len(frames) + 1)]
    durations = [10 * (end - begin) for begin, end in itertools.pairwise(times)]
    buffer = io.BytesIO()
    images[0].save(
        buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0
    )
    path.write_bytes(buffer.getvalue())


def _palette(frames: Pixels) -> Image.Image:
    """The 256 colours that fit 16 frames, evenly spread over the clip, best."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), 16)).round().astype(int)]
    step = max(1, max(frames.shape[1:3]) // 256)
    subsampled = chosen[:, ::step, ::step]
    strip = subsampled.reshape(-1, subsampled.shape[2], 3)
    return Image.fromarray(strip).quantize(256)


def write_pngs(frames: Pixels, folder: Path) -> None:
    """Write frames (F, H, W, 3) as 00000.png, 00001.png and so on."""
    for index, frame in enumerate(frames):
        write_png(frame, folder / f"{index:05d}.png")


def write_png(image: Pixels, path: Path) -> None:
    """Write an image (H, W, 3) or (H, W) uint8 as a PNG file."""
    path.write_bytes(png(image))


def png(image: Pixels) -> bytes:
    """The bytes of a PNG file for an image (H, W, 3) or (H, W) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()
