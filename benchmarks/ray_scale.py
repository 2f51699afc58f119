"""How a benchmark on Ray scales: workers that sleep in place of computing, up to 64 of them.

    python benchmarks/ray_scale.py --workers 1 2 4 8 16 32 64
    python benchmarks/ray_scale.py --workers 8 --seconds 1 --pairs 1000 --kill 3

Everything but the model is real: the cluster, the tasks, the clips that travel, the driver that
writes rows and videos, and the report. A worker sleeps for as long as a row would take. Efficiency
is the time that the workers slept, divided by the time that they had: in the whole run after the
first worker started; and, as `efficiency_running`, between the first and the last row of each
worker. On one machine many workers start one after the other. `--kill` ends this number of busy
workers with SIGKILL during each run. A line for each number of workers is appended to
`benchmarks/results/ray-scale.jsonl`.
"""

import argparse
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import psutil
from ray.cluster_utils import Cluster

from recast.bench import cluster, rows, suite
from recast.bench.runner import BenchConfig, bench
from recast.bench.work import BenchResult, Task
from recast.bench.worlds import WORLDS
from recast.events import Note

RESULTS = Path(__file__).parent / "results" / "ray-scale.jsonl"
HEADS = {
    "workers": ("workers", ""),
    "seconds_per_row": ("seconds a row takes", "g"),
    "rows": ("rows", ""),
    "killed": ("killed", ""),
    "missing": ("missing rows", ""),
    "until_all_run": ("seconds until all workers run", ".0f"),
    "seconds": ("seconds of the whole run", ".0f"),
    "efficiency": ("efficiency", ".2f"),
    "efficiency_running": ("of running workers", ".2f"),
}
"""Column -> its head and its format in the table."""
SUITE = """
about = "Pairs whose results nobody computes."
backbone = "shapes"
methods = ["unguided"]

[[world]]
group = "object"
pairs = {pairs}
camera = false
"""


def sleeping_work(task: Task, seconds: float) -> Iterator[BenchResult]:
    """What `recast.bench.work.work` does for a task, with a sleep in place of a model."""
    for variant in task.variants:
        for case in task.cases:
            clip = WORLDS[case.world].source(case.scene, 16, 64)
            for seed in task.seeds:
                time.sleep(seconds)
                key = f"{case.clip}-{seed}"
                row = {
                    "suite": task.suite,
                    "key": key,
                    "stamp": key,
                    "variant": variant.name,
                    "clip": case.clip,
                    "prompt": case.prompt,
                    "seed": seed,
                    "error": None,
                    "video": f"{rows.VIDEOS}/{key}.mp4",
                    "metric.worker": float(os.getpid()),
                    "metric.finished": time.time(),
                }
                yield BenchResult(key, key, row, clip, clip)


def measure(workers: int, pairs: int, seconds: float, kill: int) -> dict[str, Any]:
    """One run on a new cluster with this number of workers."""

    def work(task: Task) -> Iterator[BenchResult]:
        yield from sleeping_work(task, seconds)

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": workers})
    began, arrived, killed_workers = time.time(), 0, set[int]()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.object(cluster, "here", SimpleNamespace(work=work)),
        ):
            file = Path(folder) / "sleep.toml"
            file.write_text(SUITE.format(pairs=pairs))
            config = BenchConfig(suite=str(file), out=Path(folder) / "out", ray=nodes.address)
            job = bench(config, suite.read(str(file)))
            for event in job:
                if isinstance(event, Note):
                    print(event.text, flush=True)
                elif event.stage == "row":
                    arrived += 1
                    if (
                        len(killed_workers) < kill
                        and arrived > (len(killed_workers) + 1) * pairs // 5
                    ):
                        killed_workers.add(_kill_a_worker(killed_workers))
            outcome = job.result
            found = rows.read(outcome.folder)
            ended = time.time()
    finally:
        nodes.shutdown()
    by_worker: dict[float, list[float]] = {}
    for row in sorted(found, key=itemgetter("metric.finished")):
        by_worker.setdefault(row["metric.worker"], []).append(row["metric.finished"])
    firsts = sorted(moments[0] - seconds for moments in by_worker.values())
    busy_span = sum(moments[-1] - moments[0] for moments in by_worker.values())
    return {
        "workers": workers,
        "seconds_per_row": seconds,
        "rows": len(found),
        "missing": outcome.missing,
        "killed": len(killed_workers),
        "until_first_start": round(firsts[0] - began, 1),
        "until_all_run": round(firsts[-1] - began, 1),
        "seconds": round(ended - began, 1),
        "efficiency": round(pairs * seconds / workers / (ended - firsts[0]), 3),
        "efficiency_running": round((len(found) - len(by_worker)) * seconds / busy_span, 3),
    }


def _kill_a_worker(earlier: set[int]) -> int:
    """End a worker that runs a task with SIGKILL. Returns its process id."""
    busy = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if process.pid not in earlier and "ray::work" in " ".join(process.info["cmdline"] or [])
    ]
    os.kill(busy[0], signal.SIGKILL)
    return busy[0]


def table(lines: list[dict[str, Any]]) -> str:
    """A Markdown table of measured runs."""
    rule = "|".join("---" for _ in HEADS)
    body = (" | ".join(f"{line[key]:{form}}" for key, (_, form) in HEADS.items()) for line in lines)
    heads = " | ".join(head for head, _ in HEADS.values())
    return "\n".join([f"| {heads} |", f"|{rule}|", *(f"| {text} |" for text in body)])


def main(arguments: argparse.Namespace) -> None:
    """Measure, or print the table of what was measured."""
    if arguments.table:
        print(table([json.loads(line) for line in RESULTS.read_text().splitlines()]))
        return
    for workers in arguments.workers:
        pairs = arguments.pairs or 16 * workers
        line = measure(workers, pairs, arguments.seconds, arguments.kill)
        print(json.dumps(line), flush=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--pairs", type=int, help="pairs of a run; by default 16 for a worker")
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds that a row takes")
    parser.add_argument("--kill", type=int, default=0, help="workers to kill during a run")
    parser.add_argument("--table", action="store_true", help="print what was measured")
    main(parser.parse_args())
