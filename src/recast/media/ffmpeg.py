"""Videos through FFmpeg (PyAV): decoded frames with exact times, as a player would show them.

This module owns seeking, decoding, rotation, pixel aspect ratio and the detection of files that
are truncated or damaged. It refuses to know which frames are needed: `frame_selection.py` decides
that. Importing it loads FFmpeg and Pillow.
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
from PIL import Image

from recast.errors import BadClip
from recast.media.frame_source import ColorConversion, Frame, FrameSource, Pixels

_SEEK_BEYOND = 2
"""Up to this many seconds, decoding from the beginning is as fast as a seek."""

_TEXT_FORMATS = {"tty", "bin", "xbin", "adf", "idf"}
"""FFmpeg renders text files as videos of a terminal, which is never what a user wants."""

# Without accurate rounding and full chroma, reading darkens by one level and loses 15 dB.
_SCALING = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)


def open_video(
    path: Path, start: Fraction, fps: Fraction | None, conversion: ColorConversion
) -> FrameSource:
    """Open a video for reading; the first frame that it yields is at or before `start` seconds.

    `fps` is the rate to assume for a video that states none. Raises `BadClip` for a file that
    FFmpeg cannot read, that holds no video, or that is truncated or damaged.
    """
    with _opened(path) as (_, stream):
        conversion.check_size(stream.codec_context.width, stream.codec_context.height)
        _check_not_truncated(path, stream)
        rate = _own_rate(stream) or fps
        if rate is None:
            raise BadClip(f"{path} does not state its frame rate; set `fps`")
        # Matroska rounds to 1 ms: 29.97 fps needs the tick as slack, or frames repeat. A tick
        # that is as long as a frame is exact and needs none.
        tick = Fraction(stream.time_base or 0)
        slack = tick if 4 * tick * rate <= 1 else Fraction(0)
    frames = _frames(path, start, rate, conversion)
    return FrameSource(str(path), rate, slack, frames, conversion.notes)


def video_facts(path: Path) -> tuple[int, int, float]:
    """Width and height in pixels and the length in seconds of a video, without decoding it.

    Raises `BadClip` as `open_video` does.
    """
    with _opened(path) as (container, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
        declared = _declared_end(container, stream)
        if declared:
            return width, height, float(declared)
        tick = Fraction(stream.time_base or 0)
        try:
            stamps = [(p.pts or 0) + (p.duration or 0) for p in container.demux(stream)]
        except av.FFmpegError as error:
            raise BadClip(f"{path} is damaged; copy it again") from error
        return width, height, float(max(stamps, default=0) * tick)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        # The absolute path, because FFmpeg reads "name:" at the front as a network protocol.
        container = av.open(str(path.absolute()), metadata_errors="ignore")
    except av.FFmpegError as error:
        if _is_mp4(path):
            raise BadClip(
                f"{path} is cut short or damaged: its index is missing, so 0 frames are readable; "
                "copy it again"
            ) from error
        raise BadClip(f"{path} is not a video that FFmpeg can read; check the file") from error
    with container:
        # The cover picture of a song is also a video stream.
        streams = [
            stream
            for stream in container.streams.video
            if not stream.disposition & Disposition.attached_pic
        ]
        if not streams or container.format.name in _TEXT_FORMATS:
            raise BadClip(f"{path} holds no video; give a video or a folder of images")
        # An animated AVIF holds a still image beside its sequence.
        stream = next((stream for stream in streams if stream.frames != 1), streams[0])
        if stream.codec_context is None:
            raise BadClip(f"{path} uses a codec that this FFmpeg cannot decode; convert it")
        yield container, stream


def _is_mp4(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8)[4:8] == b"ftyp"


def _own_rate(stream: VideoStream) -> Fraction | None:
    """The average rate, or the nominal rate if it is within 1 % of the average.

    The average is frames over duration, so an unusual last duration changes it slightly, and with
    the changed rate some frames would repeat.
    """
    average, nominal = stream.average_rate or stream.guessed_rate, stream.base_rate
    if average and nominal and abs(nominal / average - 1) < Fraction(1, 100):
        average = nominal
    return average if average and Fraction(1, 100) <= average <= 1000 else None


def _check_not_truncated(path: Path, stream: VideoStream) -> None:
    """Compare the index, if it is at the front of the container, with the length of the file."""
    size = path.stat().st_size
    complete = [entry.pos + entry.size <= size for entry in stream.index_entries]
    if not all(complete):
        raise BadClip(
            f"{path} is cut short: {complete.index(False)} of {len(complete)} frames are "
            "readable; copy it again"
        )


def _frames(
    path: Path, start: Fraction, rate: Fraction, conversion: ColorConversion
) -> Generator[Frame]:
    with _opened(path) as (container, stream):
        declared = _declared_end(container, stream)
        pixel_aspect = Fraction(stream.sample_aspect_ratio or 1)
        tick, end = Fraction(stream.time_base or 0), Fraction(0)
        timed = _timed_frames(container, stream, start, conversion)
        for index, (time, frame) in enumerate(timed):
            time = end if time is None else time
            end = time + ((frame.duration or 0) * tick or 1 / rate)
            yield Frame(index, time, end, partial(_to_rgb, frame, pixel_aspect, conversion))
        if declared and end < declared - max(2 / rate, Fraction(1, 10)):
            raise BadClip(
                f"{path} is cut short: it should last {float(declared):.2f} s, but only "
                f"{round(end * rate)} frames, {float(end):.2f} s, are readable; copy it again"
            )


def _declared_end(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """The length in seconds that the header states for this stream, None if it states none."""
    if container.format.name == "avi" and stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    duration = re.match(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", ""))
    if not duration:
        return None
    hours, minutes, seconds = map(Fraction, duration.groups())
    return (
        3600 * hours
        + 60 * minutes
        + seconds
        - Fraction(stream.start_time or 0) * (stream.time_base or 0)
    )


def _timed_frames(
    container: InputContainer, stream: VideoStream, start: Fraction, conversion: ColorConversion
) -> Iterator[tuple[Fraction | None, VideoFrame]]:
    """Frames with their time in seconds after the first, beginning at or before `start`."""
    stream.thread_type = "AUTO"
    frames = _decoded(container, stream, conversion)
    first = next(frames, None)
    if first is None:
        raise BadClip(f"{conversion.name} is damaged: 0 frames are readable; copy it again")
    tick, origin = Fraction(stream.time_base or 0), first.pts

    def timed(frame: VideoFrame) -> tuple[Fraction | None, VideoFrame]:
        if frame.pts is None or origin is None:
            return None, frame
        return (frame.pts - origin) * tick, frame

    ahead: list[VideoFrame] = [first]
    if start > _SEEK_BEYOND and origin is not None and tick:
        container.seek(origin + int(start / tick), stream=stream)
        frames = _decoded(container, stream, conversion)
        ahead = list(itertools.islice(frames, 1))
        reached = timed(ahead[0])[0] if ahead else None
        if reached is None or reached > start:  # a bad index: decode from the beginning
            container.seek(origin, stream=stream)
            frames, ahead = _decoded(container, stream, conversion), []
    yield from map(timed, itertools.chain(ahead, frames))


def _decoded(
    container: InputContainer, stream: VideoStream, conversion: ColorConversion
) -> Iterator[VideoFrame]:
    """All frames from the current position on. Damage before the first frame is skipped, because a
    recording may begin in the middle of a stream."""
    good = 0
    for packet in _packets(container, stream, conversion):
        try:
            if packet.is_corrupt and good:
                raise BadClip(_damaged(conversion.name, good))
            frames = packet.decode()
        except av.FFmpegError as error:
            if good:
                raise BadClip(_damaged(conversion.name, good)) from error
            continue
        for frame in frames:
            good += 1
            yield frame


def _packets(
    container: InputContainer, stream: VideoStream, conversion: ColorConversion
) -> Iterator["Packet[VideoStream]"]:  # Packet is generic in the stubs only
    packets, count = container.demux(stream), 0
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            raise BadClip(_damaged(conversion.name, count)) from error
        if packet is None:
            return
        count += 1
        yield packet


def _damaged(name: str, good: int) -> str:
    return (
        f"{name} is cut short or damaged: only {good} frames in a row are readable; copy it again"
    )


def _to_rgb(frame: VideoFrame, pixel_aspect: Fraction, conversion: ColorConversion) -> Pixels:
    """(H, W, 3) RGB as a player shows it: with alpha, pixel aspect ratio and rotation applied."""
    conversion.check_size(frame.width, frame.height)
    if frame.is_corrupt:
        raise BadClip(f"{conversion.name} is damaged at {frame.time or 0:.2f} s; copy it again")
    if frame.color_trc in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67):
        conversion.note("HDR source read without tone mapping")
    if frame.interlaced_frame:
        conversion.note("interlaced source read without deinterlacing")
    alpha = any(component.is_alpha for component in frame.format.components)
    image = frame.to_ndarray(
        format="rgba" if alpha else "rgb24",
        interpolation=_SCALING,
        dst_color_range=ColorRange.JPEG,
        threads=1,
    )
    assert image.dtype == np.uint8
    pixels = cast(Pixels, image)
    rgb = conversion.composite(pixels) if alpha else pixels
    return _upright(_with_square_pixels(rgb, pixel_aspect, conversion), frame, conversion)


def _with_square_pixels(
    image: Pixels, pixel_aspect: Fraction, conversion: ColorConversion
) -> Pixels:
    """Resize an image whose pixels are `pixel_aspect` times as wide as high."""
    height, old_width, _ = image.shape
    width = max(1, round(old_width * pixel_aspect))
    if width == old_width:
        return image
    conversion.check_size(width, height)
    conversion.note(
        f"resized {old_width}x{height} to {width}x{height}, because the pixels are {pixel_aspect} "
        "times as wide as high"
    )
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(resized)


def _upright(image: Pixels, frame: VideoFrame, conversion: ColorConversion) -> Pixels:
    """Apply the display matrix: x' = a x + c y, y' = b x + d y, in 16.16 fixed point."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return image
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if a and d and not b and not c:
        flip_x, flip_y = a < 0, d < 0
    elif b and c and not a and not d:
        image, flip_x, flip_y = image.swapaxes(0, 1), c < 0, b < 0
    else:
        conversion.note(f"rotation by {frame.rotation} degrees in the metadata was not applied")
        return image
    if b or flip_x or flip_y:
        mirrored = (a or b) * (d or -c) < 0
        rotated = f"rotated by {frame.rotation % 360} degrees counterclockwise"
        conversion.note(f"{rotated}{' and mirrored' if mirrored else ''}, as its metadata says")
    image = image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
    return np.ascontiguousarray(image)
