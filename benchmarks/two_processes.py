"""How long one pass of `shapes` takes in one process, and in two at once, with all threads.

    python benchmarks/two_processes.py --repeat 3

The threads of OpenMP wait for one another in a loop before they sleep, by default for so long that
two processes with a thread for each core stop one another. Commands of Recast let them wait for
less time (`recast.cli.WAITING`). Each number is the median over new processes of the mean of
several passes, on a machine that does nothing else.
"""

import argparse
import os
import statistics
import subprocess
import sys

from recast import cli

PASSES = 8
PROGRAM = f"""
import time
import torch
import recast
backbone = recast.load("shapes")
size = backbone.defaults
x = torch.randn(backbone.latent_shape(size.frames, size.height, size.width))
t = backbone.schedule.sized(x.shape).grid(2)[1]
denoise = backbone.denoiser(backbone.encode_text(["a red circle"]))
with torch.no_grad():
    denoise(x, t)
    start = time.perf_counter()
    for _ in range({PASSES}):
        denoise(x, t)
print((time.perf_counter() - start) / {PASSES})
"""
WAYS = {
    "all threads, torch's default": {},
    "all threads, as in commands of Recast": cli.WAITING,
    "all threads, `OMP_WAIT_POLICY=passive`": {"OMP_WAIT_POLICY": "passive"},
    "`OMP_NUM_THREADS=1`": {"OMP_NUM_THREADS": "1"},
}


def seconds(environment: dict[str, str], processes: int) -> list[float]:
    """The seconds of a pass in each of several processes that run at once."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", PROGRAM]
    running = [
        subprocess.Popen(
            command, env=kept | environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        for _ in range(processes)
    ]
    return [float(process.communicate()[0]) for process in running]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3, help="times that each number is measured")
    repeat = parser.parse_args().repeat
    print("| threads of a process | one process | two at once |\n|---|---|---|")
    for name, environment in WAYS.items():
        medians = [
            statistics.median(one for _ in range(repeat) for one in seconds(environment, count))
            for count in (1, 2)
        ]
        print(f"| {name} | {' | '.join(f'{1000 * median:.0f} ms' for median in medians)} |")
