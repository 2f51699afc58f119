"""Clips laid out for the eye: two side by side, and many as rows of stills on one sheet.

Owns layout only; frames come from `video.py`, letters from Pillow's own font.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recast.errors import BadCall
from recast.media.atomic_files import atomic
from recast.media.video import Pixels, Video, resize

_GAP = 4
"""Pixels between tiles."""
_PAPER = 255
"""Grey value of what is no picture."""
_LABEL = 24
"""Height in pixels of the line above a row."""
_TILE = (128, 320)
"""Widths in pixels between which tiles are kept."""
_PREVIEW = 128
"""Pixels of a preview's longest side."""


def side_by_side(left: Video, right: Video) -> Video:
    """Both clips beside each other, the lower one enlarged to the height of the other.

    Raises `BadCall` if they differ in length or rate, since then they do not show the same moment.
    """
    if len(left) != len(right):
        raise BadCall(
            f"side by side needs clips of one length, got {len(left)} and {len(right)} frames"
        )
    if abs(left.fps - right.fps) > 0.01 * left.fps:
        raise BadCall(f"side by side needs one rate, got {left.fps:g} and {right.fps:g} fps")
    height = max(left.height, right.height)
    parts = [_to_height(left, height), _to_height(right, height)]
    gap = np.full((len(left), height, _GAP, 3), _PAPER, np.uint8)
    frames = np.concatenate([parts[0], gap, parts[1]], axis=2)
    notes = [
        f"{side} enlarged from {video.width}x{video.height} to {part.shape[2]}x{height}"
        for side, video, part in zip(("left", "right"), (left, right), parts, strict=True)
        if video.height != height
    ]
    return Video(frames, left.fps, tuple(notes))


def contact_sheet(rows: Sequence[tuple[str, Video]], columns: int = 8) -> Pixels:
    """Stills of each clip as a row under its label, (H, W, 3) uint8.

    A row shows `columns` frames, evenly spread from first to last, or all if there are fewer.
    Tiles under 128 pixels of width, and tiles that stand in one column with wider ones, are
    enlarged by a whole factor, with hard edges, so that one sees the pixels that are there; tiles
    over 320 are shrunk to that. A label that is too long
    for the sheet ends in "…". Raises `BadCall` for no rows or no columns.
    """
    if not rows or columns < 1:
        raise BadCall(
            f"a contact sheet has at least one row and column, got {len(rows)} x {columns}"
        )
    least, most = _TILE
    room = min(most, max(least, *(video.width for _, video in rows)))
    strips = [_tiles(video, columns, room) for _, video in rows]
    cell = max(strip.shape[2] for strip in strips)
    shown = max(len(strip) for strip in strips)
    width = _GAP + shown * (cell + _GAP)
    height = _GAP + sum(_LABEL + strip.shape[1] + _GAP for strip in strips)
    sheet = np.full((height, width, 3), _PAPER, np.uint8)
    top = _GAP
    for (label, _), strip in zip(rows, strips, strict=True):
        sheet[top : top + _LABEL] = _line(label, width)
        top += _LABEL
        for column, tile in enumerate(strip):
            left = _GAP + column * (cell + _GAP)
            sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        top += strip.shape[1] + _GAP
    return sheet


def preview(video: Video) -> bytes:
    """The middle frame as a PNG, shrunk to 128 pixels if a side is longer."""
    from recast.media import pillow  # here, since Pillow loads slowly

    scale = min(1.0, _PREVIEW / max(video.height, video.width))
    height, width = (max(1, round(scale * side)) for side in (video.height, video.width))
    (middle,) = resize(video.frames[len(video) // 2][None], height, width)
    return pillow.png(middle)


def save_png(image: Pixels, path: str | Path) -> Path:
    """Write (H, W, 3) or (H, W) uint8 as a PNG, whole or not at all. `BadCall`, `NoSpace`."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise BadCall(f"a picture is saved as .png, got {path.name!r}")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise BadCall(f"a picture is (H, W, 3) or (H, W) uint8, got {image.shape} {image.dtype}")
    from recast.media import pillow  # here, since Pillow loads slowly

    with atomic(path) as temporary:
        pillow.write_png(image, temporary)
    return path


def _to_height(video: Video, height: int) -> Pixels:
    if video.height == height:
        return video.frames
    return resize(video.frames, height, max(1, round(video.width * height / video.height)))


def _tiles(video: Video, columns: int, room: int) -> Pixels:
    """(up to `columns`, h, w, 3): w fills `room` as far as a whole factor can, and is seen."""
    chosen = np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)
    frames = video.frames[chosen]
    least, most = _TILE
    if video.width > most:
        return resize(frames, max(1, round(video.height * most / video.width)), most)
    factor = max(-(-least // video.width), room // video.width)
    tiles: Pixels = frames.repeat(factor, axis=1).repeat(factor, axis=2)
    return tiles


def _line(text: str, width: int) -> Pixels:
    """(_LABEL, width, 3): the text in black on paper, shortened to fit."""
    from PIL import Image, ImageDraw, ImageFont

    line = Image.new("RGB", (width, _LABEL), (_PAPER, _PAPER, _PAPER))
    draw, font = ImageDraw.Draw(line), ImageFont.load_default(16)
    shown = text = " ".join(text.split())
    while shown and draw.textlength(shown, font) > width - 2 * _GAP:
        text = text[:-1]
        shown = f"{text.rstrip()}…" if text else ""
    draw.text((_GAP, _LABEL // 2), shown, fill=0, font=font, anchor="lm")
    return np.array(line)
