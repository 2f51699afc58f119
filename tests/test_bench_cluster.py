"""Work on Ray: its notes and errors if it fails, and the files that it needs. A stand-in takes the
place of Ray."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from recast.backbones.base import Settings
from recast.bench import cluster, rows, runner
from recast.bench.runner import BenchConfig
from recast.bench.suite import Case
from recast.bench.work import Task
from recast.errors import BadCall, BadModel, RecastError, UnknownName
from recast.evaluation import Tools
from recast.events import Note
from recast.media.video import Video
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.source_clip import Source
from recast.ray_cluster import LOCAL

from . import clips

exceptions = pytest.importorskip("ray").exceptions
TASK = Task(
    suite="s",
    cases=(Case(clip="bear", prompt="a robot", file=Path("bear.mp4")),),
    variants=(),
    seeds=(0,),
    backbone="shapes",
    settings=Settings(device="cpu"),
    source=Source(),
    tools=Tools(),
    threads=1,
    done=frozenset(),
)


class StandIn:
    """A module `ray` with one task, whose first result is an error, as Ray delivers it."""

    exceptions = exceptions

    def __init__(self, error: Exception) -> None:
        self.error = error

    def remote(self, **options: Any) -> Any:
        placed = SimpleNamespace(remote=lambda task, sent: iter([task]))
        return lambda work: SimpleNamespace(options=lambda **options: placed)

    def init(self, **options: Any) -> None:
        pass

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1}

    def wait(self, running: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        return running[:1], running[1:]

    def get(self, ready: Any) -> None:
        raise self.error

    def shutdown(self) -> None:
        pass


def worked(error: Exception, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setitem(sys.modules, "ray", StandIn(error))
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness"):  # set by `cluster.work`
        monkeypatch.setenv(name, "0")
    return cluster.work([TASK], LOCAL)


def raised(cause: Exception) -> Exception:
    trace = "Traceback (most recent call last):\n" + 20 * "  File somewhere, line 1, in work\n"
    error: Exception = exceptions.RayTaskError("work", trace, cause)
    return error


def test_a_recast_error_on_a_worker_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadModel, match="no such weights"):
        list(worked(raised(BadModel("no such weights")), monkeypatch))


def test_a_note_gives_the_cause_of_lost_work(monkeypatch: pytest.MonkeyPatch) -> None:
    (note,) = worked(raised(ZeroDivisionError("division by zero")), monkeypatch)
    assert note == Note(text="the work on bear was lost (ZeroDivisionError: division by zero)")
    (note,) = worked(exceptions.WorkerCrashedError(), monkeypatch)
    assert "the work on bear was lost (WorkerCrashedError: The worker died" in note.text


@pytest.mark.parametrize("error", [BadCall("no"), UnknownName("backbone", "shaps", ["shapes"])])
def test_errors_survive_pickling(error: RecastError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))


class OtherMachine(StandIn):
    """A module `ray` whose tasks run when the folder of the suite has another name, so that none of
    its files is found."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hidden = folder, folder.with_name("hidden")

    def remote(self, **options: Any) -> Any:
        def started(work: Any, *arguments: Any) -> Iterator[Any]:
            work, arguments = pickle.loads(pickle.dumps((work, arguments)))
            yield from work(*arguments)

        return lambda work: SimpleNamespace(
            options=lambda **options: SimpleNamespace(
                remote=lambda *arguments: started(work, *arguments)
            )
        )

    def wait(self, running: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        if self.folder.exists():
            self.folder.rename(self.hidden)
        return super().wait(running, **options)

    def get(self, ready: Any) -> Any:
        return ready

    def shutdown(self) -> None:
        self.hidden.rename(self.folder)


MEASURED = ("seconds", "finished", "peak_memory_mb")
"""The ends of the names of columns that differ between two runs."""
SUITE = """
about = "Two clips with masks, and results of another system"
methods = ["unguided", "external:{folder}/theirs"]
backbone = "gaussian"
[[clip]]
file = "my clip.mp4"
prompts = ["a ring", "a star"]
mask = "masks/one.png"
[[clip]]
file = "frames/two"
prompts = ["a ring"]
"""


def test_the_files_of_a_task_travel_to_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "suite"
    for name in ("masks", "frames", "theirs"):
        (folder / name).mkdir(parents=True)
    frames = clips.moving(8, 24, 32)
    Video(frames, 8).save(folder / "my clip.mp4")
    (folder / "frames" / "two").mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / "frames" / "two" / f"{number:05d}.png")
    Image.fromarray(np.eye(24, 32) > 0).save(folder / "masks" / "one.png")
    Video(255 - frames, 8).save(folder / "theirs" / "my clip-a-ring.mp4")
    suite = folder / "suite.toml"
    suite.write_text(SUITE.format(folder=folder))

    def table(out: str, ray: str | None) -> list[dict[str, Any]]:
        runner.bench(BenchConfig(suite=str(suite), out=tmp_path / out, seeds=1, ray=ray)).run()
        return [
            {name: value for name, value in row.items() if not name.endswith(MEASURED)}
            for row in sorted(rows.read(tmp_path / out), key=lambda row: str(row["key"]))
        ]

    here = table("here", None)
    monkeypatch.setitem(sys.modules, "ray", OtherMachine(folder))
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness"):
        monkeypatch.setenv(name, "0")
    there = table("there", "head:6379")
    assert there == here
    assert [bool(row["error"]) for row in here].count(True) == 2  # results that are not there
    assert any(row.get("metric.psnr_outside_mask") for row in here)
    assert [*(MotionCache.default().folder / "bench").iterdir()] == []
