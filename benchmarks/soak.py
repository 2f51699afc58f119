"""A soak of `recast serve`: many short jobs over a long time, with the memory of every process.

    python benchmarks/soak.py --minutes 120 --jobs 200

It starts a server in a temporary folder, sends jobs at an even pace from four clients, alternately
on the models `gaussian` and `shapes`, and deletes each job when it is done. At the end it prints
the memory over time, the files that are left, and the jobs that were lost. It exits with 1 if a job
was lost, if a file is left, or if the memory of the last quarter is more than 5 % above that of the
quarter before.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

CLIENTS = 4
GROWTH = 0.05
SHORT: dict[str, dict[str, Any]] = {
    "gaussian": {"method": "unguided", "draw": {"steps": 20}},
    "shapes": {"method": "dmt", "draw": {"steps": 4}, "config": {"inner_steps": 2}},
}


def call(url: str, body: Any = None, client: int = 0) -> Any:
    """The answer of the server to a GET, or with a body to a POST, as JSON."""
    headers = {"Cookie": f"recast_client={client:024x}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
        return json.load(answer)


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A server in a folder, and its address."""
    command = [sys.executable, "-m", "recast", "serve", "--folder", str(folder), "--port", "0"]
    server = subprocess.Popen([*command, "--free-gb", "0"], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if match := re.search(r"open (http://\S+?)/", line):
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return server, match[1]
    raise SystemExit("the server did not start")


def memory(server: subprocess.Popen[str]) -> dict[str, float]:
    """Resident memory in MB of the server and of its workers."""
    process = psutil.Process(server.pid)
    workers = sum(child.memory_info().rss for child in process.children(recursive=True))
    return {"server": process.memory_info().rss / 1e6, "workers": workers / 1e6}


def soak(url: str, server: subprocess.Popen[str], minutes: float, jobs: int) -> dict[str, Any]:
    """Send the jobs, follow them to their end, and sample the memory."""
    begin, pace = time.monotonic(), 60 * minutes / jobs
    open_jobs: dict[str, int] = {}
    ended: dict[str, int] = {}
    samples: list[tuple[float, dict[str, float]]] = []
    sent, next_sample = 0, 0.0
    while sent < jobs or open_jobs:
        now = time.monotonic() - begin
        if sent < jobs and now >= sent * pace and len(open_jobs) < 2 * CLIENTS:
            model = list(SHORT)[sent % len(SHORT)]
            body = {"clip": "sample:demo", "prompt": "a red circle on a navy background"}
            body |= {"backbone": model, "keep_motion": False, **SHORT[model]}
            open_jobs[call(f"{url}/jobs", body, sent % CLIENTS)["id"]] = sent % CLIENTS
            sent += 1
        for id, client in list(open_jobs.items()):
            state = call(f"{url}/jobs/{id}", client=client)["state"]
            if state not in ("queued", "running"):
                ended[state] = ended.get(state, 0) + 1
                call(f"{url}/jobs/{id}/delete", {}, client)
                del open_jobs[id]
        if now >= next_sample:
            samples.append((now / 60, memory(server)))
            next_sample = now + max(5.0, 60 * minutes / 60)
        time.sleep(1)
    samples.append(((time.monotonic() - begin) / 60, memory(server)))
    return {"sent": sent, "ended": ended, "samples": samples}


def files_left(folder: Path) -> list[str]:
    """The files of jobs that were deleted: results, uploads, and temporary files."""
    kinds = [*folder.glob("jobs/*"), *folder.glob("uploads/**/*"), *folder.rglob(".recast-*")]
    return sorted(
        {
            str(path.relative_to(folder))
            for path in kinds
            if path.is_file() or path.parent.name == "jobs"
        }
    )


def growth(samples: list[tuple[float, dict[str, float]]]) -> float:
    """The growth of all memory from the third quarter to the last, as a share."""
    totals = [sum(sizes.values()) for _, sizes in samples]
    quarter = max(1, len(totals) // 4)
    before = sum(totals[-2 * quarter : -quarter]) / quarter
    return sum(totals[-quarter:]) / quarter / before - 1


def main() -> int:
    """Run the soak and print its figures."""
    parser = argparse.ArgumentParser(description="A soak of recast serve.")
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--jobs", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "server"
        server, url = start(folder)
        try:
            found = soak(url, server, arguments.minutes, arguments.jobs)
            left, grown = files_left(folder), growth(found["samples"])
        finally:
            server.terminate()
            server.wait(30)
    print("minute  server MB  workers MB")
    for minute, sizes in found["samples"]:
        print(f"{minute:6.1f}  {sizes['server']:9.0f}  {sizes['workers']:10.0f}")
    lost = found["sent"] - found["ended"].get("done", 0)
    print(f"{found['sent']} jobs sent, ended as {found['ended']}, {lost} lost")
    print(f"{len(left)} files left {left[:5]}")
    print(f"memory of the last quarter against the one before: {grown:+.1%}")
    return int(bool(lost or left or grown > GROWTH))


if __name__ == "__main__":
    sys.exit(main())
