"""Clips as .mp4 files: H.264 through FFmpeg (PyAV), with the same bytes for the same frames.

This module owns the encoder's settings and the conversion from RGB to BT.709. Importing it loads
FFmpeg.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from recast.media.frame_source import Pixels


def write_mp4(frames: Pixels, rate: Fraction, path: Path) -> None:
    """Write frames (F, H, W, 3) as H.264 yuv420p in BT.709, with the index at the front.

    Equal frames give equal bytes. That needs one thread, no creation time and no macroblock tree:
    with the tree, the AVX-512 code of x264 core 165 reads uninitialised memory (asm=avx2 does
    not). crf 16 is close to visually lossless.
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
            yuv = _to_yuv(even)
            yuv.pts, yuv.time_base = index, 1 / rate
            container.mux(stream.encode(yuv))
        container.mux(stream.encode())


def _to_yuv(image: Pixels) -> VideoFrame:
    """(H, W, 3) RGB with even sizes to yuv420p in the limited range of BT.709.

    swscale is not used, because H.264 places chroma on the left column of each pair, and PyAV has
    swscale place it between the two columns, which costs 14 dB after reading. The arithmetic is
    16.16 fixed point, so that the bytes do not depend on the machine.
    """
    red, green, blue = (image[..., channel].astype(np.int32) for channel in range(3))
    y, cb, cr = (a * red + b * green + c * blue for a, b, c in _BT709)
    luma = (y + (16 << 16) + (1 << 15)) >> 16
    chroma = [(_subsample(part) + (128 << 19) + (1 << 18)) >> 19 for part in (cb, cr)]
    planes = [luma.ravel(), *(part.ravel() for part in chroma)]
    stacked = np.concatenate(planes).astype(np.uint8).reshape(-1, image.shape[1])
    return VideoFrame.from_ndarray(stacked, "yuv420p")


def _subsample(plane: NDArray[np.int32]) -> NDArray[np.int32]:
    """(H, W) to (H / 2, W / 2), times 8: weights 1 2 1 around even columns, sums of row pairs."""
    padded = np.pad(plane, ((0, 0), (1, 0)), mode="edge")
    columns = padded[:, 0:-2:2] + 2 * padded[:, 1:-1:2] + padded[:, 2::2]
    return columns[0::2] + columns[1::2]


def _bt709() -> list[list[int]]:
    """The matrix from RGB in 0..255 to Y, Cb, Cr in limited range without offsets, times 2^16
    (ITU-R BT.709, sections 3.2 to 3.5)."""
    kr, kg, kb = 0.2126, 0.7152, 0.0722
    luma = [219 * k for k in (kr, kg, kb)]
    cb = [112 * k / (1 - kb) for k in (-kr, -kg, 1 - kb)]
    cr = [112 * k / (1 - kr) for k in (1 - kr, -kg, -kb)]
    return [[round(k / 255 * 2**16) for k in row] for row in (luma, cb, cr)]


_BT709 = _bt709()
