"""The file of a study's design: it is read as it was written, and mistakes are found."""

import json
from pathlib import Path
from typing import Any

import pytest

from recast.errors import BadCall
from recast.study import design

from .studies import clipless


def test_a_design_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = clipless(tmp_path, "2afc", ["ours", "other"], 3, {"ours": [1, 2, 3], "other": [0, 0, 0]})
    assert design.read(tmp_path) == made
    assert made.clips == {"a.mp4"}
    assert [*made.judged, *made.checks] == list(range(9))


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCall, match=r"has no design\.json; make one with recast study new"):
        design.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "recast-study-0"}, "has not the format recast-study-1"),
        ({"form": "3afc"}, "unknown form '3afc'; did you mean 2afc"),
        ({"tilte": "x"}, "unknown key 'tilte'; did you mean title"),
        ({"items": []}, "has no items"),
        ({"title": None, "items": 3}, "is not a valid design"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    clipless(tmp_path, "2afc", ["ours", "other"], 3)
    path = tmp_path / design.DESIGN
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(BadCall, match=message):
        design.read(tmp_path)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("source", "../design.json", "is not the name of a file in the folder clips"),
        ("source", "b.mp4", "which is not in the folder clips"),
        ("case", 7, "an item names the case 7, which does not exist"),
    ],
)
def test_a_wrong_item_is_named(tmp_path: Path, part: str, value: object, message: str) -> None:
    clipless(tmp_path, "2afc", ["ours", "other"], 3)
    path = tmp_path / design.DESIGN
    content = json.loads(path.read_text())
    content["items"][1][part] = value
    path.write_text(json.dumps(content))
    with pytest.raises(BadCall, match=message):
        design.read(tmp_path)


def test_text_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / design.DESIGN).write_text("{")
    with pytest.raises(BadCall, match="cannot be read as JSON"):
        design.read(tmp_path)
