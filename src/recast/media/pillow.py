"""What Pillow is asked to do: animations and folders of images in, GIF and PNG out.

Images are encoded in memory and written by Python, since Pillow's own writing loses the number of
the system's error, and a full disk would not be known as one.
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
from recast.media.frame_source import MAX_PIXELS, Look, Pixels, Shot, Source

FOLDER_RATE = Fraction(8)
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}

_ORIENTATION = 0x0112
"""The EXIF tag of a photo's rotation; values from 5 on swap width and height."""

_MAX_GIF_RATE = 50
"""GIF counts in 10 ms, and players slow down what is shorter than two of them."""

_GIF_SLACK = Fraction(1, 200)
"""Seconds by which that count is wrong at most; for 8 fps the durations are 120, 130, 120 … ms."""


def animation(path: Path, look: Look) -> Source:
    """A GIF, animated WebP or animated PNG. It is decoded once to learn all its durations."""
    lengths = _durations(path, look)
    rate = (len(lengths) / sum(lengths, Fraction(0))).limit_denominator(1001)
    slack = _GIF_SLACK if rate <= _MAX_GIF_RATE else Fraction(0)
    return Source(str(path), rate, slack, _animated(path, lengths, look), look.notes)


def _durations(path: Path, look: Look) -> list[Fraction]:
    """Seconds that each frame is shown."""
    lengths: list[Fraction] = []
    try:
        with _image(path, look) as image:
            for index in range(_count(image)):
                image.seek(index)
                image.load()
                shown = Fraction(round(1000 * image.info.get("duration", 0)), 10**6)
                if shown <= Fraction(1, 100):
                    look.note("frames without a duration last 100 ms, as in browsers")
                    shown = Fraction(1, 10)
                lengths.append(shown)
    except BadClip as error:
        if error.__cause__ is None:
            raise
        raise BadClip(
            f"{path} is cut short or damaged: {len(lengths)} frames are readable; copy it again"
        ) from error
    return lengths


def _count(image: Image.Image) -> int:
    return int(getattr(image, "n_frames", 1))


def _animated(path: Path, lengths: list[Fraction], look: Look) -> Generator[Shot]:
    time = Fraction(0)
    with _image(path, look) as image:
        for index, shown in enumerate(lengths):
            image.seek(index)
            picture = _rgb(image, look)  # now, since the next seek overwrites the image
            yield Shot(index, time, time + shown, partial(_same, picture))
            time += shown


def _same(picture: Pixels) -> Pixels:
    return picture


def folder(path: Path, fps: Fraction | None, look: Look) -> Source:
    """The PNG, JPEG and WebP images of a folder in natural order, frame2 before frame10."""
    files = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    files = sorted((file for file in files if file.name[0] != "."), key=_natural)
    if not files:
        raise BadClip(f"{path} holds no images; a folder of PNG, JPEG or WebP images is a clip")
    sizes = [_header_size(file, look) for file in files]
    for file, size in zip(files, sizes, strict=True):
        if size != sizes[0]:
            raise BadClip(
                f"{path} mixes sizes: {files[0].name} is {sizes[0][0]}x{sizes[0][1]} and "
                f"{file.name} is {size[0]}x{size[1]}; all images of a clip have one size"
            )
    rate = fps or FOLDER_RATE
    if fps is None:
        look.note(f"a folder of images states no rate, taken as {FOLDER_RATE} fps")
    return Source(str(path), rate, Fraction(0), _listed(files, rate, look), look.notes)


def _natural(file: Path) -> tuple[list[tuple[int, str]], str]:
    """Runs of digits compare as numbers; the name itself settles "1" against "01"."""
    parts = re.findall(r"[0-9]+|[^0-9]+", file.name.lower())
    return [(int(part), "") if part[0] in "0123456789" else (-1, part) for part in parts], file.name


def _header_size(file: Path, look: Look) -> tuple[int, int]:
    """Width and height as shown, from the header alone."""
    with _image(file, look) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(_ORIENTATION, 1) >= 5 else (width, height)


def _listed(files: list[Path], rate: Fraction, look: Look) -> Generator[Shot]:
    for index, file in enumerate(files):
        picture = partial(_loaded, file, look)
        yield Shot(index, index / rate, (index + 1) / rate, picture)


def _loaded(file: Path, look: Look) -> Pixels:
    with _image(file, look) as image:
        if image.getexif().get(_ORIENTATION, 1) > 1:
            look.note("photos turned upright as their EXIF data says")
        return _rgb(ImageOps.exif_transpose(image), look)


def _rgb(image: Image.Image, look: Look) -> Pixels:
    """Any mode to (H, W, 3) uint8."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it at 255
        grey = (np.asarray(image).clip(0, 65535).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        return look.flatten(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


@contextmanager
def _image(path: Path, look: Look) -> Iterator[Image.Image]:
    """An opened image whose size was checked; whatever Pillow raises on damage becomes BadClip."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our cap is lower
            image = Image.open(path)
        with image:
            look.check_size(*image.size)
            yield image
    except (BadClip, GeneratorExit, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise BadClip(
            f"{path} has more pixels than the {MAX_PIXELS // 10**6} million that Recast reads; "
            "make it smaller first"
        ) from None
    except Exception as error:  # Pillow leaks IndexError, SyntaxError, struct.error and more
        raise BadClip(f"{path} is cut short, damaged or no image; copy it again") from error


# --- out ------------------------------------------------------------------------------------------


def write_gif(frames: Pixels, rate: Fraction, path: Path) -> None:
    """(F, H, W, 3) as an endless GIF with one palette of 256 colours for all frames."""
    if rate > _MAX_GIF_RATE:
        raise BadCall(f"a GIF runs at {_MAX_GIF_RATE} fps or less, got {float(rate):g}; use .mp4")
    palette = _palette(frames)
    images = [Image.fromarray(frame).quantize(palette=palette) for frame in frames]
    # Times are rounded, not durations: 8 fps becomes 12, 13, 12 … hundredths and does not drift.
    marks = [round(100 * index / rate) for index in range(len(frames) + 1)]
    lengths = [10 * (end - begin) for begin, end in itertools.pairwise(marks)]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=lengths, loop=0)
    path.write_bytes(buffer.getvalue())


def _palette(frames: Pixels) -> Image.Image:
    """The 256 colours that suit up to 16 frames, spread over the clip, best."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), 16)).round().astype(int)]
    step = max(1, max(frames.shape[1:3]) // 256)
    thin = chosen[:, ::step, ::step]
    strip = thin.reshape(-1, thin.shape[2], 3)
    return Image.fromarray(strip).quantize(256)


def write_pngs(frames: Pixels, folder: Path) -> None:
    """(F, H, W, 3) as 00000.png, 00001.png and so on."""
    for index, frame in enumerate(frames):
        write_png(frame, folder / f"{index:05d}.png")


def write_png(image: Pixels, path: Path) -> None:
    """(H, W, 3) or (H, W) uint8 as one PNG."""
    path.write_bytes(png(image))


def png(image: Pixels) -> bytes:
    """(H, W, 3) or (H, W) uint8 as the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()
