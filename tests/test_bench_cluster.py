"""The notes and errors of work that fails on Ray. A stand-in takes the place of Ray."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recast.backbones.base import Settings
from recast.bench import cluster
from recast.bench.suite import Case
from recast.bench.work import Task
from recast.errors import BadCall, BadModel, RecastError, UnknownName
from recast.evaluation.evaluate import Tools
from recast.events import Note
from recast.pipeline.source_clip import Source
from recast.ray_cluster import LOCAL

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
        placed = SimpleNamespace(remote=lambda task: iter([task]))
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
