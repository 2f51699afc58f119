"""What FFmpeg is asked to do, by PyAV: videos in as shots with exact times, mp4 out.

Also opens a source of any kind, and hands animations and folders on to `_images.py`; these two are
the only files that know codecs. Which shots are taken is decided in `video.py`. Importing this
loads FFmpeg and Pillow.
"""

import itertools
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, ColorTrc, Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from recast.errors import BadClip
from recast.media import pillow
from recast.media.frame_source import Look, Pixels, Shot, Source

_SEEK_BEYOND = 2
"""Seconds up to which decoding from the beginning is as quick as a seek."""

_TEXT_FORMATS = {"tty", "bin", "xbin", "adf", "idf"}
"""FFmpeg draws text files as videos of a terminal; nobody means that here."""

# Accurate rounding and full chroma: without them, reading darkens by one level and loses 15 dB.
_SCALING = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)


def open_source(
    path: Path, start: Fraction, fps: Fraction | None, background: tuple[int, int, int]
) -> Source:
    """Open a video, an animation or a folder of images. Shots begin at or before `start` seconds.

    `fps` is the rate of a folder (None: 8), and stands in for the rate of a video that states
    none. Raises `BadClip` with one line that says what is wrong.
    """
    look = Look(str(path), background)
    try:
        if path.is_dir():
            return pillow.folder(path, fps, look)
        if not path.exists():
            raise BadClip(f"{path} does not exist; check the name")
        if not path.is_file() or path.stat().st_size == 0:
            raise BadClip(f"{path} is empty or no regular file; a clip is a video or a folder")
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise BadClip(f"{path} cannot be opened: {(error.strerror or '').lower()}") from error
    if head.startswith((b"GIF8", b"\x89PNG")) or (head[:4], head[8:12]) == (b"RIFF", b"WEBP"):
        return pillow.animation(path, look)
    return _video(path, head, start, fps, look)


# --- videos, by FFmpeg ----------------------------------------------------------------------------


def _video(path: Path, head: bytes, start: Fraction, fps: Fraction | None, look: Look) -> Source:
    with _opened(path, head) as (_, stream):
        look.check_size(stream.codec_context.width, stream.codec_context.height)
        _check_whole(path, stream)
        rate = _own_rate(stream) or fps
        if rate is None:
            raise BadClip(f"{path} does not say how fast it runs; set --fps")
        # Matroska rounds to 1 ms: 29.97 fps needs the tick as slack, or frames repeat. A tick
        # that is as long as a frame is exact and needs none.
        tick = Fraction(stream.time_base or 0)
        slack = tick if 4 * tick * rate <= 1 else Fraction(0)
    return Source(str(path), rate, slack, _shots(path, head, start, rate, look), look.notes)


@contextmanager
def _opened(path: Path, head: bytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        # The absolute path, since FFmpeg takes "name:" at the front for a network protocol.
        container = av.open(str(path.absolute()), metadata_errors="ignore")
    except av.FFmpegError as error:
        if head[4:8] == b"ftyp":
            raise BadClip(
                f"{path} is cut short or damaged: its index is missing, so 0 frames are readable; "
                "copy it again"
            ) from error
        raise BadClip(f"{path} is not a video that FFmpeg can read; check the file") from error
    with container:
        # The cover picture of a song is a video stream, too.
        streams = [
            stream
            for stream in container.streams.video
            if not stream.disposition & Disposition.attached_pic
        ]
        if not streams or container.format.name in _TEXT_FORMATS:
            raise BadClip(f"{path} holds no video; a clip is a video or a folder of images")
        # An animated AVIF holds a still beside its sequence.
        stream = next((stream for stream in streams if stream.frames != 1), streams[0])
        if stream.codec_context is None:
            raise BadClip(f"{path} is coded in a way that this FFmpeg cannot decode; convert it")
        yield container, stream


def _own_rate(stream: VideoStream) -> Fraction | None:
    """The average rate; where a nominal rate is within 1 %, that one.

    The average is frames over duration, so an odd last duration bends it, and frames would repeat.
    """
    average, nominal = stream.average_rate or stream.guessed_rate, stream.base_rate
    if average and nominal and abs(nominal / average - 1) < Fraction(1, 100):
        average = nominal
    return average if average and Fraction(1, 100) <= average <= 1000 else None


def _check_whole(path: Path, stream: VideoStream) -> None:
    """Compare the index, where the container has one in front, with the length of the file."""
    size = path.stat().st_size
    whole = [entry.pos + entry.size <= size for entry in stream.index_entries]
    if not all(whole):
        raise BadClip(
            f"{path} is cut short: {whole.index(False)} of {len(whole)} frames are readable; "
            "copy it again"
        )


def _shots(path: Path, head: bytes, start: Fraction, rate: Fraction, look: Look) -> Generator[Shot]:
    with _opened(path, head) as (container, stream):
        declared = _declared_end(container, stream)
        pixel = Fraction(stream.sample_aspect_ratio or 1)
        tick, end = Fraction(stream.time_base or 0), Fraction(0)
        for index, (time, frame) in enumerate(_frames_from(container, stream, start, look)):
            time = end if time is None else time
            end = time + ((frame.duration or 0) * tick or 1 / rate)
            yield Shot(index, time, end, partial(_picture, frame, pixel, look))
        if declared and end < declared - max(2 / rate, Fraction(1, 10)):
            raise BadClip(
                f"{path} is cut short: it should last {float(declared):.2f} s, but only "
                f"{round(end * rate)} frames, {float(end):.2f} s, are readable; copy it again"
            )


def _declared_end(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """The length in seconds that the header states for this stream alone, where it does."""
    if container.format.name == "avi" and stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    stated = re.match(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", ""))
    if not stated:
        return None
    hours, minutes, seconds = map(Fraction, stated.groups())
    return (
        3600 * hours
        + 60 * minutes
        + seconds
        - Fraction(stream.start_time or 0) * (stream.time_base or 0)
    )


def _frames_from(
    container: InputContainer, stream: VideoStream, start: Fraction, look: Look
) -> Iterator[tuple[Fraction | None, VideoFrame]]:
    """Frames with their seconds after the first, beginning at or before `start`."""
    stream.thread_type = "AUTO"
    frames = _decoded(container, stream, look)
    first = next(frames, None)
    if first is None:
        raise BadClip(f"{look.name} is damaged: 0 frames are readable; copy it again")
    tick, origin = Fraction(stream.time_base or 0), first.pts

    def timed(frame: VideoFrame) -> tuple[Fraction | None, VideoFrame]:
        if frame.pts is None or origin is None:
            return None, frame
        return (frame.pts - origin) * tick, frame

    ahead: list[VideoFrame] = [first]
    if start > _SEEK_BEYOND and origin is not None and tick:
        container.seek(origin + int(start / tick), stream=stream)
        frames = _decoded(container, stream, look)
        ahead = list(itertools.islice(frames, 1))
        reached = timed(ahead[0])[0] if ahead else None
        if reached is None or reached > start:  # a bad index: go the long way
            container.seek(origin, stream=stream)
            frames, ahead = _decoded(container, stream, look), []
    yield from map(timed, itertools.chain(ahead, frames))


def _decoded(container: InputContainer, stream: VideoStream, look: Look) -> Iterator[VideoFrame]:
    """All frames from here on. Damage before the first frame is a recording that began midway."""
    good = 0
    for packet in _packets(container, stream, look):
        try:
            if packet.is_corrupt and good:
                raise BadClip(_damaged(look.name, good))
            frames = packet.decode()
        except av.FFmpegError as error:
            if good:
                raise BadClip(_damaged(look.name, good)) from error
            continue
        for frame in frames:
            good += 1
            yield frame


def _packets(
    container: InputContainer, stream: VideoStream, look: Look
) -> Iterator["Packet[VideoStream]"]:  # a generic only in the stubs
    packets, seen = container.demux(stream), 0
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            raise BadClip(_damaged(look.name, seen)) from error
        if packet is None:
            return
        seen += 1
        yield packet


def _damaged(name: str, good: int) -> str:
    return (
        f"{name} is cut short or damaged: only {good} frames in a row are readable; copy it again"
    )


def _picture(frame: VideoFrame, pixel: Fraction, look: Look) -> Pixels:
    """(H, W, 3) RGB as a player shows it: alpha, pixel shape and rotation are applied."""
    look.check_size(frame.width, frame.height)
    if frame.is_corrupt:
        raise BadClip(f"{look.name} is damaged at {frame.time or 0:.2f} s; copy it again")
    if frame.color_trc in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67):
        look.note("HDR source taken without tone mapping")
    if frame.interlaced_frame:
        look.note("interlaced source taken without deinterlacing")
    alpha = any(component.is_alpha for component in frame.format.components)
    image = frame.to_ndarray(
        format="rgba" if alpha else "rgb24",
        interpolation=_SCALING,
        dst_color_range=ColorRange.JPEG,
        threads=1,
    )
    assert image.dtype == np.uint8
    pixels = cast(Pixels, image)
    picture = look.flatten(pixels) if alpha else pixels
    return _upright(_square(picture, pixel, look), frame, look)


def _square(picture: Pixels, pixel: Fraction, look: Look) -> Pixels:
    """Widen or narrow a picture whose pixels are `pixel` times as wide as high."""
    height, width, _ = picture.shape
    wide = max(1, round(width * pixel))
    if wide == width:
        return picture
    look.check_size(wide, height)
    look.note(f"pixels are {pixel} as wide as high, so {width}x{height} became {wide}x{height}")
    image = Image.fromarray(picture).resize((wide, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _upright(picture: Pixels, frame: VideoFrame, look: Look) -> Pixels:
    """Apply the display matrix: x' = a x + c y, y' = b x + d y, in 16.16 fixed point."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return picture
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if a and d and not b and not c:
        flip_x, flip_y = a < 0, d < 0
    elif b and c and not a and not d:
        picture, flip_x, flip_y = picture.swapaxes(0, 1), c < 0, b < 0
    else:
        look.note(f"rotation by {frame.rotation} degrees in the metadata not applied")
        return picture
    if b or flip_x or flip_y:
        mirrored = (a or b) * (d or -c) < 0
        turned = f"rotated by {frame.rotation % 360} degrees counterclockwise"
        look.note(f"{turned}{' and mirrored' if mirrored else ''}, as its metadata says")
    picture = picture[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
    return np.ascontiguousarray(picture)


# --- mp4 ------------------------------------------------------------------------------------------


def write_mp4(frames: Pixels, rate: Fraction, path: Path) -> None:
    """(F, H, W, 3) as H.264 yuv420p, BT.709, index in front. The same frames, the same bytes.

    For the bytes: one thread, no creation time, and no macroblock tree: with its AVX-512 code in
    x264 core 165, what happens to lie in memory changes the file (not with asm=avx2, say). crf 16
    is close to what the eye cannot tell.
    """
    odd_h, odd_w = frames.shape[1] % 2, frames.shape[2] % 2
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        options = {"crf": "16", "threads": "1", "mbtree": "0"}
        stream = container.add_stream("libx264", rate, options)
        stream.height, stream.width = frames.shape[1] + odd_h, frames.shape[2] + odd_w
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1  # BT.709
        context.color_range = ColorRange.MPEG
        for index, frame in enumerate(frames):
            even = np.pad(frame, ((0, odd_h), (0, odd_w), (0, 0)), mode="edge")
            picture = _to_yuv(even)
            picture.pts, picture.time_base = index, 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _to_yuv(picture: Pixels) -> VideoFrame:
    """(H, W, 3) RGB, even sizes, to yuv420p in the limited range of BT.709.

    Ours and not swscale's: H.264 means chroma that sits on the left column of each pair, and what
    PyAV asks of swscale sits between the two. Read back, that costs 14 dB. Whole numbers, 16.16,
    so that the bytes do not depend on the machine.
    """
    red, green, blue = (picture[..., channel].astype(np.int32) for channel in range(3))
    y, cb, cr = (a * red + b * green + c * blue for a, b, c in _BT709)
    luma = (y + (16 << 16) + (1 << 15)) >> 16
    chroma = [(_halved(part) + (128 << 19) + (1 << 18)) >> 19 for part in (cb, cr)]
    planes = [luma.ravel(), *(part.ravel() for part in chroma)]
    stacked = np.concatenate(planes).astype(np.uint8).reshape(-1, picture.shape[1])
    return VideoFrame.from_ndarray(stacked, "yuv420p")


def _halved(plane: NDArray[np.int32]) -> NDArray[np.int32]:
    """(H, W) to 8 times its (H / 2, W / 2): weights 1 2 1 on the even columns, rows in pairs."""
    wide = np.pad(plane, ((0, 0), (1, 0)), mode="edge")
    thin = wide[:, 0:-2:2] + 2 * wide[:, 1:-1:2] + wide[:, 2::2]
    return thin[0::2] + thin[1::2]


def _bt709() -> list[list[int]]:
    """RGB in 0..255 to Y, Cb, Cr in limited range without offsets, times 2^16 (BT.709, 3.2-3.5)."""
    kr, kg, kb = 0.2126, 0.7152, 0.0722
    luma = [219 * k for k in (kr, kg, kb)]
    cb = [112 * k / (1 - kb) for k in (-kr, -kg, 1 - kb)]
    cr = [112 * k / (1 - kr) for k in (1 - kr, -kg, -kb)]
    return [[round(k / 255 * 2**16) for k in row] for row in (luma, cb, cr)]


_BT709 = _bt709()
