"""Time and memory of every method on the public models at full size, with random weights.

    python benchmarks/full_size.py run --minutes 9 --out benchmarks/results/full-size.jsonl
    python benchmarks/full_size.py run --backbones shapes --out tried.jsonl
    python benchmarks/full_size.py table benchmarks/results/full-size.jsonl

Time and peak memory do not depend on the values of the weights. Each method runs with its default
preset, but only for as long as is needed to measure one step: a few steps of inversion or training,
and the first levels of sampling. Existing rows are not measured again, so that the same command
resumes an interrupted run.
"""

import argparse
import dataclasses
import gc
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from recast.backbones.base import Backbone, Settings
from recast.errors import RecastError
from recast.events import Job, Step
from recast.motions.method import Sampling
from recast.networks import devices
from recast.pipeline import memory_estimate, method_presets, model_loading, requirements

Size = tuple[int | None, int | None, int | None]
OWN: Size = (None, None, None)
SIZES: dict[str, list[Size]] = {
    "zeroscope": [(24, 320, 576)],
    "cogvideox-2b": [(49, 480, 720)],
    "wan": [(49, 480, 720), (81, 480, 832)],
    "ltx": [OWN],
    "animatediff": [OWN],
    "cogvideox-5b": [(49, 480, 720)],
    "hunyuan": [OWN],
}
"""Frames, height and width."""
SAVING = {
    "": {},
    "--gradient-checkpointing": {"gradient_checkpointing": True},
    "--gradient-checkpointing --offload networks": {
        "gradient_checkpointing": True,
        "offload": "networks",
    },
    "--gradient-checkpointing --offload blocks": {
        "gradient_checkpointing": True,
        "offload": "blocks",
    },
}
"""Settings that save memory, in the order of measurement."""
SHOWN = ("dmt", "motion_inversion")
"""Methods that are measured with all these settings: one that guides latents, one that trains."""
FEW = 3
"""Number of timed steps of learning, and of timed levels of sampling."""
STEPS = 5
"""Levels of sampling; every method guides at least the first."""
STAGES = ("text", "pass", "encode", "decode")
KINDS = ("invert", "train", "distil", "guided", "plain")


class Clock:
    """Measures the seconds and the peak memory in GiB of a piece of work."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.began = self.now()

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def told(self) -> dict[str, float | None]:
        seconds = self.now() - self.began
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.cuda else None
        return {"seconds": round(seconds, 3), "peak_gib": peak and round(peak, 2)}


def stages(backbone: Backbone, size: tuple[int, int, int]) -> dict[str, Any]:
    """Time and memory of one forward pass of each network, measured on the second pass."""
    video = torch.rand(1, 3, *size) * 2 - 1
    x = torch.randn(backbone.latent_shape(*size), device=backbone.device)
    t = backbone.schedule.sized(x.shape).grid(STEPS)[0]
    denoise = backbone.cfg_denoiser("a red circle", "", backbone.defaults.guidance_scale)
    work = {
        "text": lambda: backbone.encode_text(["a red circle"]),
        "pass": lambda: denoise(x, t),
        "encode": lambda: backbone.encode(video),
        "decode": lambda: backbone.decode(x),
    }
    found = {}
    with torch.no_grad():
        for name, once in work.items():
            once()
            clock = Clock(backbone.device)
            once()
            found[name] = clock.told()
    return found


def run(job: Job[Any], clock: Clock) -> tuple[Any, dict[str, list[float]]]:
    """The result of a job, or None if it was stopped after a few levels; and the seconds of each
    step by kind: "invert", "train", "distil", "guided" or "plain"."""
    before, found = clock.began, defaultdict(list)
    for event in job:
        if isinstance(event, Step):
            now = clock.now()
            plain = "guided" if "loss_before" in event.metrics else "plain"
            found[plain if event.stage == "sample" else event.stage].append(now - before)
            before = now
            if event.stage == "sample" and event.index == FEW:
                break
    else:
        return job.result, found
    job.close()
    return None, found


def short(config: Any) -> Any:
    """The config with only a few steps of learning or of optimisation."""
    there = {field.name for field in dataclasses.fields(config)}
    few = {"iterations": FEW, "inversion_steps": FEW, "checkpoint_every": FEW, "report_every": 1}
    return dataclasses.replace(config, **{k: v for k, v in few.items() if k in there})


def method_row(backbone: Backbone, name: str, size: tuple[int, int, int]) -> dict[str, Any]:
    """Time and memory of learning and of transfer, and the median seconds of each kind of step."""
    config = method_presets.default_config(name, backbone.name)
    method = method_presets.configure(name, short(config))
    requirements.check_model(method, backbone)
    sampling = Sampling(steps=STEPS, guidance_scale=backbone.defaults.guidance_scale)
    video = torch.rand(1, 3, *size) * 2 - 1
    clock = Clock(backbone.device)
    motion, learning = run(method.learn(backbone, video, "a red circle", sampling), clock)
    learn, clock = clock.told(), Clock(backbone.device)
    _, making = run(method.transfer(backbone, motion, "a green square", sampling), clock)
    # The first step of a kind also encodes, and warms up.
    each = {
        kind: round(median(all_[1:] or all_), 3) for kind, all_ in {**learning, **making}.items()
    }
    return {"learn": learn, "transfer": clock.told(), "steps": each}


def cases(backbones: list[str], methods: list[str]) -> Iterator[tuple[str, Size, str, list[str]]]:
    """(model, size, settings, methods): first all models without settings that save memory."""
    for flags in SAVING:
        for name in backbones:
            for size in SIZES.get(name, [OWN]):
                yield name, size, flags, [one for one in methods if not flags or one in SHOWN]


def case(
    name: str, size: Size, settings: Settings, work: list[str], end: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A named row for each measurement, until the time limit."""
    clock = Clock(devices.device_of(settings.device))
    try:
        backbone = model_loading.load_with_random_weights(name, settings)
    except (RecastError, RuntimeError) as error:
        yield "load", failure(error)
        return
    own = backbone.defaults
    default = (own.frames, own.height, own.width)
    whole = tuple(a or b for a, b in zip(size, default, strict=True))
    yield "load", clock.told()
    for one in work:
        if time.monotonic() > end:
            return
        try:
            row = stages(backbone, whole) if one == "stages" else method_row(backbone, one, whole)
        except (RecastError, RuntimeError) as error:
            row = failure(error)
        yield one, {"size": whole, **row}


def measure(asked: argparse.Namespace) -> None:
    """Append all missing rows, until the time limit."""
    end = time.monotonic() + 60 * asked.minutes
    done = {(r["backbone"], *r["asked"], r["saving"], r["work"]) for r in rows(asked.out)}
    for name, size, saving, methods in cases(asked.backbones, asked.methods):
        settings = Settings(device=asked.device, dtype=asked.dtype, **SAVING[saving])
        device = devices.device_of(settings.device)
        work = [one for one in ("stages", *methods) if (name, *size, saving, one) not in done]
        if not work or settings.offload not in memory_estimate.offload_choices(settings, device):
            continue
        if time.monotonic() > end:
            print("out of time", flush=True)
            return
        machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
        about = {"backbone": name, "asked": size, "saving": saving, "machine": machine}
        for one, row in case(name, size, settings, work, end):
            with asked.out.open("a") as file:
                file.write(json.dumps({**about, "torch": torch.__version__, "work": one, **row}))
                file.write("\n")
            print(name, *size, saving, one, row, flush=True)


def failure(error: Exception) -> dict[str, str]:
    return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open()] if path.exists() else []


def table(path: Path) -> str:
    """Markdown tables: first the stages, then the methods."""
    made = [row for row in rows(path) if row["work"] != "load"]
    first = [row for row in made if row["work"] == "stages"]
    lines = head("", STAGES) + [line(row, "", staged) for row in first]
    lines += ["", *head("method", (*KINDS, "peak, learning", "peak, transfer"))]
    lines += [line(row, row["work"], worked) for row in made if row["work"] != "stages"]
    return "\n".join(lines)


def head(kind: str, columns: tuple[str, ...]) -> list[str]:
    names = [name for name in ("model", "size", "settings", kind, *columns) if name]
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


def line(row: dict[str, Any], work: str, cells: Callable[[dict[str, Any]], list[str]]) -> str:
    size = "{}×{}×{}".format(*row["size"])
    names = [one for one in (row["backbone"], size, row["saving"] or "–", work) if one]
    return f"| {' | '.join([*names, *([row['failed']] if 'failed' in row else cells(row))])} |"


def staged(row: dict[str, Any]) -> list[str]:
    return [f"{row[one]['seconds']:.2f} s, {gib(row[one])}" for one in STAGES]


def worked(row: dict[str, Any]) -> list[str]:
    seconds = [f"{row['steps'][kind]:.2f} s" if kind in row["steps"] else "–" for kind in KINDS]
    return [*seconds, gib(row["learn"]), gib(row["transfer"])]


def gib(part: dict[str, Any]) -> str:
    return "–" if part["peak_gib"] is None else f"{part['peak_gib']:.1f} GiB"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("run", help="measure the missing rows")
    making.add_argument("--out", type=Path, required=True)
    making.add_argument(
        "--minutes", type=float, default=60, help="time limit for starting a measurement"
    )
    making.add_argument("--backbones", nargs="+", default=list(SIZES))
    making.add_argument("--methods", nargs="+", default=method_presets.method_names())
    making.add_argument("--device", default="auto")
    making.add_argument("--dtype", default="auto")
    showing = verbs.add_parser("table", help="print the tables")
    showing.add_argument("out", type=Path)
    asked = parser.parse_args()
    if asked.verb == "run":
        measure(asked)
    else:
        print(table(asked.out))
