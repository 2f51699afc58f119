"""Clips arranged for comparison: two side by side, or many as rows of stills on one sheet.

This module owns layout only: frames come from `video.py`, and letters from Pillow's default font.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recast.errors import BadCall
from recast.media.atomic_files import atomic
from recast.media.frame_source import Pixels
from recast.media.video import Video, resize

_GAP = 4
"""Pixels between tiles."""
_BACKGROUND = 255
"""Grey value of the background."""
_LABEL = 24
"""Height in pixels of the label above a row."""
_TILE_WIDTHS = (128, 320)
"""Smallest and largest width of a tile in pixels."""
_PREVIEW_SIZE = 128
"""Longest side of a preview in pixels."""


def side_by_side(left: Video, right: Video) -> Video:
    """Both clips next to each other, the smaller one enlarged to the height of the other.

    Raises `BadCall` if they differ in length or rate, because frames then show different times.
    """
    if len(left) != len(right):
        raise BadCall(
            f"side by side needs clips of equal length, got {len(left)} and {len(right)} frames"
        )
    if abs(left.fps - right.fps) > 0.01 * left.fps:
        raise BadCall(f"side by side needs equal rates, got {left.fps:g} and {right.fps:g} fps")
    height = max(left.height, right.height)
    parts = [_to_height(left, height), _to_height(right, height)]
    gap = np.full((len(left), height, _GAP, 3), _BACKGROUND, np.uint8)
    frames = np.concatenate([parts[0], gap, parts[1]], axis=2)
    notes = [
        f"{side} enlarged from {video.width}x{video.height} to {part.shape[2]}x{height}"
        for side, video, part in zip(("left", "right"), (left, right), parts, strict=True)
        if video.height != height
    ]
    return Video(frames, left.fps, tuple(notes))


def contact_sheet(rows: Sequence[tuple[str, Video]], columns: int = 8) -> Pixels:
    """Stills of each clip as a row under its label, (H, W, 3) uint8.

    A row shows `columns` frames, evenly spread from the first to the last, or all frames if there
    are fewer. A tile narrower than 128 pixels, or narrower than a tile of another row, is enlarged
    by an integer factor without smoothing, so that its pixels stay visible; a tile wider than 320
    is shrunk to 320. A label that is too long for the sheet ends in "…". Raises `BadCall` without
    rows or columns.
    """
    if not rows or columns < 1:
        raise BadCall(
            f"a contact sheet needs at least one row and one column, got {len(rows)} x {columns}"
        )
    least, most = _TILE_WIDTHS
    tile_width = min(most, max(least, *(video.width for _, video in rows)))
    strips = [_tiles(video, columns, tile_width) for _, video in rows]
    cell = max(strip.shape[2] for strip in strips)
    width = _GAP + max(len(strip) for strip in strips) * (cell + _GAP)
    height = _GAP + sum(_LABEL + strip.shape[1] + _GAP for strip in strips)
    sheet = np.full((height, width, 3), _BACKGROUND, np.uint8)
    top = _GAP
    for (label, _), strip in zip(rows, strips, strict=True):
        sheet[top : top + _LABEL] = _label_image(label, width)
        top += _LABEL
        for column, tile in enumerate(strip):
            left = _GAP + column * (cell + _GAP)
            sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        top += strip.shape[1] + _GAP
    return sheet


def preview(video: Video) -> bytes:
    """The middle frame as the bytes of a PNG, shrunk to at most 128 pixels per side."""
    from recast.media import pillow  # here, because Pillow loads slowly

    scale = min(1.0, _PREVIEW_SIZE / max(video.height, video.width))
    height, width = (max(1, round(scale * side)) for side in (video.height, video.width))
    (middle,) = resize(video.frames[len(video) // 2][None], height, width)
    return pillow.png(middle)


def save_png(image: Pixels, path: str | Path) -> Path:
    """Write an image (H, W, 3) or (H, W) uint8 as a PNG file, atomically.

    Raises `BadCall` for another suffix, shape or type, and `NoSpace` for a full disk.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise BadCall(f"an image is saved as .png, got {path.name!r}")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise BadCall(
            f"an image must be (H, W, 3) or (H, W) uint8, got {image.shape} {image.dtype}"
        )
    from recast.media import pillow  # here, because Pillow loads slowly

    with atomic(path) as temporary:
        pillow.write_png(image, temporary)
    return path


def _to_height(video: Video, height: int) -> Pixels:
    if video.height == height:
        return video.frames
    return resize(video.frames, height, max(1, round(video.width * height / video.height)))


def _tiles(video: Video, columns: int, tile_width: int) -> Pixels:
    """Up to `columns` frames, (N, h, w, 3); w is as near to `tile_width` as an integer factor
    allows."""
    chosen = np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)
    frames = video.frames[chosen]
    least, most = _TILE_WIDTHS
    if video.width > most:
        return resize(frames, max(1, round(video.height * most / video.width)), most)
    factor = max(-(-least // video.width), tile_width // video.width)
    tiles: Pixels = frames.repeat(factor, axis=1).repeat(factor, axis=2)
    return tiles


def _label_image(text: str, width: int) -> Pixels:
    """The text in black on the background, shortened to fit, (_LABEL, width, 3)."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, _LABEL), (_BACKGROUND, _BACKGROUND, _BACKGROUND))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    label = text = " ".join(text.split())
    while label and draw.textlength(label, font) > width - 2 * _GAP:
        text = text[:-1]
        label = f"{text.rstrip()}…" if text else ""
    draw.text((_GAP, _LABEL // 2), label, fill=0, font=font, anchor="lm")
    return np.array(image)
