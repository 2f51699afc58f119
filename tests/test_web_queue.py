"""The queue of the page: the states of a job, and what each process may write."""

import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from recast.errors import BadCall
from recast.events import Note, Step
from recast.web import views
from recast.web.config import ServeConfig
from recast.web.durations import usual_seconds
from recast.web.job_store import Job, JobStore
from recast.web.progress import Progress
from recast.web.service import Service


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs.sqlite3")


def test_jobs_are_taken_in_the_order_in_which_they_came(store: JobStore) -> None:
    ids = [store.add("transfer", "me", {"n": n}) for n in range(5)]
    assert [store.ahead_of(store.get(id)) for id in ids] == [0, 1, 2, 3, 4]
    taken = [store.claim("w") for _ in range(6)]
    assert [job and job.id for job in taken] == [*ids, None]
    assert [job.request["n"] for job in store.jobs()] == [4, 3, 2, 1, 0]


def test_two_workers_never_take_the_same_job(store: JobStore) -> None:
    ids = {store.add("transfer", "me", {}) for _ in range(40)}
    taken: list[str] = []

    def take(name: str) -> None:
        while job := store.claim(name):
            taken.append(job.id)

    threads = [threading.Thread(target=take, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(ids)


def test_a_worker_writes_only_into_a_job_that_is_its_own(store: JobStore) -> None:
    id = store.add("transfer", "me", {})
    first = store.claim("first")
    assert first is not None
    assert store.report(first, {"index": 1})
    store.interrupt("first")
    assert not store.report(first, {"index": 2})
    assert not store.finish(first, "done")
    assert (store.get(id).state, store.get(id).progress) == ("interrupted", {"index": 1})
    store.resume(id)
    second = store.claim("second")
    assert second is not None
    assert not store.finish(first, "done")
    assert store.finish(second, "done", result={"results": ["."]})
    assert store.get(id).result == {"results": ["."]}


def test_cancel(store: JobStore) -> None:
    waiting, running = (store.add("transfer", "me", {}) for _ in range(2))
    store.claim("w")
    store.cancel(running)
    assert store.get(running).state == "cancelled"  # the second one was still waiting
    store.cancel(waiting)
    job = store.get(waiting)
    assert job.state == "running"
    assert not store.may_go_on(job)
    assert not store.report(job, {})
    assert store.interrupt("w")
    assert store.get(waiting).state == "cancelled"


def test_only_a_job_that_stopped_can_be_resumed_or_removed(store: JobStore) -> None:
    id = store.add("transfer", "me", {})
    with pytest.raises(BadCall, match="only a job that was interrupted"):
        store.resume(id)
    store.remove(id)
    assert store.get(id).state == "queued"
    store.cancel(id)
    store.remove(id)
    with pytest.raises(BadCall, match="does not exist"):
        store.get(id)


def test_counts_and_lists_of_a_client(store: JobStore) -> None:
    for client, count in (("a", 3), ("b", 2)):
        for _ in range(count):
            store.add("transfer", client, {}, batch=f"of {client}")
    store.cancel(store.jobs(client="a")[0].id)
    assert (store.count(), store.count(client="a"), store.count(client="b")) == (4, 2, 2)
    assert len(store.jobs(client="a", limit=1)) == 1
    assert len(store.jobs(batch="of b")) == 2


def test_progress_tells_the_seconds_left_of_the_stage() -> None:
    now = [100.0]
    progress = Progress(lambda: now[0])
    assert progress.as_json()["seconds_left"] is None
    progress.add(Step(stage="load", index=1, total=1))
    for index in (1, 2, 3):  # two seconds each
        now[0] += 2
        progress.add(Step(stage="sample", index=index, total=10, metrics={"loss": 0.5 / index}))
    progress.add(Note(text="the clip was cropped"))
    shown = progress.as_json()
    assert (shown["stage"], shown["index"], shown["total"]) == ("sample", 3, 10)
    assert shown["seconds_left"] == 14.0
    assert shown["losses"] == [(0, 0.5), (1, 0.25), (2, 0.5 / 3)]
    assert shown["notes"] == ["the clip was cropped"]
    now[0] += 1.5
    assert progress.as_json()["seconds_left"] == 12.5


def test_a_stage_that_resumes_in_the_middle_has_the_pace_of_its_own_steps() -> None:
    now = [0.0]
    progress = Progress(lambda: now[0])
    for index in (21, 22):
        now[0] += 3
        progress.add(Step(stage="sample", index=index, total=25))
    assert progress.as_json()["seconds_left"] == 9.0


def test_many_losses_are_thinned_out_evenly() -> None:
    progress = Progress()
    for index in range(5000):
        progress.add(
            Step(stage="learn", index=index + 1, total=5000, metrics={"loss": float(index)})
        )
    losses = progress.as_json()["losses"]
    assert 100 < len(losses) <= 401
    assert all(step == loss for step, loss in losses)
    assert {b[0] - a[0] for a, b in pairwise(losses)} == {16}


class Clock:
    """The time of day of the queue, set by a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.time", lambda: self.now)

    def run(self, store: JobStore, seconds: float, **request: Any) -> Job:
        """A job that takes so many seconds."""
        id = store.add("transfer", "me", request)
        job = store.claim("w")
        assert job is not None
        self.now += seconds
        assert store.finish(job, "done")
        return store.get(id)


def test_the_usual_time_is_that_of_jobs_which_did_the_same_work(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    same = {"method": "dmt", "draw": {"steps": 25}, "source": {"frames": 16}}
    new = store.get(store.add("transfer", "me", {**same, "prompt": "a cat"}))
    store.cancel(new.id)
    assert usual_seconds(store, new) is None
    for seconds in (10.0, 40.0, 20.0):
        clock.run(store, seconds, **same, prompt=f"{seconds}", clip="clip:a", mask="auto")
    clock.run(store, 500.0, **{**same, "draw": {"steps": 50}})
    clock.run(store, 500.0, **{**same, "source": {"frames": 24}})
    clock.run(store, 500.0, **{**same, "method": "moft"})
    clock.run(
        store,
        20.0,
        **{**same, "draw": {"steps": 25, "seed": 7}, "source": {"frames": 16, "start": 2.0}},
    )
    assert usual_seconds(store, new) == 20.0


def test_the_time_left_is_that_of_the_job_or_else_of_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(ServeConfig(folder=tmp_path))
    store, clock = service.store, Clock(monkeypatch)

    def left(job: Job) -> str:
        return str(views.progress(service, store.get(job.id))["left_label"])

    def begin() -> Job:
        store.add("transfer", "me", {"prompt": "a cat"})
        job = store.claim("w")
        assert job is not None
        return job

    first = begin()
    assert left(first) == ""
    store.report(first, {"seconds_left": 4.0})
    assert left(first) == "about 4 s left in this stage"
    clock.now += 60
    store.finish(first, "done")
    waiting = store.get(store.add("transfer", "me", {"prompt": "a dog"}))
    assert left(waiting) == "such a job usually takes 60 s"
    store.cancel(waiting.id)
    second = begin()
    clock.now += 25
    assert left(second) == "about 35 s left"
    store.report(second, {"seconds_left": 50.0})
    assert left(second) == "about 50 s left"
