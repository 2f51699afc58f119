"""What the tests of the page share: a server's folder with a sample, and requests of short jobs."""

import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from recast.media.video import Video
from recast.web.job_store import Job, JobStore
from recast.web.limits import Limits
from recast.web.requests import TransferRequest
from recast.web.server_folder import ServerFolder

GAUSSIAN = {"clip": "sample:dots", "prompt": "a cat", "backbone": "gaussian", "method": "unguided"}


def server_folder(root: Path, limits: Limits | None = None) -> ServerFolder:
    """A server's folder with the sample `dots`, 8 frames of a moving square of 16x16 pixels."""
    folder = ServerFolder(root, limits or Limits(free_gb=0))
    folder.samples.mkdir(parents=True)
    frames = np.zeros((8, 16, 16, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[4:10, index : index + 6] = 255
    Video(frames, 8.0).save(folder.samples / "dots.mp4")
    return folder


def gaussian(steps: int = 3, **changes: Any) -> TransferRequest:
    """A transfer that takes milliseconds after its model is loaded; many steps take seconds."""
    values: dict[str, Any] = {**GAUSSIAN, "draw": {"steps": steps}, "score": False}
    return TransferRequest(**{**values, **changes})


def wait_for(
    store: JobStore, id: str, states: Sequence[str], seconds: float = 120.0, steps: int = 0
) -> Job:
    """The job, as soon as it has one of these states and has done some steps."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        job = store.get(id)
        if job.state in states and job.progress.get("index", 0) >= steps:
            return job
        assert job.state in ("queued", "running", *states), job.error
        time.sleep(0.05)
    raise AssertionError(f"the job {id} is still {store.get(id).state}")


@dataclass(slots=True)
class RunningServer:
    """A server in a process of its own."""

    url: str
    store: JobStore
    process: "subprocess.Popen[str]"
    command: list[str]


@contextmanager
def start_server(
    root: Path,
    *flags: str,
    port: int = 0,
    program: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[RunningServer]:
    """`recast serve` in a folder; it is stopped at the end. `program` replaces this checkout's
    recast, and `env` the environment variables."""
    recast = [program] if program else [sys.executable, "-m", "recast"]
    command = [*recast, "serve", "--folder", str(root), "--free-gb", "0"]
    command += [*flags, "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stderr is not None
        lines = []
        while not (match := re.search(r"open (http://[^/]+)/", "".join(lines))):
            line = process.stderr.readline()
            assert line, "".join(lines)
            lines.append(line)
        # A full pipe would stop the server, and pytest shows the messages beside a failed test.
        threading.Thread(target=_pass_on, args=(process.stderr,), daemon=True).start()
        _wait_until_healthy(match[1])
        yield RunningServer(match[1], JobStore(root / "jobs.sqlite3"), process, command)
    finally:
        process.terminate()
        process.wait(30)


def _pass_on(messages: IO[str]) -> None:
    for line in messages:
        sys.stderr.write(line)


def _wait_until_healthy(url: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            assert answer.status == 200
            return
        time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")
