"""The page's jobs on Ray: what travels, what stops, what is lost. A stand-in takes Ray's place,
but for the last test, which starts a cluster on this machine."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from ray import exceptions

from recast import cli
from recast.errors import BadCall, RunFailed
from recast.events import Note, Step
from recast.media.file_parts import FilePart
from recast.motions.motion import Motion
from recast.pipeline.motion_cache import MotionCache
from recast.web import ray_runner
from recast.web.config import ServeConfig
from recast.web.job_store import Job, JobStore
from recast.web.ray_actor import Begun, Events, Finished, RayActor
from recast.web.ray_runner import RayRunner, Share
from recast.web.ray_workers import RayWorkers, divide
from recast.web.requests import EvaluateRequest, as_json
from recast.web.server_folder import ServerFolder
from recast.web.worker import LocalRunner, Worker

from .web_servers import gaussian, server_folder, wait_for

LONG = 10_000
"""The most sampling steps that the model takes; they last far longer than a test waits."""


@dataclass
class StandIn:
    """A module `ray` whose actors run in this process, one message for each call of `next`."""

    make: Callable[..., Any] = RayActor
    is_stuck: bool = False
    """Whether an actor sends nothing, as in one very long step."""
    lost_after: int | None = None
    """The number of messages after which an actor is lost."""
    dead: list[Any] = field(default_factory=list)
    """The actors that were lost."""
    started: list[Any] = field(default_factory=list)
    killed: list[Any] = field(default_factory=list)
    called: list[tuple[Any, ...]] = field(default_factory=list)
    """The arguments of `run`."""
    exceptions = exceptions

    def remote(self, **options: Any) -> Any:
        return lambda kind: SimpleNamespace(
            options=lambda **taken: SimpleNamespace(remote=self._start)
        )

    def _start(self, *arguments: Any) -> Any:
        actor = self.make(*arguments)
        self.started.append(actor)

        def run(*arguments: Any) -> "Stream":
            self.called.append(arguments)
            return Stream(actor.run(*arguments), 0 if actor in self.dead else self.lost_after)

        handle = SimpleNamespace(
            actor=actor,
            run=SimpleNamespace(options=lambda **options: SimpleNamespace(remote=run)),
            stop=SimpleNamespace(remote=actor.stop),
        )
        return handle

    def wait(self, waiting: list[Any], timeout: float, **options: Any) -> tuple[Any, Any]:
        ready = [one for one in waiting if not (self.is_stuck and isinstance(one, Stream))]
        if not ready:
            time.sleep(timeout)
        return ready[:1], [one for one in waiting if one not in ready[:1]]

    def get(self, message: Any) -> Any:
        if isinstance(message, Exception):
            raise message
        return message

    def kill(self, handle: Any) -> None:
        self.killed.append(handle.actor)


class Stream:
    """The messages of an actor; an exception is the last one, as in a stream of Ray."""

    def __init__(self, messages: Iterator[Any], lost_after: int | None) -> None:
        self._messages, self._left = messages, lost_after

    def __next__(self) -> Any:
        if self._left == 0:
            return exceptions.ActorDiedError()
        if self._left is not None:
            self._left -= 1
        try:
            return next(self._messages)
        except StopIteration:
            raise
        except Exception as error:
            return exceptions.RayTaskError("run", "Traceback (most recent call last):", error)


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    return server_folder(tmp_path / "server")


@pytest.fixture
def store(folder: ServerFolder) -> JobStore:
    return JobStore(folder.database)


def runner(ray: StandIn, folder: ServerFolder) -> RayRunner:
    return RayRunner(ray, Share(1, 0), folder, threading.Event())


def claimed(store: JobStore, request: Any, kind: str = "transfer", id: str = "") -> Job:
    store.add(kind, "me", as_json(request), id=id)
    job = store.claim("w")
    assert job is not None
    return job


def ran(ray: StandIn, folder: ServerFolder, job: Job) -> dict[str, Any]:
    result = runner(ray, folder).run(job, lambda: True).run()
    assert result is not None
    return result


def files(folder: ServerFolder) -> dict[str, bytes]:
    """The files of all jobs; those of the manifests, which hold times, count as empty."""
    found = {path: path.read_bytes() for path in folder.root.glob("jobs/**/*") if path.is_file()}
    return {
        str(path.relative_to(folder.root)): b"" if path.name == "manifest.json" else content
        for path, content in found.items()
    }


def test_a_job_on_ray_leaves_the_files_and_the_result_of_a_local_worker(
    folder: ServerFolder, store: JobStore, tmp_path: Path
) -> None:
    request = gaussian(draw={"steps": 3, "samples": 2, "seed": 4})
    job = claimed(store, request)
    result = ran(StandIn(), folder, job)
    local = server_folder(tmp_path / "local")
    own = LocalRunner(local).run(job, lambda: True).run()
    assert result == own
    assert files(folder) == files(local)
    assert f"jobs/{job.id}/result/seed-5/video.mp4" in files(folder)
    kept, known = (Motion.load(one.motion(job.id)) for one in (folder, local))
    costs = kept.metadata.pop("cost"), known.metadata.pop("cost")
    assert len({cost["network_calls"] for cost in costs}) == 1  # their seconds differ
    assert kept.metadata == known.metadata
    assert all(kept.tensors[name].equal(known.tensors[name]) for name in known.tensors)
    assert not list((MotionCache.default().folder / "jobs").glob(".recast-*/*"))
    motion = claimed(store, gaussian(3, clip=f"motion:{job.id}"))
    assert ran(StandIn(), folder, motion)["clip_name"] == f"{job.id}.safetensors"


def test_the_files_that_a_job_names_travel(folder: ServerFolder, store: JobStore) -> None:
    images = folder.clips / "ab12cd34" / "walk"
    images.mkdir(parents=True)
    for name in ("0.png", "1.png"):
        (images / name).write_bytes(b"an image")
    id = "12ab34cd"
    mask = folder.job(id) / "mask.png"
    mask.parent.mkdir(parents=True)
    mask.write_bytes(bytes(range(256)) * 2**16)  # two parts
    ray = StandIn(make=Idle)
    ran(ray, folder, claimed(store, gaussian(clip="clip:ab12cd34", mask="drawn"), id=id))
    assert received(ray) == {
        "clips/ab12cd34/walk/0.png": b"an image",
        "clips/ab12cd34/walk/1.png": b"an image",
        f"jobs/{id}/mask.png": mask.read_bytes(),
    }
    request = EvaluateRequest(clip="clip:ab12cd34", result="sample:dots", prompt="a cat")
    ran(ray, folder, claimed(store, request, "evaluate"))
    assert received(ray)["samples/dots.mp4"] == folder.sample("dots").read_bytes()


class Idle(RayActor):
    """An actor that does nothing."""

    def run(self, *arguments: Any) -> Iterator[Any]:
        yield Finished(result={})


def received(ray: StandIn) -> dict[str, bytes]:
    """The files of the last job."""
    files: dict[str, bytes] = {}
    for part in ray.called[-1][3]:
        files[part.name] = files.get(part.name, b"") + part.data
    return files


def test_an_error_names_the_files_of_the_server(folder: ServerFolder, store: JobStore) -> None:
    broken = folder.samples / "broken.mp4"
    broken.write_bytes(b"no clip")
    with pytest.raises(RunFailed) as caught:
        ran(StandIn(), folder, claimed(store, gaussian(3, clip="sample:broken")))
    assert str(broken) in str(caught.value)
    assert ".recast-" not in str(caught.value)


def test_an_actor_with_another_version_refuses_the_job(
    folder: ServerFolder, store: JobStore
) -> None:
    ray = StandIn(make=lambda limits, version: RayActor(limits, "0.0.1"))
    with pytest.raises(RunFailed, match=r"and the server has 0\.0\.1; install the same version"):
        ran(ray, folder, claimed(store, gaussian()))


def test_a_lost_actor_leaves_its_job_interrupted_and_is_replaced(
    folder: ServerFolder, store: JobStore
) -> None:
    ray = StandIn(lost_after=2)
    worker = Worker(folder, "w")
    worker.runner = runner(ray, folder)
    job = claimed(store, gaussian())
    worker.do(job)
    ended = store.get(job.id)
    assert ended.state == "interrupted"
    assert "was lost, with its process or its machine (ActorDiedError)" in ended.error
    assert not folder.job(job.id).exists()
    ray.lost_after = None
    store.resume(job.id)
    resumed = store.claim("w")
    assert resumed is not None
    worker.do(resumed)
    assert store.get(job.id).state == "done"
    assert store.get(job.id).error == ""
    assert len(ray.started) == 2


def test_an_actor_that_was_lost_between_two_jobs_is_replaced(
    folder: ServerFolder, store: JobStore
) -> None:
    ray = StandIn(make=Idle)
    one = runner(ray, folder)
    for _ in range(2):
        assert one.run(claimed(store, gaussian()), lambda: True).run() == {}
    assert len(ray.started) == 1
    ray.dead = ray.started[:]
    assert one.run(claimed(store, gaussian()), lambda: True).run() == {}
    assert len(ray.started) == 2
    ray.lost_after, ray.dead = 0, ray.started[:]
    with pytest.raises(RunFailed, match="could not start a worker"):  # the new one was lost, too
        one.run(claimed(store, gaussian()), lambda: True).run()
    assert len(ray.started) == 3


def test_a_cluster_that_starts_no_worker_fails_the_job(
    folder: ServerFolder, store: JobStore
) -> None:
    ray = StandIn(lost_after=0)
    with pytest.raises(RunFailed, match="could not start a worker"):
        ran(ray, folder, claimed(store, gaussian()))
    ray.lost_after = None
    ran(ray, folder, claimed(store, gaussian()))


def test_a_defect_on_a_worker_is_that_of_the_job(folder: ServerFolder, store: JobStore) -> None:
    class Broken(RayActor):
        def run(self, *arguments: Any) -> Iterator[Any]:
            yield Begun(root="/node")
            raise ZeroDivisionError("division by zero")

    worker = Worker(folder, "w")
    worker.runner = runner(StandIn(make=Broken), folder)
    job = claimed(store, gaussian())
    worker.do(job)
    assert store.get(job.id).state == "failed"
    assert "ZeroDivisionError: division by zero" in store.get(job.id).error


@pytest.mark.parametrize("is_stuck", [False, True])
def test_a_cancelled_job_stops_in_time_and_a_stuck_actor_is_ended(
    folder: ServerFolder, store: JobStore, is_stuck: bool
) -> None:
    ray = StandIn()
    worker = Worker(folder, "w")
    worker.runner = runner(ray, folder)
    job = claimed(store, gaussian(LONG))
    thread = threading.Thread(target=worker.do, args=(job,))
    thread.start()
    wait_for(store, job.id, ("running",), steps=2)
    ray.is_stuck = is_stuck
    begin = time.monotonic()
    store.cancel(job.id)
    wait_for(store, job.id, ("cancelled",))
    assert time.monotonic() - begin < 2
    thread.join()
    assert ray.killed == (ray.started if is_stuck else [])
    assert not folder.job(job.id).exists()


def test_a_job_that_waits_for_the_cluster_says_so(
    folder: ServerFolder, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_runner, "_PATIENCE_SECONDS", 0.0)
    ray = StandIn(is_stuck=True)
    work = runner(ray, folder).run(claimed(store, gaussian()), lambda: True)
    assert next(work) == Note(text="the Ray cluster did not start a worker for this job at once")
    work.close()
    assert ray.killed == ray.started


@pytest.mark.parametrize(
    "name",
    [
        "jobs/{id}/result/../../../escaped",
        "jobs/{id}/escaped",
        "jobs/ab12cd34/result/escaped",
        "motions/ab12cd34.safetensors",
        "../escaped",
        "/tmp/escaped",
        "jobs.sqlite3",
        "",
    ],
)
def test_a_worker_writes_only_the_results_of_its_job(
    folder: ServerFolder, store: JobStore, name: str
) -> None:
    class Foreign(RayActor):
        def run(self, *arguments: Any) -> Iterator[Any]:
            yield Begun(root="/node")
            yield Events(events=[Step(stage="sample", index=1, total=1)])
            yield FilePart(name=f"jobs/{arguments[1]}/result/video.mp4", data=b"video")
            yield FilePart(name=name.format(id=arguments[1]), data=b"escaped")
            yield Finished(result={})

    before = sorted(folder.root.rglob("*"))
    with pytest.raises(BadCall, match="a worker sent"):
        ran(StandIn(make=Foreign), folder, claimed(store, gaussian()))
    assert sorted(path for path in folder.root.rglob("*") if "sqlite" not in path.name) == [
        path for path in before if "sqlite" not in path.name
    ]


@pytest.mark.parametrize(
    ("nodes", "jobs", "expected"),
    [
        ([(2, 0)], None, (1, (2, 0))),
        ([(2, 0)], 2, (2, (1, 0))),
        ([(2, 0)], 3, (3, (1, 0))),  # the third one waits
        ([(0, 0), (16, 0), (2, 0)], None, (4, (4, 0))),
        ([(2, 0)] * 5, None, (5, (2, 0))),
        ([(16, 0)], 1, (1, (16, 0))),
        ([(6, 0), (6, 0)], 3, (3, (3, 0))),
        ([(64, 8), (16, 4), (8, 0)], None, (12, (4, 1))),
        ([(64, 8)], 3, (3, (8, 1))),
    ],
)
def test_the_resources_of_a_cluster_are_divided(
    nodes: list[tuple[int, int]], jobs: int | None, expected: tuple[int, tuple[int, int]]
) -> None:
    resources = [{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in nodes]
    assert divide(resources, jobs) == expected


def test_a_cluster_without_a_processor_is_refused() -> None:
    with pytest.raises(BadCall, match="has no CPUs"):
        divide([{"memory": 1.0}])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ray": "local", "devices": ("cpu",)}, "exclude each other"),
        ({"ray": "local", "ray_jobs": 0}, "must be at least 1"),
        ({"ray_jobs": 2}, "beside `ray`"),
    ],
)
def test_settings_of_ray_that_make_no_sense(values: dict[str, Any], words: str) -> None:
    with pytest.raises(BadCall, match=words):
        ServeConfig(**values)


def test_the_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    folder = str(tmp_path / "server")
    assert cli.main(["serve", "--folder", folder, "--port", "0", "--ray"]) == 2
    assert "pip install '.[ray]' in Recast's own folder" in capsys.readouterr().err


def test_an_address_of_ray_client_is_refused() -> None:
    from recast.ray_cluster import connected

    with pytest.raises(BadCall, match="an address of Ray Client"):
        connected("ray://head:10001")


def actors() -> list[psutil.Process]:
    """The processes of the actors that this process has started."""
    found = psutil.Process().children(recursive=True)
    return [one for one in found if "RayActor" in " ".join(one.cmdline())]


@pytest.mark.slow
def test_two_jobs_at_once_on_a_cluster_of_this_machine(
    folder: ServerFolder, store: JobStore
) -> None:
    """One is cancelled, the other one loses its actor, and the workers go on with the next job."""
    workers = RayWorkers(folder, store, "local", jobs=2)
    workers.start()
    try:
        first, second = (store.add("transfer", "me", as_json(gaussian(LONG))) for _ in range(2))
        running = [wait_for(store, id, ("running",), 300, steps=2) for id in (first, second)]
        assert len({job.worker for job in running}) == 2
        assert len(actors()) == 2
        folders = (MotionCache.default().folder / "jobs").glob(".recast-*/jobs/*")
        assert {path.name for path in folders} == {first, second}
        begin = time.monotonic()
        store.cancel(first)
        wait_for(store, first, ("cancelled",))
        assert time.monotonic() - begin < 2
        for actor in actors():
            if "RayActor.run" in " ".join(actor.cmdline()):
                os.kill(actor.pid, signal.SIGKILL)
        assert "was lost" in wait_for(store, second, ("interrupted",)).error
        last = store.add("transfer", "me", as_json(gaussian(3)))
        done = wait_for(store, last, ("done",))
        assert (folder.job(last) / "result" / "video.mp4").read_bytes()[4:8] == b"ftyp"
        assert folder.motion(done.result["motion"]).is_file()
        left = actors()
    finally:
        workers.stop()
    assert not psutil.wait_procs(left, timeout=10)[1]
