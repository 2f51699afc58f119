"""Workers of the page: they run jobs by the pipeline, stop, die, and are replaced."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from recast.media import video
from recast.motions.motion import Motion
from recast.web.job_store import Job, JobStore
from recast.web.requests import EvaluateRequest, as_json
from recast.web.server_folder import ServerFolder
from recast.web.supervisor import Supervisor

from .web_servers import gaussian, server_folder, wait_for

pytestmark = pytest.mark.slow
LONG = 10_000
"""The most sampling steps that the model takes; they last far longer than a test waits."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ServerFolder:
    return server_folder(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def store(folder: ServerFolder) -> JobStore:
    return JobStore(folder.database)


@pytest.fixture(scope="module")
def supervisor(folder: ServerFolder, store: JobStore) -> Iterator[Supervisor]:
    supervisor = Supervisor(folder, store, ["cpu"])
    supervisor.start()
    yield supervisor
    supervisor.stop()


def add(store: JobStore, steps: int = 3, **changes: object) -> str:
    return store.add("transfer", "me", as_json(gaussian(steps, **changes)))


def files(folder: ServerFolder, id: str) -> set[str]:
    job = folder.job(id)
    return {str(path.relative_to(job)) for path in job.rglob("*") if path.is_file()}


def test_a_transfer_and_an_evaluation(
    folder: ServerFolder, store: JobStore, supervisor: Supervisor
) -> None:
    id = add(store, score=True, draw={"steps": 3, "samples": 2, "seed": 4})
    done = wait_for(store, id, ("done",))
    assert done.result["results"] == ["seed-4", "seed-5"]
    result = folder.inside(folder.job(id), "result/seed-5/video.mp4")
    assert video.read(result).frames.shape == (8, 16, 16, 3)
    assert {"result/sheet.png", "result/manifest.json"} < files(folder, id)
    assert "preview.webp" not in files(folder, id)
    assert Motion.load(folder.motion(done.result["motion"])).metadata["clip"]["name"] == "dots.mp4"
    valued = [s for s in done.result["scores"][0] if s["value"] is not None]
    assert all(s["value"] >= 0 for s in valued if s["unit"] == "fraction")
    refused = [s["reason"] for s in done.result["scores"][0] if s["name"] == "text_similarity"]
    assert "CLIP shapes does not know" in refused[0]
    other = EvaluateRequest(clip="sample:dots", result="sample:dots", prompt="a cat")
    same = wait_for(store, store.add("evaluate", "me", as_json(other)), ("done",))
    scores = {score["name"]: score["value"] for score in same.result["scores"][0]}
    assert scores["motion_fidelity_plain"] == pytest.approx(1)  # the source against itself


def test_an_error_of_the_library_is_that_of_the_job(
    store: JobStore, folder: ServerFolder, supervisor: Supervisor
) -> None:
    id = add(store, source={"start": 60.0})
    failed = wait_for(store, id, ("failed",))
    assert "`start`" in failed.error
    assert not files(folder, id)
    wait_for(store, add(store), ("done",))  # the worker goes on


def test_cancelling_takes_at_most_two_seconds_and_leaves_no_file(
    store: JobStore, folder: ServerFolder, supervisor: Supervisor
) -> None:
    id, waiting = add(store, LONG), add(store)
    wait_for(store, id, ("running",), steps=2)
    begin = time.monotonic()
    store.cancel(id)
    wait_for(store, id, ("cancelled",))
    assert time.monotonic() - begin < 2
    assert not files(folder, id)
    wait_for(store, waiting, ("done",))


def test_a_worker_that_is_killed_leaves_its_job_interrupted_and_is_replaced(
    store: JobStore, folder: ServerFolder, supervisor: Supervisor
) -> None:
    id, waiting = add(store, LONG), add(store)
    wait_for(store, id, ("running",), steps=2)
    (process,) = supervisor.process_ids()
    os.kill(process, signal.SIGKILL)
    wait_for(store, id, ("interrupted",))
    wait_for(store, waiting, ("done",))
    assert supervisor.process_ids() != [process]
    assert not files(folder, id)
    store.resume(id)
    wait_for(store, id, ("running",), steps=1)
    store.cancel(id)
    wait_for(store, id, ("cancelled",))


def freeze(process: int, folder: ServerFolder) -> None:
    """Stop a worker, but not while it has the queue open: nobody else could use it then."""
    worker, queue = psutil.Process(process), str(folder.database)
    while True:
        worker.suspend()
        while worker.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        if not any(file.path.startswith(queue) for file in worker.open_files()):
            return
        worker.resume()
        time.sleep(0.02)


def test_a_job_that_does_not_react_costs_its_worker(
    folder: ServerFolder, store: JobStore, supervisor: Supervisor
) -> None:
    id = add(store, LONG)
    wait_for(store, id, ("running",), steps=2)
    (process,) = supervisor.process_ids()
    freeze(process, folder)  # as in one very long step
    begin = time.monotonic()
    store.cancel(id)
    wait_for(store, id, ("cancelled",))
    assert time.monotonic() - begin < 2
    wait_for(store, add(store), ("done",))


def test_a_queue_that_is_locked_for_long_does_not_end_the_watch(
    store: JobStore,
    supervisor: Supervisor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = list[float]()

    def locked(**options: object) -> list[Job]:
        asked.append(time.monotonic())
        raise sqlite3.OperationalError("database is locked")

    with monkeypatch.context() as patch:
        patch.setattr(store, "jobs", locked)
        end = time.monotonic() + 60
        while len(asked) < 3:
            assert time.monotonic() < end
            time.sleep(0.02)
    assert "the queue of the server cannot be read now (database is locked)" in caplog.text
    (process,) = supervisor.process_ids()
    os.kill(process, signal.SIGKILL)
    wait_for(store, add(store), ("done",))
    assert supervisor.process_ids() != [process]


SERVER = """
import sys, time
from pathlib import Path
from recast.web.job_store import Job, JobStore
from recast.web.limits import Limits
from recast.web.server_folder import ServerFolder
from recast.web.supervisor import Supervisor
folder = ServerFolder(Path(sys.argv[1]), Limits(free_gb=0))
supervisor = Supervisor(folder, JobStore(folder.database), ["cpu"])
supervisor.start()
print(*supervisor.process_ids(), flush=True)
time.sleep(600)
"""


def test_killing_the_server_loses_nothing(tmp_path: Path) -> None:
    folder = server_folder(tmp_path / "server")
    store = JobStore(folder.database)
    running, waiting = add(store, LONG), add(store)
    command = [sys.executable, "-c", SERVER, str(folder.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            worker = int(server.stdout.readline())
            wait_for(store, running, ("running",), steps=2)
        finally:
            server.kill()
            server.wait()
    deadline = time.monotonic() + 10
    while _runs(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(worker)  # a worker never outlives its server
    supervisor = Supervisor(folder, store, ["cpu"])
    supervisor.start()
    try:
        wait_for(store, running, ("interrupted",))
        wait_for(store, waiting, ("done",))
    finally:
        supervisor.stop()


def _runs(process: int) -> bool:
    """Whether a process runs; one that ended and was not waited for counts as ended."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
