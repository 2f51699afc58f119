"""The files that a run writes beside its mp4."""

from pathlib import Path

import numpy as np
import pytest

from recast.errors import BadCall
from recast.media import video
from recast.media.video import Video
from recast.pipeline import output_folder
from recast.worlds.shapes import world


@pytest.fixture
def clip() -> Video:
    return Video(world.render(world.sample(3)), world.FPS)


def test_the_result_is_also_written_in_other_forms(clip: Video, tmp_path: Path) -> None:
    output_folder.write_media(tmp_path, ("source", clip), clip, "a star", ("gif", "png"))
    frames = video.read(tmp_path / "frames", fps=world.FPS).frames
    assert np.array_equal(frames, clip.frames)  # PNG loses nothing
    gif = video.read(tmp_path / "video.gif")
    assert len(gif) == len(clip)
    assert gif.fps == pytest.approx(world.FPS, rel=0.01)
    shown = video.read(tmp_path / "video.mp4").frames.astype(int)
    assert abs(shown - clip.frames).mean() < 3
    pair = video.read(tmp_path / "side_by_side.mp4")
    assert pair.width >= 2 * clip.width


def test_a_folder_with_other_forms_counts_as_an_earlier_run(clip: Video, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    output_folder.write_media(folder, None, clip, "a star", ("gif", "png"))
    output_folder.check_replaceable(folder, tmp_path / "clip.mp4")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(BadCall, match="holds other files"):
        output_folder.check_replaceable(folder, tmp_path / "clip.mp4")
