"""Words and pictures of the page: sentences, lengths of time, and the strip of a clip."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recast.backbones.base import Defaults
from recast.evaluation import metrics
from recast.media import video as videos
from recast.media.video import Video
from recast.pipeline.source_clip import Source
from recast.web import wording
from recast.web.filmstrip import filmstrip
from recast.web.work import SCORES

OWN = Defaults(frames=8, height=32, width=32, fps=4.0, steps=10, guidance_scale=3.0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`frames` must be at least 2, got 1", "“Frames” must be at least 2, got 1."),
        ("use `offload=networks`", "Use “Offload: networks”."),
        ("use `vae_tiling=True`", "Use “Vae tiling: on”."),
        ("dmt runs its preset shapes", "dmt runs its preset shapes."),
        ("unknown method 'x'; did you mean dmt?", "Unknown method 'x'; did you mean dmt?"),
        ("/srv/recast/clips/ab12/ball.mp4 is damaged", "ball.mp4 is damaged."),
        ("cannot read /srv/recast/clips/ab/a.mp4: empty", "Cannot read a.mp4: empty."),
    ],
)
def test_a_message_of_the_library_becomes_a_sentence(text: str, shown: str) -> None:
    assert wording.sentence(text, Path("/srv/recast")) == shown


def test_lengths_of_time_and_sizes() -> None:
    assert [wording.duration(s) for s in (0.4, 45, 99, 100, 600, 7500)] == [
        *("0 s", "45 s", "99 s", "2 min", "10 min", "2 h 5 min")
    ]
    assert [wording.size(count) for count in (0, 2_340_000, 3e9)] == ["0.0 MB", "2.3 MB", "3.0 GB"]


def test_every_score_that_is_shown_first_exists_and_is_explained() -> None:
    assert set(SCORES) == set(wording.MEANINGS)
    assert set(SCORES) <= set(metrics())


def test_the_strip_shows_the_used_part_and_darkens_what_is_cut_away(tmp_path: Path) -> None:
    """A clip of 6 s whose frames brighten: the strip is twice as wide as high, and the model takes
    the square in its middle."""
    frames = np.full((48, 64, 128, 3), 40, np.uint8) + np.arange(48, dtype=np.uint8)[
        :, None, None, None
    ] * np.uint8(4)
    clip = Video(frames, 8.0).save(tmp_path / "clip.mp4")
    strip = filmstrip(clip, Source(start=3.0), OWN)
    assert (strip.begin, strip.share) == (pytest.approx(0.5), pytest.approx(2 / 6, abs=0.01))
    assert strip.seconds == pytest.approx(6, abs=0.05)
    assert len(strip.timeline) == 12
    assert len(strip.frames) == 8
    light = picture(strip.frames[0]).mean(-1)
    rows = light[:, light.shape[1] // 2] > 100
    columns = light[light.shape[0] // 2] > 100
    assert columns.mean() == pytest.approx(0.5, abs=0.05)  # a square of 64 of the 128 pixels
    assert rows.all()
    expected = videos.read(clip, start=3.0, frames=1).frames.mean()
    assert light[light.shape[0] // 2, light.shape[1] // 2] == pytest.approx(expected, abs=4)
    assert strip.canvas_size == (512, 512)


def picture(url: str) -> np.ndarray:
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
    )
