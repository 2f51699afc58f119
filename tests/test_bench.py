"""A benchmark: the rows and report it writes, how it resumes, and which calls it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from recast import cli
from recast.backbones.base import Settings
from recast.bench import rows, runner, summary
from recast.bench.runner import BenchConfig, Outcome
from recast.events import Note
from recast.media import video
from recast.media.atomic_files import locked
from recast.media.video import Video
from recast.methods import unguided
from recast.networks import devices

SUITE = """
about = "Two pairs <for a test>"
methods = ["source", "unguided", "dmt"]
backbone = "gaussian"
seeds = 2
[[world]]
group = "easy"
pairs = 2
changes = ["colour"]
[[world]]
group = "hard"
pairs = 1
[[variant]]
name = "dmt"
method = "dmt"
preset = "shapes"
steps = 5
config = { inner_steps = 1 }
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "small.toml"
    path.write_text(SUITE)
    return path


def run(suite: Path, out: Path, **options: Any) -> tuple[Outcome, list[str]]:
    """The outcome, and the notes on the way."""
    job = runner.bench(BenchConfig(suite=str(suite), out=out, **options))
    events = list(job)
    return job.result, [event.text for event in events if isinstance(event, Note)]


@pytest.fixture(scope="module")
def finished(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "out"
    outcome, notes = run(suite, out)
    assert (outcome.rows, outcome.failed, outcome.missing, notes) == (18, 0, 0, [])
    return out


def numbers(folder: Path, seeds: int = 2) -> dict[tuple[str, str, str, int], dict[str, float]]:
    """Metrics and network calls of every row of the first `seeds` seeds."""
    return {
        (row["clip"], row["prompt"], row["variant"], row["seed"]): {
            name: value
            for name, value in row.items()
            if name.startswith(rows.METRIC) or name in ("calls", "learn_calls", "fingerprint")
        }
        for row in rows.read(folder)
        if row["seed"] < seeds
    }


def test_rows_hold_scores_settings_and_costs(finished: Path) -> None:
    table = pq.read_table(finished / "rows.parquet").to_pylist()
    assert table == rows.read(finished)
    assert len(table) == 18
    for row in table:
        assert row["error"] is None
        assert row["suite"] == "small"
        assert row["metric.motion_fidelity_plain"] is not None
        assert row["clip_model"] == "shapes"
        refused = "CLIP shapes does not know such a result" in (row["notes"] or "")
        assert (row["metric.text_similarity"] is None) == refused
        assert len(video.read(finished / row["video"])) == 8
        if row["variant"] == "dmt":
            assert json.loads(row["config"])["cells"] == 2
            assert (row["backbone"], row["steps"]) == ("gaussian", 5)
            # 3 guided levels of one inner step, and 5 steps with classifier-free guidance.
            assert (row["learn_calls"], row["calls"]) == (6, 3 + 2 * 5)
            assert row["peak_memory_mb"] > 100
        if row["variant"] == "source":
            assert row["metric.motion_fidelity_plain"] == pytest.approx(1)
            assert row["config"] is row["calls"] is None
    header, *lines = (finished / "rows.csv").read_text().splitlines()
    assert header.split(",") == list(table[0])
    assert len(lines) == 18


def test_a_result_that_is_the_same_for_every_seed_is_made_once(finished: Path) -> None:
    """A sample of this `dmt` starts from the inverted noise, and has no other noise."""
    seconds: dict[tuple[str, str], set[float]] = {}
    clips: dict[tuple[str, str], set[bytes]] = {}
    for row in rows.read(finished):
        pair = row["clip"], row["prompt"]
        if row["variant"] == "dmt":
            seconds.setdefault(pair, set()).add(row["seconds"])
        if row["variant"] == "unguided":
            clips.setdefault(pair, set()).add((finished / row["video"]).read_bytes())
    assert [len(found) for found in seconds.values()] == [1, 1, 1]
    assert [len(found) for found in clips.values()] == [2, 2, 2]


def test_a_second_run_makes_only_the_missing_rows(suite: Path, finished: Path) -> None:
    before = rows.read(finished)
    lost = before[4]
    (finished / "rows" / f"{lost['key']}.parquet").unlink()
    written = {path: path.stat().st_mtime_ns for path in (finished / "rows").glob("*.parquet")}
    run(suite, finished)
    new = [
        path.stem
        for path in (finished / "rows").glob("*.parquet")
        if written.get(path) != path.stat().st_mtime_ns
    ]
    assert new == [lost["key"]]
    after = rows.read(finished)
    assert [r["key"] for r in after] == [r["key"] for r in before]
    assert [r["finished"] for r in after if r["key"] != lost["key"]] == [
        r["finished"] for r in before if r["key"] != lost["key"]
    ]


def test_rows_of_another_table_are_not_made_again(
    suite: Path, finished: Path, tmp_path: Path
) -> None:
    """One of the table's rows failed, and one was made with other settings."""
    failed, stale, *_ = pq.read_table(finished / "rows.parquet").to_pylist()
    table = pq.read_table(finished / "rows.parquet").to_pylist()
    table[0]["error"], table[1]["stamp"] = "no luck", "other settings"
    for row in table:
        row["finished"] = "long ago"
    path = tmp_path / "theirs.parquet"
    pq.write_table(rows.as_table(table), path)
    outcome, _ = run(suite, tmp_path / "out", have=(path,))
    made = [row["key"] for row in rows.read(tmp_path / "out") if row["finished"] != "long ago"]
    assert sorted(made) == sorted([failed["key"], stale["key"]])
    assert (outcome.rows, outcome.failed) == (18, 0)
    assert numbers(tmp_path / "out") == numbers(finished)
    clips = {path.stem for path in (tmp_path / "out" / "videos").glob("*.mp4")}
    assert clips & {row["key"] for row in table} == set(made)  # a table has no clips


def test_invalid_tables_are_refused(
    suite: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(SUITE)
    (tmp_path / "no.parquet").write_bytes(b"no table")
    table = pq.read_table(finished / "rows.parquet")
    pq.write_table(table.drop_columns(["stamp"]), tmp_path / "old.parquet")
    pq.write_table(table.append_column("mood", table["clip"]), tmp_path / "new.parquet")
    out = ["--out", str(tmp_path / "out")]
    for path, message in (
        (tmp_path / "no.parquet", "no.parquet is not a table rows.parquet"),
        (tmp_path / "missing.parquet", "missing.parquet is not a table rows.parquet"),
        (tmp_path, "is not a table rows.parquet"),
        (tmp_path / "old.parquet", "old.parquet lacks the column stamp"),
        (tmp_path / "new.parquet", "new.parquet has the column mood"),
    ):
        assert cli.main(["bench", str(suite), *out, "--have", str(path)]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["bench", str(other), *out, "--have", str(finished / "rows.parquet")]) == 2
    assert "holds rows of the suite small, not of other" in capsys.readouterr().err
    assert not rows.read(tmp_path / "out")


def test_a_row_is_made_again_when_its_variant_changes(suite: Path, tmp_path: Path) -> None:
    text = SUITE.replace("seeds = 2", "seeds = 1") + '[[variant]]\nname = "v"\nmethod = "dmt"\n'
    path = tmp_path / "small.toml"
    path.write_text(text)
    out = tmp_path / "out"
    run(path, out, methods=("v",), limit=1)
    before = rows.read(out)
    path.write_text(text + "config = {guided = 0.0}\n")
    run(path, out, methods=("v",), limit=1)
    after = rows.read(out)
    assert [row["key"] for row in before] == [row["key"] for row in after]
    assert all(a["calls"] < b["calls"] for a, b in zip(after, before, strict=True))


def test_a_row_is_made_again_only_for_settings_that_change_its_numbers(
    suite: Path, tmp_path: Path
) -> None:
    """The row records these settings and no others."""
    out, few = tmp_path / "out", {"methods": ("source", "unguided"), "limit": 1, "seeds": 1}
    run(suite, out, **few)
    before = {row["key"]: row for row in rows.read(out)}
    assert {row["settings"] for row in before.values()} == {None}
    run(suite, out, **few, settings=Settings(gradient_checkpointing=True))
    assert {row["key"]: row for row in rows.read(out)} == before
    outcome, _ = run(suite, out, **few, settings=Settings(dynamic_guidance=True))
    for row in rows.read(out):
        same = row["method"] == "source"
        assert (row == before[row["key"]]) == same
        assert row["settings"] == (None if same else '{"dynamic_guidance": true}')
    assert "dynamic_guidance" in outcome.report.read_text(encoding="utf-8")


def test_the_report_is_one_self_contained_page(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "Two pairs &lt;for a test&gt;" in page
    assert page.count("data:video/mp4;base64,") == 3 * 3  # pairs x (source, unguided, dmt)
    assert page.count("data:image/png;base64,") == 2
    assert "http://" not in page
    assert "https://" not in page
    for name in ("scatter.png", "scatter-true.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    mean = summary.mean(
        [row for row in rows.read(finished) if row["variant"] == "dmt"], "metric.moving_fidelity"
    )
    assert mean is not None
    assert mean.text(3) in page
    lines = (finished / "summary.csv").read_text().splitlines()
    assert any(line.startswith(f"dmt,moving_fidelity,cosine,{mean.value}") for line in lines)


def test_clips_of_other_systems_are_scored(suite: Path, finished: Path, tmp_path: Path) -> None:
    """They are named as `recast transfer` names them; one is missing and one is not a video."""
    folder, out = tmp_path / "theirs", tmp_path / "out"
    folder.mkdir()
    chosen = [
        row for row in rows.read(finished) if row["variant"] == "unguided" and not row["seed"]
    ]
    for row, kind in zip(chosen, ("whole", "damaged", "missing"), strict=True):
        stem = f"{row['clip']}-{'-'.join(row['prompt'].split())}"
        if kind == "whole":
            (folder / f"{stem}.mp4").write_bytes((finished / row["video"]).read_bytes())
        if kind == "damaged":
            (folder / stem).mkdir()
            (folder / stem / "video.mp4").write_bytes(b"no video")
    outcome, notes = run(suite, out, methods=(f"external:{folder}",), seeds=1)
    assert (outcome.rows, outcome.failed) == (3, 2)
    assert len(notes) == 2
    errors = {row["prompt"]: row["error"] for row in rows.read(out)}
    assert errors[chosen[0]["prompt"]] is None
    assert "video.mp4" in errors[chosen[1]["prompt"]]
    assert "has no" in errors[chosen[2]["prompt"]]
    assert "Failed" in outcome.report.read_text(encoding="utf-8")
    assert cli.main(["bench", str(suite), "--out", str(out), "--limit", "1"]) == 1


def test_an_error_inside_a_method_becomes_a_row(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("no luck\ntoday")

    monkeypatch.setattr(unguided.Method, "transfer", broken)
    outcome, _ = run(suite, tmp_path / "out", limit=1, seeds=1, methods=("unguided", "source"))
    found = {row["variant"]: row["error"] for row in rows.read(tmp_path / "out")}
    assert found == {"unguided": "RuntimeError: no luck today", "source": None}
    monkeypatch.undo()
    outcome, _ = run(suite, tmp_path / "out", limit=1, seeds=1, methods=("unguided", "source"))
    assert (outcome.rows, outcome.failed) == (4, 0)  # the clip has two prompts


def started(suite: Path, out: Path, *flags: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "recast", "bench", str(suite), "--out", str(out), *flags]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that starts the tests in the background makes them ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def until_rows(process: "subprocess.Popen[bytes]", out: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list((out / "rows").glob("[!.]*.parquet"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_run_loses_only_the_unfinished_row(
    suite: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = started(suite, out, "--seeds", "1")
    until_rows(process, out, 2)
    process.kill()
    process.wait()
    before = {row["key"]: row["finished"] for row in rows.read(out)}
    assert 2 <= len(before) < 9
    (out / "rows" / ".recast-half.parquet").write_bytes(b"half a row")
    outcome, _ = run(suite, out, seeds=1)
    after = {row["key"]: row["finished"] for row in rows.read(out)}
    assert (outcome.rows, outcome.failed) == (9, 0)
    assert before.items() <= after.items()
    assert not list(out.rglob(".recast-*"))
    assert numbers(out) == numbers(finished, seeds=1)


@pytest.mark.slow
def test_ctrl_c_keeps_the_rows(suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = started(suite, out)
    until_rows(process, out, 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED, errors
    assert rows.read(out)
    assert not list(out.rglob(".recast-*"))


@pytest.mark.slow
def test_ray_makes_the_same_rows_after_a_worker_was_killed(
    suite: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        out = tmp_path / "out"
        address = ray.get_runtime_context().gcs_address
        process = started(suite, out, "--seeds", "1", "--ray", address)
        until_rows(process, out, 1)
        workers = [
            child
            for child in psutil.Process().children(recursive=True)
            if "ray::work" in " ".join(child.cmdline())
        ]
        assert workers
        os.kill(workers[0].pid, signal.SIGKILL)
        errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    finally:
        ray.shutdown()
    assert numbers(out) == numbers(finished, seeds=1)


@pytest.mark.parametrize(("machine", "expected"), [("x86_64", True), ("arm64", False)])
def test_a_note_says_that_the_processor_only_emulates_bfloat16(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, expected: bool
) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda: False)
    monkeypatch.setattr(devices.platform, "machine", lambda: machine)
    settings = Settings(device="cpu", dtype="bfloat16")
    options = {"backbone": "shapes", "methods": ("source",), "limit": 1}
    _, notes = run(suite, tmp_path, settings=settings, **options)
    assert any("no instructions for bfloat16" in note for note in notes) == expected


def test_a_folder_is_for_one_run_and_one_suite(
    suite: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(SUITE)
    assert cli.main(["bench", str(other), "--out", str(finished)]) == 2
    assert "holds rows of the suite small" in capsys.readouterr().err
    with locked(finished):  # test_atomic_files locks from another process
        assert cli.main(["bench", str(suite), "--out", str(finished)]) == 2
    assert "another process is working in" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--seeds", "--limit", "--threads"])
def test_counts_below_one_are_refused(
    flag: str, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", str(suite), flag, "0"]) == 2
    assert f"{flag} must be at least 1, got 0" in capsys.readouterr().err


def test_the_flag_ray_without_a_value_means_this_machine() -> None:
    from recast.cli.flags import local_ray

    assert local_ray(["shapes", "--ray"]) == ["shapes", "--ray", "local"]
    assert local_ray(["--ray", "--seeds", "2"]) == ["--ray", "local", "--seeds", "2"]
    assert local_ray(["--ray", "head:6379", "shapes"]) == ["--ray", "head:6379", "shapes"]


def test_a_call_without_a_suite_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench"]) == 2
    assert "missing: SUITE" in capsys.readouterr().err


def test_a_missing_extra_is_named(
    suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["bench", str(suite), "--ray"]) == 2
    assert "pip install '.[ray]' in Recast's own folder" in capsys.readouterr().err


def test_feature_inversion_rebuilds_the_clip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "waves.mp4"
    frames = np.tile(np.linspace(20, 230, 16).astype(np.uint8)[None, None, :, None], (8, 16, 1, 3))
    Video(frames, 8).save(source)
    argv = ["analyze", "invert-features", str(source), "--backbone", "gaussian", "--seeds", "1"]
    assert cli.main([*argv, "--out", str(tmp_path / "out")]) == 0
    assert "report.html" in capsys.readouterr().out
    error = {row["variant"]: row["metric.pixel_error"] for row in rows.read(tmp_path / "out")}
    assert error.keys() == {"unguided", "full features", "SMM", "SMM, 2x2 cells"}
    assert error["full features"] < error["unguided"]
