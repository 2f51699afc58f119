"""The layout of contact sheets: the position of each tile, and a note wherever frames are scaled or
cut."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recast.errors import BadCall, NoSpace
from recast.media.contact_sheet import contact_sheet, save_png, side_by_side
from recast.media.video import Video

from . import clips

GAP, LABEL = 4, 24


def tile_at(sheet: clips.Pixels, top: int, column: int, cell: int, size: tuple[int, int]) -> Video:
    left = GAP + column * (cell + GAP)
    return Video(sheet[None, top : top + size[0], left : left + size[1]], 1)


def test_contact_sheet_geometry() -> None:
    first, second = Video(clips.numbered(15, 64, 64), 8), Video(clips.numbered(3, 32, 64), 8)
    sheet = contact_sheet([("one", first), ("two", second)], columns=8)
    assert sheet.shape == (GAP + 2 * (LABEL + GAP) + 128 + 64, GAP + 8 * (128 + GAP), 3)
    top = GAP + LABEL
    row = [tile_at(sheet, top, column, 128, (128, 128)) for column in range(8)]
    assert [clips.numbers(tile.frames)[0] for tile in row] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert all(np.ptp(tile.frames) == 0 for tile in row)
    top += 128 + GAP + LABEL
    row = [tile_at(sheet, top, column, 128, (64, 128)) for column in range(3)]
    assert [clips.numbers(tile.frames)[0] for tile in row] == [0, 1, 2]
    assert (sheet[top : top + 64, GAP + 3 * (128 + GAP) :] == 255).all()


def test_labels_are_drawn_above_their_rows_and_shortened_to_fit() -> None:
    clip = Video(clips.numbered(2, 64, 64), 8)
    sheets = [contact_sheet([(label, clip)], 2) for label in ("", "a bear", "a bear " * 50)]
    lines = [sheet[GAP : GAP + LABEL] for sheet in sheets]
    assert (lines[0] == 255).all()
    assert lines[1].min() == 0
    assert lines[1].shape == lines[2].shape
    assert (lines[2][:, -GAP:] == 255).all()
    for sheet in sheets:
        np.testing.assert_array_equal(sheet[GAP + LABEL :], sheets[0][GAP + LABEL :])


@pytest.mark.parametrize(("width", "tile"), [(16, 128), (50, 150), (128, 128), (200, 200)])
def test_small_frames_are_enlarged_by_an_integer_factor(width: int, tile: int) -> None:
    clip = Video(clips.moving(2, 10, width), 8)
    sheet = contact_sheet([("", clip)], 2)
    factor = tile // width
    assert sheet.shape[1] == GAP + 2 * (tile + GAP)
    drawn = sheet[GAP + LABEL : -GAP, GAP : GAP + tile]
    np.testing.assert_array_equal(drawn[::factor, ::factor], clip.frames[0])
    np.testing.assert_array_equal(drawn, np.kron(clip.frames[0], np.ones((factor, factor, 1))))


def test_large_frames_are_shrunk_and_smaller_ones_enlarged() -> None:
    large, small = Video(clips.numbered(1, 90, 960), 8), Video(clips.numbered(1, 64, 64), 8)
    sheet = contact_sheet([("", large), ("", small)], 1)
    assert sheet.shape == (GAP + 2 * (LABEL + GAP) + 30 + 320, GAP + 320 + GAP, 3)


def test_impossible_sheets_are_refused() -> None:
    with pytest.raises(BadCall, match="0 x 8"):
        contact_sheet([])
    with pytest.raises(BadCall, match="1 x 0"):
        contact_sheet([("", Video(clips.numbered(1), 8))], 0)


def test_side_by_side_joins_two_clips() -> None:
    left, right = Video(clips.numbered(3, 64, 96), 8), Video(clips.numbered(3, 16, 20), 8)
    pair = side_by_side(left, right)
    assert pair.frames.shape == (3, 64, 96 + GAP + 80, 3)
    np.testing.assert_array_equal(pair.frames[:, :, :96], left.frames)
    assert clips.numbers(pair.frames[:, :, 100:]) == [0, 1, 2]
    assert (pair.frames[:, :, 96:100] == 255).all()
    assert pair.notes == ("right enlarged from 20x16 to 80x64",)
    assert side_by_side(left, left).notes == ()


def test_pairs_of_different_length_or_rate_are_refused() -> None:
    clip = Video(clips.numbered(3), 8)
    with pytest.raises(BadCall, match="got 3 and 2 frames"):
        side_by_side(clip, Video(clip.frames[:2], 8))
    with pytest.raises(BadCall, match="got 8 and 12 fps"):
        side_by_side(clip, Video(clip.frames, 12))


def test_a_saved_png_holds_the_pixels(tmp_path: Path) -> None:
    picture = clips.moving(1, 20, 30)[0]
    for image in (picture, picture[..., 0], picture[:, ::-1]):
        path = save_png(image, tmp_path / "new" / "sheet.png")
        np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    with pytest.raises(BadCall, match=r"as \.png, got 'sheet\.jpg'"):
        save_png(picture, tmp_path / "sheet.jpg")
    with pytest.raises(BadCall, match="float64"):
        save_png(picture / 255.0, tmp_path / "sheet.png")


def test_a_full_disk_leaves_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(NoSpace):
        save_png(clips.moving(1, 20, 30)[0], tmp_path / "other" / "sheet.png")
    assert list(tmp_path.iterdir()) == []
