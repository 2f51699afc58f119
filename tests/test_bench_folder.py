"""The folder of a benchmark holds the rows that a run would make now, and no others."""

import json
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from recast.backbones.base import Settings
from recast.bench import rows, runner
from recast.bench.runner import BenchConfig, Outcome
from recast.errors import BadCall
from recast.events import Event, job
from recast.media import video
from recast.media.video import Video
from recast.methods import dmt
from recast.motions.motion import Motion

from . import clips

HEAD = """
about = "Two clips"
methods = ["source", "quick"]
backbone = "gaussian"
[[variant]]
name = "quick"
method = "unguided"
steps = 1
[[variant]]
name = "inverted"
method = "dmt"
preset = "shapes"
steps = 2
config = { inner_steps = 1, guided = 0.5 }
"""
CLIPS = """
[[clip]]
file = "a.mp4"
prompts = ["a red ring"]
[[clip]]
file = "b.mp4"
prompts = ["a red ring"]
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Two clips of 30 frames at 30 fps; the model sees 8 frames at 8 fps, 16x16 of them."""
    frames = clips.moving(30, 24, 32)
    Video(frames, 30).save(tmp_path / "a.mp4")
    Video(255 - frames, 30).save(tmp_path / "b.mp4")
    path = tmp_path / "two.toml"
    path.write_text(HEAD + CLIPS)
    return path


def run(suite: Path, *methods: str, **options: Any) -> list[dict[str, Any]]:
    """The table that a run leaves."""
    settings: dict[str, Any] = {
        "suite": str(suite),
        "out": suite.parent / "out",
        "methods": methods,
    }
    last = runner.bench(BenchConfig(**(settings | options)))
    last.run()
    outcome: Outcome = last.result
    assert outcome.missing == 0
    table = pq.read_table(outcome.folder / rows.TABLE).to_pylist()
    assert len(table) == outcome.rows
    page = outcome.report.read_text(encoding="utf-8")
    assert f"<dt>rows</dt><dd>{outcome.rows}</dd>" in page
    return table


def made(table: list[dict[str, Any]]) -> dict[tuple[str, str, int], str]:
    """When each row was made, and by what."""
    return {(r["clip"], r["variant"], r["seed"]): f"{r['finished']} {r['stamp']}" for r in table}


def test_runs_of_other_methods_clips_and_seeds_extend_one_table(suite: Path) -> None:
    first = made(run(suite, "quick", seeds=2))
    assert len(first) == 4
    second = made(run(suite, "source", limit=1))
    assert first.items() <= second.items()
    assert second.keys() - first.keys() == {("a", "source", 0)}


def test_rows_of_a_changed_suite_are_not_in_the_table(suite: Path) -> None:
    """They stay in the folder, and return to the table when the change is undone."""
    before = made(run(suite, "quick"))
    renamed = CLIPS.replace('file = "b.mp4"', 'file = "b.mp4"\nname = "c"')
    changed = {
        "one clip is another": HEAD + renamed,
        "the variant is another": HEAD.replace("steps = 1", "steps = 2") + CLIPS,
        "other frames are taken": HEAD + "[source]\nframes = 7\n" + CLIPS,
    }
    for change, text in changed.items():
        suite.write_text(text)
        found = made(run(suite, "source"))
        kept = {"a"} if change == "one clip is another" else set()
        assert {clip for clip, variant, _ in found if variant == "quick"} == kept, change
    suite.write_text(HEAD + CLIPS)
    again = made(run(suite, "source"))
    assert before.items() <= again.items()


def test_rows_of_other_settings_are_not_in_the_table(suite: Path) -> None:
    run(suite, "quick", limit=1)
    assert {row["variant"] for row in run(suite, "source", limit=1)} == {"quick", "source"}
    changed = run(suite, "source", limit=1, settings=Settings(dynamic_guidance=True))
    assert {row["variant"] for row in changed} == {"source"}


def test_a_removed_folder_of_results_is_not_in_the_table(suite: Path) -> None:
    theirs = suite.parent / "theirs"
    theirs.mkdir()
    (theirs / "a-a-red-ring.mp4").write_bytes((suite.parent / "a.mp4").read_bytes())
    name = f"external:{theirs}"
    assert {row["variant"] for row in run(suite, name, "source", limit=1)} == {name, "source"}
    theirs.rename(suite.parent / "elsewhere")
    assert {row["variant"] for row in run(suite, "source", limit=1)} == {"source"}


def test_results_of_other_systems_are_scored_again_when_they_change(suite: Path) -> None:
    theirs = suite.parent / "theirs"
    theirs.mkdir()
    Video(clips.moving(8, 24, 32), 8).save(theirs / "a-a-red-ring.mp4")
    name, key = f"external:{theirs}", ("a", f"external:{theirs}", 0)
    first = made(run(suite, name, limit=1))
    assert made(run(suite, name, limit=1)) == first
    Video(clips.moving(8, 24, 32)[::-1], 8).save(theirs / "a-a-red-ring.mp4")
    # Nobody asks for it now, and what it was is not in the table.
    assert key not in made(run(suite, "source", limit=1))
    second = made(run(suite, name, limit=1))
    assert second[key] != first[key]
    assert made(run(suite, "source", limit=1))[key] == second[key]


def test_a_folder_of_results_says_which_system_made_them(suite: Path) -> None:
    theirs = suite.parent / "theirs"
    theirs.mkdir()
    Video(clips.moving(8, 24, 32), 8).save(theirs / "a-a-red-ring.mp4")
    name = f"external:{theirs}"
    (plain,) = run(suite, name, limit=1)
    about = theirs / "system.toml"
    about.write_text('system = "Gen-1"\nversion = "June 2023"\nseconds = 60\n')
    (told,) = run(suite, name, limit=1)
    assert json.loads(told["settings"]) == {
        "system": "Gen-1",
        "version": "June 2023",
        "seconds": 60.0,
    }
    assert (told["seconds"], scores(told)) == (60.0, scores(plain))
    about.write_text('system = "Gen-1"\nqualitative = true\n')
    (shown,) = run(suite, name, limit=1)
    assert shown["notes"] == "shown without numbers, as its system.toml says"
    assert shown["video"] == plain["video"]
    assert (shown["error"], shown["seconds"], scores(shown)) == (None, None, {})
    page = (suite.parent / "out" / "report.html").read_text()
    assert "Gen-1" in page
    assert "data:video/mp4" in page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = 'one'", "system"),
        ("system = ''", "system"),
        ("system = 'x'\nspeed = 3", "speed"),
        ("system = 'x'\nseconds = -1", "seconds"),
        ("system = 'x'\nseconds = nan", "seconds"),
        ("system: x", "is not TOML"),
    ],
)
def test_mistakes_in_a_system_file_are_found_before_anything_runs(
    suite: Path, text: str, message: str
) -> None:
    theirs = suite.parent / "theirs"
    theirs.mkdir()
    (theirs / "system.toml").write_text(text)
    with pytest.raises(BadCall, match=f"system.toml.*{message}"):
        run(suite, f"external:{theirs}", limit=1)


def test_clips_of_other_systems_are_compared_with_the_models_input(suite: Path) -> None:
    """The source has the same cut and size whichever other methods run."""
    theirs, name = suite.parent / "theirs", f"external:{suite.parent / 'theirs'}"
    seen = Video(clips.moving(30, 24, 32)[[int(30 * index / 8) for index in range(8)]], 8)
    video.fit(seen, 16, 16, "crop").save(theirs / "a-a-red-ring.mp4")
    found = []
    for other in ("source", "quick"):
        table = run(suite, name, other, limit=1, out=suite.parent / other)
        found += [row for row in table if row["variant"] == name]
    one, two = found
    assert one["stamp"] == two["stamp"]
    assert scores(one) == scores(two)
    assert one["metric.pixel_error"] < 0.05
    assert one["metric.motion_fidelity_plain"] > 0.95


def test_rows_of_earlier_versions_are_still_valid(tmp_path: Path) -> None:
    """Settings of the tools that these versions did not have do not change the stamp."""
    committed = Path(__file__).parents[1] / "benchmarks" / "results" / "shapes.parquet"
    table = pq.read_table(committed)
    whole = table.to_pylist()
    clip = min(row["clip"] for row in whole)
    chosen = [
        index
        for index, row in enumerate(whole)
        if (row["clip"], row["variant"], row["seed"]) == (clip, "source", 0)
    ]
    pq.write_table(table.take(chosen), tmp_path / "rows.parquet")
    options: dict[str, Any] = {"methods": ("source",), "limit": 1, "seeds": 1}
    config = BenchConfig(
        suite="shapes", out=tmp_path / "out", have=(tmp_path / "rows.parquet",), **options
    )
    assert runner.bench(config).run().missing == 0
    adopted = rows.read(tmp_path / "out")
    assert len(adopted) == len(chosen) == 2  # two prompts
    finished = {whole[index]["finished"] for index in chosen}
    assert {row["finished"] for row in adopted} == finished  # they were not computed again
    assert {row["metric.motion_fidelity"] for row in adopted} == {1}  # the retired metric
    assert "(retired)" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def scores(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name.startswith(rows.METRIC)}


def test_imported_rows_replace_failed_and_outdated_rows(suite: Path) -> None:
    good = run(suite, "quick", "source")
    table, out = suite.parent / "out" / rows.TABLE, suite.parent / "mine"
    failed, stale, *_ = good
    rows.write(out, failed | {"error": "no luck", "finished": "today", "video": None})
    rows.write(out, stale | {"stamp": "other settings", "finished": "today"})
    (out / stale["video"]).parent.mkdir()
    (out / stale["video"]).write_bytes(b"a clip of the other settings")
    assert run(suite, "quick", "source", out=out, have=(table,)) == good
    assert not (out / stale["video"]).exists()


def test_the_saved_source_is_cut_as_the_results_are(suite: Path) -> None:
    shown = suite.parent / "out" / "videos" / "a.mp4"
    run(suite, "source", limit=1)
    assert len(video.read(shown)) == 8
    suite.write_text(HEAD + "[source]\nframes = 6\n" + CLIPS)
    run(suite, "source", limit=1)
    assert len(video.read(shown)) == 6


def test_the_cost_of_learning_has_its_own_columns(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory that learning needs, here 400 MB, is in the row of the run that learned, and in no
    other. The size of the motion is that of its file."""
    monkeypatch.setenv("RECAST_STORE", str(tmp_path / "store"))
    learn, sizes = dmt.Method.learn, []

    @job
    def heavy(*args: Any) -> Generator[Event, None, Motion]:
        memory = np.ones(50_000_000)
        motion = yield from learn(*args)
        time.sleep(0.1 + 0 * memory[0])  # memory is sampled twenty times a second
        sizes.append(motion.save(tmp_path / "motion.safetensors").stat().st_size)
        return motion

    monkeypatch.setattr(dmt.Method, "learn", heavy)
    (row,) = run(suite, "inverted", limit=1)
    assert row["learn_peak_memory_mb"] > row["peak_memory_mb"] + 200
    assert sizes[0] / 1e6 - 0.01 < row["motion_mb"] < sizes[0] / 1e6
    (again,) = run(suite, "inverted", limit=1, out=tmp_path / "again")
    assert again["learn_calls"] == row["learn_calls"] > 0
    assert again["learn_peak_memory_mb"] is None
    assert again["motion_mb"] == row["motion_mb"]


def test_one_cpu_thread_also_limits_opencv(suite: Path) -> None:
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        run(suite, "source", limit=1)
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)
