"""How long commands take to answer, and how long a transfer takes until its first step.

python benchmarks/startup.py --repeat 5

Each row is the median over new processes: seconds on the clock, and seconds of processor time. The
row of the transfer ends at its first step, and the process is over a second later.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recast.media.video import Video
from recast.worlds.shapes import world

COMMANDS = (
    "--version",
    "--help",
    "transfer --help",
    "bench --help",
    "backbones",
    "methods",
    "methods --backbone shapes",
    "store ls",
    "doctor",
)
FIRST_STEP = """
import sys, time
from pathlib import Path
from recast import registry
from recast.events import Step
from recast.pipeline import method_presets, run
from recast.pipeline.config import RunConfig
registry.deferring = True  # as in a command
clip, out = map(Path, sys.argv[1:])
preset = method_presets.default_config("dmt", "shapes")
prompt = "a red circle on a navy background"
for event in run.transfer(RunConfig(clip=clip, prompt=prompt, out=out, config=preset)):
    if isinstance(event, Step) and event.stage != "load":
        print(time.time(), time.process_time())
        break
"""


def measure(call: list[str], repeat: int) -> tuple[float, float]:
    """The medians of the seconds on the clock and of the processor, of a whole process."""
    clock, processor = [], []
    for _ in range(repeat):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(call, check=True, capture_output=True)
        clock.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(clock), statistics.median(processor)


def measure_first_step(call: list[str], repeat: int) -> tuple[float, float]:
    """The same until the first step, at which the process prints both times."""
    found = []
    for _ in range(repeat):
        start = time.time()
        done = subprocess.run(call, check=True, capture_output=True, text=True)
        end, processor = map(float, done.stdout.split())
        found.append((end - start, processor))
    clock, processors = zip(*found, strict=True)
    return statistics.median(clock), statistics.median(processors)


def main(repeat: int) -> None:
    """Print the table."""
    print("| command | seconds | of the processor |\n| --- | --- | --- |")
    for command in COMMANDS:
        call = [sys.executable, "-m", "recast", *command.split()]
        print(
            "| `recast {}` | {:.2f} | {:.2f} |".format(command, *measure(call, repeat)), flush=True
        )
    with tempfile.TemporaryDirectory() as folder:
        clip = Video(world.render(world.sample(3)), world.FPS).save(Path(folder) / "clip.mp4")
        call = [sys.executable, "-c", FIRST_STEP, str(clip), str(Path(folder) / "out")]
        row = "| `recast transfer` on `shapes`, until its first step | {:.2f} | {:.2f} |"
        print(row.format(*measure_first_step(call, repeat)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    main(parser.parse_args().repeat)
