"""Decoding: pixels are those that a player shows, and a bad file is refused with an error of one
line."""

import re
import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from recast.errors import BadClip
from recast.media import frame_source
from recast.media.video import read

from . import clips

# --- what pixels become ---------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
@pytest.mark.parametrize("hflip", [False, True])
def test_the_display_matrix_is_applied(tmp_path: Path, rotation: int, hflip: bool) -> None:
    picture = clips.corners()
    source = clips.encode(
        tmp_path / "turned.mp4", np.stack([picture, picture // 2]), rotation=rotation, hflip=hflip
    )
    clip = read(source)
    # FFmpeg turns counterclockwise, as np.rot90 does, and then flips what came out.
    turned = np.rot90(picture, rotation // 90)
    expected = turned[:, ::-1] if hflip else turned
    assert clip.frames.shape[1:] == expected.shape
    assert clips.psnr(clip.frames[0], expected) > 20  # sharp edges in 4:2:0; a wrong turn has 8
    assert bool(clip.notes) == bool(rotation or hflip)
    if rotation and not hflip:
        turn = f"rotated by {rotation % 360} degrees counterclockwise, as its metadata says"
        assert clip.notes == (turn,)


def test_a_still_image_beside_the_video_is_ignored(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "both.mp4"), "w") as container:
        streams = [container.add_stream("libx264", 8) for _ in range(2)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for stream, frames in zip(streams, (clips.numbered(1), clips.numbered(5)), strict=True):
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
            container.mux(stream.encode())
    assert clips.numbers(read(tmp_path / "both.mp4").frames) == [0, 1, 2, 3, 4]


def test_wide_pixels_become_square(tmp_path: Path) -> None:
    source = clips.encode(tmp_path / "wide.mp4", clips.moving(3, 32, 48), pixel=Fraction(2))
    clip = read(source)
    assert (clip.height, clip.width) == (32, 96)
    assert clip.notes == ("resized 48x32 to 96x32, because the pixels are 2 times as wide as high",)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "least"),
    [
        ("ffv1", "yuv420p10le", 35),
        ("ffv1", "yuv444p10le", 45),
        ("libx264", "yuv420p10le", 33),
        ("ffv1", "bgra", 60),
    ],
)
def test_sources_of_other_pixel_formats_are_converted(
    tmp_path: Path, codec: str, pix_fmt: str, least: float
) -> None:
    frames = clips.moving(3, 64, 64)
    clip = read(clips.encode(tmp_path / "deep.mkv", frames, codec=codec, pix_fmt=pix_fmt))
    assert clips.psnr(clip.frames, frames) > least
    assert clip.notes == ()


@pytest.mark.parametrize("pix_fmt", ["gray", "gray10le", "gray16le"])
def test_grey_sources_are_converted(tmp_path: Path, pix_fmt: str) -> None:
    frames = clips.numbered(3)
    clip = read(clips.encode(tmp_path / "grey.mkv", frames, codec="ffv1", pix_fmt=pix_fmt))
    assert np.abs(clip.frames.astype(int) - frames).max() <= 1


def test_alpha_is_composited_over_the_background(tmp_path: Path) -> None:
    alpha = np.array([0, 64, 128, 255])[:, None, None].repeat(4, 1).repeat(4, 2)
    colour = np.full((4, 4, 4, 3), (200, 100, 0))
    rgba = np.concatenate([colour, alpha[..., None]], -1).astype(np.uint8)
    background = np.array((10, 250, 30))
    expected = (colour * alpha[..., None] + background * (255 - alpha[..., None])) / 255
    clips.images(tmp_path / "pngs", rgba)
    pictures = [Image.fromarray(frame) for frame in rgba]
    pictures[0].save(
        tmp_path / "a.webp",
        save_all=True,
        append_images=pictures[1:],
        duration=125,
        lossless=True,
        exact=True,
    )
    for source in (tmp_path / "pngs", tmp_path / "a.webp"):
        clip = read(source, background=(10, 250, 30))
        assert np.abs(clip.frames - expected).max() <= 0.5
        assert "transparent pixels were composited over RGB (10, 250, 30)" in clip.notes
        assert np.abs(read(source).frames - colour * alpha[..., None] / 255).max() <= 0.5


def test_alpha_of_a_video_is_composited(tmp_path: Path) -> None:
    path = tmp_path / "alpha.mkv"
    rgba = np.full((16, 16, 4), (255, 255, 255, 51), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", 8)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "bgra"
        for level in (51, 102):
            rgba[..., 3] = level
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(rgba, "rgba").reformat(format="bgra"))
            )
        container.mux(stream.encode())
    clip = read(path, background=(0, 0, 255))
    assert clip.frames[:, 0, 0].tolist() == [[51, 51, 255], [102, 102, 255]]


def test_images_of_any_mode_are_converted(tmp_path: Path) -> None:
    folder = tmp_path / "modes"
    folder.mkdir()
    level = np.full((8, 8), 100, np.uint8)
    Image.fromarray(level).save(folder / "0.png")
    Image.fromarray(level.astype(np.uint16) * 257).save(folder / "1.png")
    Image.fromarray(level).convert("P").save(folder / "2.png")
    Image.fromarray(level).save(folder / "3.jpg", quality=100)
    Image.fromarray(level).convert("RGB").save(folder / "4.webp", lossless=True)
    (folder / ".hidden.png").write_text("no image")
    (folder / "notes.txt").write_text("no image")
    frames = read(folder).frames
    assert len(frames) == 5
    assert np.abs(frames.astype(int) - 100).max() <= 1


def test_photos_are_rotated_by_their_orientation_tag(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it right
    for index in range(2):
        picture = Image.fromarray(clips.corners() // (index + 1))
        picture.save(folder / f"{index}.jpg", exif=exif, quality=95, subsampling=0)
    clip = read(folder)
    assert clips.psnr(clip.frames[0], np.rot90(clips.corners(), -1)) > 30
    assert "photos were rotated as their EXIF data says" in clip.notes


# --- what cannot be read --------------------------------------------------------------------------


def refusal(path: Path, **arguments: float) -> str:
    """The one-line error for a bad source."""
    with pytest.raises(BadClip) as caught:
        read(path, **arguments)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.mp4")


@pytest.mark.parametrize("name", ["noise.mp4", "page.mp4", "page.txt", "page.gif", "page.webm"])
def test_a_file_that_is_no_video_is_refused(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()
    (tmp_path / name).write_bytes(noise if "noise" in name else b"<html>hello</html>\n" * 99)
    assert re.search("not a video|holds no video", refusal(tmp_path / name))


def test_a_file_with_sound_only_is_refused(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "song.wav"), "wb") as song:
        song.setparams((1, 2, 8000, 0, "NONE", ""))
        song.writeframes(bytes(16000))
    assert "holds no video" in refusal(tmp_path / "song.wav")


def test_an_empty_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    assert "is empty" in refusal(tmp_path / "empty.mp4")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    assert "holds no images" in refusal(tmp_path / "folder")


def truncated(source: Path, to: Path, share: float) -> Path:
    data = source.read_bytes()
    to.write_bytes(data[: int(len(data) * share)])
    return to


def test_a_truncated_mp4_without_its_index_is_refused(tmp_path: Path) -> None:
    whole = clips.encode(tmp_path / "whole.mp4", clips.moving(20, 48, 64))
    assert "0 frames are readable" in refusal(truncated(whole, tmp_path / "cut.mp4", 0.6))


@pytest.mark.parametrize("share", [0.95, 0.7])
def test_a_truncated_mp4_with_some_readable_frames_is_refused(tmp_path: Path, share: float) -> None:
    whole = clips.encode(
        tmp_path / "whole.mp4",
        clips.moving(20, 48, 64),
        options={"g": "4"},
        muxer={"movflags": "+faststart"},
    )
    with av.open(str(whole)) as container:
        ends = [entry.pos + entry.size for entry in container.streams.video[0].index_entries]
    readable = sum(end <= int(whole.stat().st_size * share) for end in ends)
    assert 0 < readable < 20
    line = refusal(truncated(whole, tmp_path / "cut.mp4", share), frames=2)
    assert f"cut short: {readable} of 20 frames are readable" in line


@pytest.mark.parametrize("suffix", ["mkv", "avi"])
def test_a_truncated_mkv_or_avi_is_refused(tmp_path: Path, suffix: str) -> None:
    whole = clips.encode(tmp_path / f"whole.{suffix}", clips.moving(40, 96, 128), codec="mpeg4")
    line = refusal(truncated(whole, tmp_path / f"cut.{suffix}", 0.5))
    assert re.search(r"cut short.* \d+ frames", line)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_a_truncated_animation_is_refused(tmp_path: Path, suffix: str) -> None:
    pictures = [Image.fromarray(frame) for frame in clips.moving(9, 48, 64)]
    whole = tmp_path / f"whole.{suffix}"
    pictures[0].save(whole, save_all=True, append_images=pictures[1:], duration=100)
    line = refusal(truncated(whole, tmp_path / f"cut.{suffix}", 0.5))
    assert re.search(r"cut short or damaged: \d frames are readable", line)


def test_a_folder_with_a_truncated_image_is_refused(tmp_path: Path) -> None:
    folder = clips.images(tmp_path / "frames", clips.moving(3, 48, 64))
    truncated(folder / "1.png", folder / "1.png", 0.5)
    assert "1.png is cut short" in refusal(folder)


def test_a_clip_is_readable_up_to_damage_in_its_middle(tmp_path: Path) -> None:
    source = clips.encode(
        tmp_path / "clip.mp4", clips.moving(30, 64, 96), options={"bf": "0", "g": "5"}
    )
    with av.open(str(source)) as container:
        entry = container.streams.video[0].index_entries[15]
    data = bytearray(source.read_bytes())
    data[entry.pos : entry.pos + entry.size] = b"\xff" * entry.size
    source.write_bytes(data)
    assert re.search(r"damaged: only 1[0-5] frames in a row are readable", refusal(source))
    assert len(read(source, frames=4)) == 4


def test_too_few_frames_are_refused_with_the_count_and_remedies(tmp_path: Path) -> None:
    source = clips.encode(tmp_path / "clip.mp4", clips.numbered(20), rate=10)
    line = refusal(source, frames=12, fps=5)
    assert line.endswith(
        "has 10 frames at 5 fps, 12 are needed; lower `frames` to 10 or raise `fps` to 6"
    )
    assert len(read(source, frames=12, fps=6)) == 12
    line = refusal(source, frames=12, start=1.5)
    assert "has 5 frames at 10 fps from 1.5 s on, 12 are needed" in line
    assert line.endswith("lower `frames` to 5 or choose an earlier `start`")
    assert "ends before `start` at 9 s" in refusal(source, start=9)


@pytest.mark.parametrize("suffix", ["mp4", "gif", "png"])
def test_a_single_frame_is_refused_unless_one_is_requested(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"still.{suffix}"
    if suffix == "mp4":
        clips.encode(source, clips.numbered(1))
    else:
        Image.fromarray(clips.numbered(1)[0]).save(source)
    for arguments in ({}, {"frames": 16}, {"fps": 100, "frames": 4}):
        assert "has only one frame" in refusal(source, **arguments)
    assert len(read(source, frames=1)) == 1


def test_images_of_mixed_sizes_are_refused(tmp_path: Path) -> None:
    folder = clips.images(tmp_path / "frames", clips.numbered(3))
    Image.new("RGB", (50, 32)).save(folder / "10.png")
    assert "0.png is 48x32 and 10.png is 50x32" in refusal(folder)


def test_enormous_frames_are_refused_from_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(av.CodecContext, "decode", lambda *_: pytest.fail("it was decoded"))
    monkeypatch.setattr(av.Packet, "decode", lambda *_: pytest.fail("it was decoded"))
    for size in ((9000, 9000), (20000, 20000)):  # above our cap, and above Pillow's own, too
        header = b"GIF89a" + struct.pack("<HHBBB", *size, 0, 0, 0) + b","
        (tmp_path / "huge.gif").write_bytes(header + struct.pack("<HHHHB", 0, 0, *size, 0) + b"\2")
        assert re.search(r"67 million", refusal(tmp_path / "huge.gif"))
    monkeypatch.setattr(frame_source, "MAX_PIXELS", 48 * 32 - 1)
    assert "48x32 pixels" in refusal(clips.encode(tmp_path / "clip.mp4", clips.numbered(2)))


def test_frames_of_width_zero_are_refused(tmp_path: Path) -> None:
    header = b"GIF89a" + struct.pack("<HHBBB", 0, 9, 0, 0, 0) + b","
    (tmp_path / "flat.gif").write_bytes(header + struct.pack("<HHHHB", 0, 0, 0, 9, 0) + b"\2\0;")
    assert re.search("0x9 pixels|damaged", refusal(tmp_path / "flat.gif"))


def test_a_source_that_changes_its_size_is_refused(tmp_path: Path) -> None:
    parts = [
        clips.encode(tmp_path / f"{n}.ts", clips.moving(6, 32, 16 * n), options={"bf": "0"})
        for n in (3, 4)
    ]
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert re.search("changes its size from 48x32 to 64x32|damaged", refusal(both))
