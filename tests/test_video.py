"""Reading, selecting, fitting and saving clips, with frames whose numbers can be read from their
pixels."""

import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from recast.errors import BadCall, BadClip, NoSpace
from recast.media import frame_selection
from recast.media.video import Video, fit, read

from . import clips

# --- mp4 there and back ---------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [8.0, 29.97, 23.976])
def test_an_mp4_is_read_back(tmp_path: Path, fps: float) -> None:
    frames = clips.moving(12, 64, 96)
    clip = Video(frames, fps)
    back = read(clip.save(tmp_path / "clip.mp4"))
    assert back.frames.shape == frames.shape
    assert back.fps == pytest.approx(fps, rel=1e-5)
    assert back.notes == ()
    assert clips.psnr(back.frames, frames) > 40


def test_mp4_is_h264_yuv420p_with_its_index_in_front(tmp_path: Path) -> None:
    path = Video(clips.numbered(4), 8).save(tmp_path / "clip.mp4")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3, (0,) * 3])
def test_mp4_keeps_colours(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    flat = np.broadcast_to(np.array(colour, np.uint8), (2, 32, 32, 3))
    moving = np.concatenate([flat, clips.numbered(1, 32, 32)])
    back = read(Video(moving, 8).save(tmp_path / "clip.mp4"))
    assert np.abs(back.frames[0].astype(int) - colour).max() <= 4


def test_odd_sizes_are_made_even_by_repeating_the_edge(tmp_path: Path) -> None:
    frames = clips.moving(4, 47, 65)
    back = read(Video(frames, 8).save(tmp_path / "clip.mp4")).frames
    assert back.shape == (4, 48, 66, 3)
    assert clips.psnr(back[:, :47, :65], frames) > 38
    edge = np.pad(frames, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    assert clips.psnr(back[:, -1], edge[:, -1]) > 35


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip"])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    written = []
    for number in range(2):
        path = Video(clips.moving(5, 48, 64), 8).save(tmp_path / str(number) / name)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        written.append([file.read_bytes() for file in files])
    assert written[0] == written[1]


def test_the_bytes_do_not_depend_on_the_content_of_free_memory(tmp_path: Path) -> None:
    # With x264's macroblock tree they do, which shows only with used memory.
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((16, 16, 1)))
    frames = [np.roll(blocks, shift, 1) + rng.normal(0, 4, blocks.shape) for shift in range(6)]
    clip = Video(np.stack(frames).clip(0, 255).astype(np.uint8), 8)
    contents = set()
    for _ in range(20):
        rubbish = [rng.integers(0, 256, size, np.uint8) for size in rng.integers(64, 200_000, 60)]
        rng.shuffle(rubbish)
        del rubbish[20:]
        contents.add(clip.save(tmp_path / "clip.mp4").read_bytes())
    assert len(contents) == 1


# --- which frames ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate_takes_the_frame_on_screen(tmp_path: Path, suffix: str) -> None:
    stamps = [0, 105, 150, 395, 452, 905]
    source = clips.encode(
        tmp_path / f"vfr.{suffix}",
        clips.numbered(6),
        stamps=stamps,
        tick=Fraction(1, 1000),
        options={"bf": "0"},
    )
    clip = read(source, fps=10, frames=9)
    #                             0  100  200  300  400  500  600  700  800 ms
    assert clips.numbers(clip.frames) == [0, 0, 2, 2, 3, 4, 4, 4, 4]
    assert clip.fps == 10
    assert clips.numbers(read(source, fps=10, start=0.42, frames=3).frames) == [3, 4, 4]
    own = read(source)
    assert any("variable frame rate" in note for note in own.notes)


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "ffv1")])
def test_constant_rate_takes_every_frame_once(tmp_path: Path, suffix: str, codec: str) -> None:
    """Matroska rounds times of 29.97 fps to milliseconds, which must not repeat a frame."""
    source = clips.encode(
        tmp_path / f"clip.{suffix}", clips.numbered(70), rate=Fraction(30000, 1001), codec=codec
    )
    clip = read(source)
    assert clips.numbers(clip.frames) == list(range(70))
    assert clip.fps == pytest.approx(30000 / 1001, rel=1e-3)
    assert clip.notes == ()


def test_a_lower_rate_selects_by_time_stamps_and_adds_a_note(tmp_path: Path) -> None:
    source = clips.encode(tmp_path / "clip.mp4", clips.numbered(24), rate=24)
    clip = read(source, fps=10, frames=6)
    assert clips.numbers(clip.frames) == [0, 2, 4, 7, 9, 12]  # floor(24 i / 10)
    assert clip.notes == ("resampled from 24 to 10 fps by time stamps",)


@pytest.mark.parametrize("start", [0.0, 0.5, 4.3, 6.05])
def test_start_is_exact_with_and_without_a_seek(tmp_path: Path, start: float) -> None:
    source = clips.encode(
        tmp_path / "long.mp4", clips.numbered(65), rate=10, options={"g": "20", "bf": "2"}
    )
    first = int(round(start * 10, 6))
    assert clips.numbers(read(source, start=start, frames=3).frames) == [
        first,
        first + 1,
        first + 2,
    ]


def test_only_the_needed_frames_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = clips.encode(tmp_path / "long.mp4", clips.numbered(70), rate=10, options={"g": "10"})
    converted: list[object] = []
    demuxed: list[object] = []
    to_ndarray, demux = av.VideoFrame.to_ndarray, av.container.InputContainer.demux

    def counted_conversion(frame: av.VideoFrame, **options: object) -> object:
        converted.append(frame)
        return to_ndarray(frame, **options)

    def counted_packets(container: object, *streams: object) -> Iterator[object]:
        for packet in demux(container, *streams):
            demuxed.append(packet)
            yield packet

    monkeypatch.setattr(av.VideoFrame, "to_ndarray", counted_conversion)
    monkeypatch.setattr(av.container.InputContainer, "demux", counted_packets)
    assert clips.numbers(read(source, start=5, frames=4).frames) == [50, 51, 52, 53]
    assert len(converted) == 4
    assert len(demuxed) < 30


def test_frames_own_their_memory(tmp_path: Path) -> None:
    frames = read(clips.encode(tmp_path / "clip.mp4", clips.numbered(5)), frames=3).frames
    assert frames.flags.writeable
    assert frames.flags.c_contiguous


def test_images_are_read_in_natural_order(tmp_path: Path) -> None:
    folder = clips.images(tmp_path / "frames", clips.numbered(12), "frame{}.png")
    clip = read(folder)
    assert clips.numbers(clip.frames) == list(range(12))
    assert clip.fps == 8
    assert clip.notes == ("a folder of images states no frame rate, 8 fps is assumed",)
    late = read(folder, fps=4, start=1.25, frames=3)
    assert (clips.numbers(late.frames), late.fps, late.notes) == ([5, 6, 7], 4, ())


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_animations_keep_the_times_of_their_frames(tmp_path: Path, suffix: str) -> None:
    pictures = [Image.fromarray(frame) for frame in clips.numbered(4)]
    lengths = [100, 300, 50, 150]
    pictures[0].save(
        tmp_path / f"clip.{suffix}",
        save_all=True,
        append_images=pictures[1:],
        duration=lengths,
        **({"lossless": True} if suffix == "webp" else {}),
    )
    clip = read(tmp_path / f"clip.{suffix}", fps=20)
    expected = [index for index, length in enumerate(lengths) for _ in range(length // 50)]
    assert clips.numbers(clip.frames) == expected
    own = read(tmp_path / f"clip.{suffix}")
    assert own.fps == pytest.approx(4 / 0.6, rel=1e-3)


def test_gif_round_trip_keeps_rate_and_frames(tmp_path: Path) -> None:
    """A frame at 8 fps does not last a whole number of hundredths. No frame may be repeated,
    skipped or slower."""
    clip = Video(clips.numbered(16), 8)
    back = read(clip.save(tmp_path / "clip.gif"))
    assert clips.numbers(back.frames) == list(range(16))
    assert (back.fps, back.notes) == (8, ())


# --- fitting --------------------------------------------------------------------------------------


def test_fit_adds_notes_about_its_changes() -> None:
    clip = Video(clips.moving(2, 72, 128), 8, ("before",))
    assert fit(clip, 72, 128) is clip
    crop = fit(clip, 32, 32)
    assert crop.notes == ("before", "cropped 128x72 to 72x72 (centre), resized to 32x32")
    pad = fit(clip, 32, 32, "pad")
    assert pad.notes[1] == "resized 128x72 to 32x18, padded 32x18 to 32x32 with black"
    assert (
        fit(clip, 32, 32, "stretch").notes[1]
        == "stretched 128x72 to 32x32 (the aspect ratio changed)"
    )
    assert fit(clip, 36, 64).notes[1] == "resized 128x72 to 64x36"
    assert fit(clip, 36, 64, "stretch").notes[1] == "resized 128x72 to 64x36"
    assert fit(clip, 72, 72).notes[1] == "cropped 128x72 to 72x72 (centre)"
    assert {c.frames.shape for c in (crop, pad)} == {(2, 32, 32, 3)}


def test_crop_without_resizing_is_a_slice_and_pad_keeps_every_pixel() -> None:
    frames = clips.moving(2, 40, 61)
    clip = Video(frames, 8)
    np.testing.assert_array_equal(fit(clip, 40, 40).frames, frames[:, :, 10:50])
    padded = fit(clip, 61, 61, "pad").frames
    np.testing.assert_array_equal(padded[:, 10:50], frames)
    assert padded[:, :10].max() == padded[:, 50:].max() == 0


def test_shrinking_averages_over_the_area() -> None:
    """A one-pixel checkerboard becomes its mean, not stripes."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    clip = Video(board[None, ..., None].repeat(3, -1), 8)
    assert np.abs(fit(clip, 16, 16).frames[:, 2:-2, 2:-2].astype(int) - 127).max() <= 3


def test_only_stretch_changes_the_aspect_ratio() -> None:
    """Under crop and pad the width and the height of a disc stay equal."""
    y, x = np.mgrid[:90, :160]
    disc = (((x - 80) ** 2 + (y - 45) ** 2 < 30**2) * 255).astype(np.uint8)
    clip = Video(disc[None, ..., None].repeat(3, -1), 8)
    for how, round_ in (("crop", True), ("pad", True), ("stretch", False)):
        mask = fit(clip, 120, 120, how).frames[0, ..., 0] > 127
        tall, wide = mask.any(1).sum(), mask.any(0).sum()
        assert (abs(int(tall) - int(wide)) <= 2) == round_


# --- saving ---------------------------------------------------------------------------------------


def test_png_folder_is_exact_and_replaces_only_its_own_kind(tmp_path: Path) -> None:
    clip = Video(clips.moving(3, 9, 7), 8)
    folder = clip.save(tmp_path / "frames")
    assert sorted(file.name for file in folder.iterdir()) == ["00000.png", "00001.png", "00002.png"]
    np.testing.assert_array_equal(read(folder).frames, clip.frames)
    Video(clip.frames[:2], 8).save(folder)
    assert len(list(folder.iterdir())) == 2
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(BadCall, match=r"holds other files \(thesis.tex\)"):
        clip.save(folder)
    assert (folder / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, failure: BaseException
) -> None:
    def half(*args: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr(av.container.OutputContainer, "mux", half, raising=True)
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(NoSpace if isinstance(failure, OSError) else KeyboardInterrupt):
        Video(clips.numbered(9), 8).save(tmp_path / "new" / name)
    assert list(tmp_path.iterdir()) == []


def test_invalid_ways_to_save_are_refused_with_the_choices(tmp_path: Path) -> None:
    clip = Video(clips.numbered(2), 60)
    with pytest.raises(BadCall, match=r"choose \.mp4, \.gif or no suffix"):
        clip.save(tmp_path / "clip.avi")
    with pytest.raises(BadCall, match="a GIF must run at 50 fps or less, got 60"):
        clip.save(tmp_path / "clip.gif")
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_video_is_refused() -> None:
    with pytest.raises(BadCall, match=r"\(F, H, W, 3\) uint8"):
        Video(np.zeros((2, 4, 4, 3), np.float32), 8)  # type: ignore[arg-type]  # the wrong call
    with pytest.raises(BadCall, match="not empty"):
        Video(np.zeros((0, 4, 4, 3), np.uint8), 8)
    with pytest.raises(BadCall, match="got nan"):
        Video(np.zeros((1, 4, 4, 3), np.uint8), float("nan"))


def test_invalid_settings_of_read_and_fit_are_refused(tmp_path: Path) -> None:
    source = clips.encode(tmp_path / "clip.mp4", clips.numbered(3))
    for arguments, message in (
        ({"start": -1.0}, "`start` must be a time in seconds, at least 0, got -1"),
        ({"frames": 0}, "`frames` must be at least 1, got 0"),
        ({"fps": 0.0}, "`fps` must be between"),
        ({"background": (0, 0, 256)}, "`background` must be three numbers"),
    ):
        with pytest.raises(BadCall, match=message):
            read(source, **arguments)
    with pytest.raises(BadCall, match="crop, pad, stretch"):
        fit(read(source), 8, 8, "squash")  # type: ignore[arg-type]  # the wrong call
    with pytest.raises(BadCall, match="0x8"):
        fit(read(source), 8, 0)


def test_clips_above_the_memory_limit_are_refused_at_the_first_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = clips.encode(tmp_path / "clip.mp4", clips.numbered(9))
    monkeypatch.setattr(frame_selection, "MAX_BYTES", 5 * 32 * 48 * 3)
    assert len(read(source, frames=5)) == 5
    for frames in (6, None):
        with pytest.raises(BadClip, match="5 frames fit"):
            read(source, frames=frames)


def test_import_is_light() -> None:
    code = (
        "import sys, recast.media.video, recast.media.contact_sheet; "
        "print({'av', 'PIL', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
