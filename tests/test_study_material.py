"""What a study is made from: the folder of a benchmark, or folders of clips."""

from pathlib import Path

import pytest

from recast.bench import rows
from recast.errors import BadCall, BadClip, UnknownName
from recast.study import material

from .clips import encode, images, moving
from .studies import bench_folder, plain_folders


def test_a_bench_folder_gives_clips_prompts_and_scores(tmp_path: Path) -> None:
    """Without the source itself, which a benchmark scores as a bound."""
    scores = {"dmt": [0.5, 0.75], "sdedit": [0.25, 1.0], "source": [1, 1]}
    found = material.read(bench_folder(tmp_path, scores))
    assert found.systems == ("dmt", "sdedit")
    assert found.is_bench
    assert found.metrics == ["motion_fidelity_plain"]
    assert [(one.clip, one.prompt, one.source_prompt) for one in found.cases] == [
        ("clip0", "p0", "s0"),
        ("clip1", "p1", "s1"),
    ]
    assert found.cases[1].results["sdedit"] == tmp_path / "videos" / "sdedit1.mp4"
    assert found.cases[1].source == tmp_path / "videos" / "clip1.mp4"
    assert found.cases[1].scores["sdedit"] == {"motion_fidelity_plain": 1.0}


def test_a_case_without_a_result_of_each_system_is_left_out(tmp_path: Path) -> None:
    found = material.read(bench_folder(tmp_path, {"dmt": [0.5, 0.75], "sdedit": [0.25]}))
    assert [one.clip for one in found.cases] == ["clip0"]
    assert found.incomplete == 1
    assert len(material.read(tmp_path, ["dmt"]).cases) == 2


def test_rows_without_their_clips_are_refused(tmp_path: Path) -> None:
    """As in a folder that took them over with --have."""
    (bench_folder(tmp_path, {"dmt": [0.5]}) / "videos" / "dmt0.mp4").unlink()
    with pytest.raises(BadClip, match=r"names the clip videos/dmt0\.mp4, which is not in"):
        material.read(tmp_path)


def test_a_clip_outside_the_folder_is_refused(tmp_path: Path) -> None:
    folder = bench_folder(tmp_path / "bench", {"dmt": [0.5]})
    encode(tmp_path / "secret.mp4", moving(8, 32, 48))
    table = folder / rows.SPREADSHEET
    table.write_text(table.read_text().replace("videos/dmt0.mp4", "../secret.mp4"))
    with pytest.raises(BadClip, match=r"\.\./secret\.mp4"):
        material.read(folder)


def test_plain_folders_give_clips_of_any_kind(tmp_path: Path) -> None:
    folder = plain_folders(tmp_path, ["ours", "other"])
    (folder / "ours" / "case1.mp4").unlink()
    images(folder / "ours" / "case1", moving(8, 32, 48))
    found = material.read(folder)
    assert found.systems == ("other", "ours")
    assert not found.is_bench
    assert [one.prompt for one in found.cases] == ["prompt, number 0", "prompt, number 1"]
    assert found.cases[1].results["ours"] == folder / "ours" / "case1"
    assert found.cases[1].source == folder / "source" / "clip1.mp4"


def test_what_is_missing_in_plain_folders_is_named(tmp_path: Path) -> None:
    folder = plain_folders(tmp_path, ["ours", "other"])
    with pytest.raises(UnknownName, match="unknown system 'our'; did you mean ours"):
        material.read(folder, ["our"])
    (folder / "ours" / "case0.mp4").unlink()
    assert material.read(folder).incomplete == 1
    (folder / "source" / "clip0.mp4").unlink()
    with pytest.raises(BadClip, match=r"has no clip clip0, which prompts\.csv names"):
        material.read(folder)


def test_a_name_that_is_a_path_is_refused(tmp_path: Path) -> None:
    folder = plain_folders(tmp_path, ["ours"])
    (folder / "prompts.csv").write_text("name,source,prompt\n../case0,clip0,x\n")
    with pytest.raises(BadCall, match=r"'\.\./case0' is not the name of a clip"):
        material.read(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("name\ncase0\n", "lacks the column prompt"), ("", "lacks the column name")],
)
def test_a_table_without_its_columns_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (plain_folders(tmp_path, ["ours"]) / "prompts.csv").write_text(text)
    with pytest.raises(BadCall, match=message):
        material.read(tmp_path)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCall, match=r"neither rows\.csv of a benchmark nor prompts\.csv"):
        material.read(tmp_path)
