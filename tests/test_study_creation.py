"""A new study: its items, its anonymous clips and its attention checks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recast.errors import BadCall, UnknownName
from recast.events import Note
from recast.media import video
from recast.study import creation, design
from recast.study.config import StudyConfig
from recast.study.design import SHUFFLED, SOURCE

from .clips import encode, moving
from .studies import bench_folder, plain_folders, study


@pytest.mark.parametrize(
    ("per_item", "ours", "groups"),
    [
        (2, "b", [("b", "a"), ("b", "c")]),
        (2, None, [("a", "b"), ("a", "c"), ("b", "c")]),
        (1, None, [("a",), ("b",), ("c",)]),
        (None, None, [("a", "b", "c")]),
    ],
)
def test_groups_of_systems_that_are_seen_at_once(
    per_item: int | None, ours: str | None, groups: list[tuple[str, ...]]
) -> None:
    assert creation.groups(("a", "b", "c"), per_item, ours) == groups


def test_nothing_in_the_clips_tells_the_system(tmp_path: Path) -> None:
    """Not their names, and not what else stands in the files."""
    folder = study(tmp_path)
    made = design.read(folder)
    files = list((folder / design.CLIPS).iterdir())
    assert made.clips == {path.name for path in files}
    assert len(files) == 2 + 2 * 2 + 2  # sources, results and shuffled sources
    originals = (tmp_path / "clips-of-systems" / "ours").iterdir()
    assert all(b"ours" in path.read_bytes() for path in originals)
    for path in files:
        assert len(path.stem) == 16
        assert b"ours" not in path.read_bytes()
        assert b"other" not in path.read_bytes()


def test_the_clips_of_plain_folders_are_those_of_the_design(tmp_path: Path) -> None:
    folder = study(tmp_path)
    made = design.read(folder)
    item = made.items[made.judged[1]]
    assert list(item.options) == ["other", "ours"]
    assert item.text == "prompt, number 1"
    assert (made.cases[item.case].clip, made.cases[item.case].prompt) == ("clip1", item.text)
    # `other` has one frame more than `ours` (8), and min_play is that of the longest clip.
    lengths = {
        name: len(video.read(folder / "clips" / file)) for name, file in item.options.items()
    }
    assert lengths == {"ours": 8, "other": 9}
    assert item.min_play == 9 / 8


def test_the_clips_of_a_benchmark_are_copied_byte_for_byte(tmp_path: Path) -> None:
    source = bench_folder(tmp_path / "bench", {"dmt": [0.5, 0.25], "sdedit": [0.75, 1]})
    better = {"motion_fidelity_plain": "higher", "unused": "lower"}
    config = StudyConfig(folder=source, ours="dmt", out=tmp_path / "study")
    folder = creation.create(config, better).run()
    made = design.read(folder)
    assert made.metrics == {"motion_fidelity_plain": "higher"}
    assert made.cases[1].scores == {
        "dmt": {"motion_fidelity_plain": 0.25},
        "sdedit": {"motion_fidelity_plain": 1.0},
    }
    item = made.items[0]
    copied = folder / "clips" / item.options["sdedit"]
    assert copied.read_bytes() == (source / "videos" / "sdedit0.mp4").read_bytes()


def test_a_check_is_the_source_against_its_frames_in_another_order(tmp_path: Path) -> None:
    folder = study(tmp_path)
    made = design.read(folder)
    assert len(made.checks) == 2
    item = made.items[made.checks[0]]
    assert item.options[SOURCE] == item.source
    source = video.read(folder / "clips" / item.source).frames.astype(float)
    shuffled = video.read(folder / "clips" / item.options[SHUFFLED]).frames.astype(float)
    distances = np.abs(source[:, None] - shuffled).mean((2, 3, 4))
    order = distances.argmin(0)
    assert sorted(order) == list(range(8))
    assert np.abs(np.diff(order)).min() >= 2


def test_a_source_without_motion_gives_no_check(tmp_path: Path) -> None:
    """Its frames look the same in every order. Here only the last frame differs."""
    folder = plain_folders(tmp_path / "clips", ["ours", "other"])
    still = np.repeat(moving(1, 32, 48), 8, 0)
    still[4:] = 255 - still[4:]
    encode(folder / "source" / "clip0.mp4", moving(8, 32, 48)[[0, 7, 1, 6, 2, 5, 3, 4]])
    encode(folder / "source" / "clip1.mp4", still)
    events = list(creation.create(StudyConfig(folder=folder, out=tmp_path / "study")))
    (note,) = [event.text for event in events if isinstance(event, Note)]
    assert note.startswith("only 1 attention checks")
    made = design.read(tmp_path / "study")
    assert [made.cases[made.items[index].case].clip for index in made.checks] == ["clip1"]
    assert made.checks_per_rater == 1


def test_the_settings_of_a_study(tmp_path: Path) -> None:
    text = tmp_path / "consent.txt"
    text.write_text("About {time}.")
    folder = study(tmp_path, "mos", limit=1, min_play=45, consent=text, items=9, checks=0)
    made = design.read(folder)
    assert [item.options.keys() for item in made.items] == [{"other"}, {"ours"}]
    assert {item.min_play for item in made.items} == {45}
    assert (made.items_per_rater, made.checks_per_rater) == (2, 0)
    assert made.consent == "About 2 minutes."  # 2 x (45 s and 4 s for the question)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"ours": "our"}, UnknownName, "unknown system 'our'; did you mean ours"),
        ({"systems": ("ours",)}, BadCall, "`form=2afc` compares two systems"),
        ({"consent": Path("none.txt")}, BadCall, "`consent` is none.txt, which is not a UTF-8"),
        ({"form": "mos", "ours": "ours"}, BadCall, "`ours` has no meaning with `form=mos`"),
        ({"items": 0}, BadCall, "`items` must be at least 1, got 0"),
        ({"checks": -1}, BadCall, "`checks` must be at least 0, got -1"),
        ({"min_play": float("nan")}, BadCall, "`min_play` must be from 0 to 600 seconds, got nan"),
        ({"raters": 0}, BadCall, "`raters` must be at least 1"),
        ({"title": " "}, BadCall, "`title` must not be empty"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], kind: type[BadCall], message: str
) -> None:
    folder = plain_folders(tmp_path / "clips", ["ours", "other"], 1)
    with pytest.raises(kind, match=message):
        creation.create(StudyConfig(**{"folder": folder, "out": tmp_path / "s", **changes})).run()
    assert not (tmp_path / "s").exists()


def test_an_existing_folder_is_not_replaced(tmp_path: Path) -> None:
    folder = study(tmp_path)
    before = (folder / design.DESIGN).read_bytes()
    with pytest.raises(BadCall, match=r"`out` is .*, which exists already"):
        creation.create(StudyConfig(folder=tmp_path / "clips-of-systems", out=folder)).run()
    assert (folder / design.DESIGN).read_bytes() == before
