"""How long each method takes, and what it gives for that: the yardstick of every change for speed.

    OMP_NUM_THREADS=1 python benchmarks/speed.py --pairs 2
    OMP_NUM_THREADS=1 python benchmarks/speed.py --pairs 8 --systems dmt:shapes sdedit:strength-70
    python benchmarks/tables.py benchmarks/results/speed.jsonl

All systems run on the same clips and prompts, one after the other, each in a process of its own:
DMT at the cost of its publication (`published.py`), the presets of DMT, and the default preset of
every other method that was measured on the model. A row is appended to `benchmarks/results/
speed.jsonl` as soon as a system has finished a pair, and a rerun computes only missing rows. At the
end the forecasts of `recast doctor` are written to `speed-forecast.json`, and the tables are
printed. Everything runs on the CPU, with one thread, and with the guidance scale of the model.

A row has the cost of learning and that of a transfer apart: seconds on the clock, seconds of the
processor, network calls (NFE), passes by kind, floating-point operations and the peak memory of the
process. A run without a stored motion ("cold") costs both; with a stored motion it costs the
transfer and the loading of the motion.
"""

import argparse
import dataclasses
import datetime
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import speed_tables
import tables
import torch
from published import at_published_cost
from torch import Tensor

from recast.backbones.base import Backbone, Settings
from recast.bench import rows, shapes_pairs, suite, work
from recast.bench.suite import Case
from recast.evaluation import Tools, align, evaluate
from recast.feature_guidance.taps import read_features, select_taps
from recast.media.atomic_files import atomic
from recast.media.video import Video
from recast.methods import dmt
from recast.motions.method import MotionMethod
from recast.motions.motion import Motion
from recast.motions.passes import PassCount, Passes, count_passes
from recast.networks.operation_count import OperationCount
from recast.pipeline import (
    defaults,
    manifest,
    memory_estimate,
    method_presets,
    model_loading,
    stages,
    time_estimate,
)
from recast.pipeline.config import Draw
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.source_clip import Source

RESULTS = Path(__file__).parent / "results" / "speed.jsonl"
MODELS = ("shapes", "shapes-dit")
SUITE = "methods"
"""The suite whose pairs are used."""
PUBLISHED, RELEASED = "published", "released"
TUNED = defaults.TUNED
_CAP = 10**12
"""The size of the motion store in bytes, which is never reached."""


@dataclass(frozen=True, kw_only=True)
class System:
    """A configured method, and how it is run."""

    method: MotionMethod[Any]
    weights: bool = False
    """Whether guided steps also compute the gradients of weights."""
    patched: Callable[[Backbone], AbstractContextManager[None]] = lambda backbone: nullcontext()
    """A context in which the method runs."""
    shares: str = ""
    """The system that learns the same motion. Its cost of learning is used if it was measured on
    the same pair, because an inversion of a thousand steps takes minutes."""


def systems(model: str) -> dict[str, System]:
    """All systems that are compared on a shipped model, by name."""
    reference = dmt.PRESETS["reference"]
    if model == "shapes-dit":  # a transformer has one of the three taps
        reference = dataclasses.replace(reference, taps=("motion",))
    found = {f"dmt:{TUNED}": System(method=dmt.Method(dmt.PRESETS[TUNED]))}
    for name, full in ((PUBLISHED, True), (RELEASED, False)):
        found[name] = System(
            method=dmt.Method(reference),
            weights=True,
            patched=partial(at_published_cost, method=dmt.Method(reference), full=full),
            shares="" if full else PUBLISHED,
        )
    found["dmt:reference"] = System(method=dmt.Method(reference), shares=PUBLISHED)
    for name in sorted({*defaults.MEASURED[model]} - {"dmt"}):
        preset = method_presets.default_preset(name, model)
        config = method_presets.preset(name, preset)
        found[f"{name}:{preset}"] = System(method=method_presets.configure(name, config))
    for preset in sorted(dmt.PRESETS.keys() - {TUNED, "reference"}):
        shares = "dmt:paper" if preset == "paper-large-change" else ""
        found[f"dmt:{preset}"] = System(method=dmt.Method(dmt.PRESETS[preset]), shares=shares)
    return found


def cases(count: int) -> list[Case]:
    """The first pairs of the suite, from its groups in turn."""
    groups: dict[str, list[Case]] = {}
    for case in suite.read(SUITE).cases:
        groups.setdefault(case.group, []).append(case)
    in_turn = [case for column in zip(*groups.values(), strict=True) for case in column]
    if not 1 <= count <= len(in_turn):
        raise SystemExit(f"--pairs must be 1 to {len(in_turn)}, got {count}")
    return in_turn[:count]


def run(out: Path, store: Path, models: Sequence[str], count: int, chosen: Sequence[str]) -> None:
    """Compute all missing rows, pair by pair. Learned motions are kept in the folder `store`."""
    torch.set_num_threads(1)
    backbones = {model: model_loading.load(model, Settings(device="cpu")) for model in models}
    known = {model: systems(model) for model in models}
    unknown = {*chosen}.difference(*known.values())
    if unknown:
        names = dict.fromkeys(name for own in known.values() for name in own)
        raise SystemExit(f"--systems: {min(unknown)!r} is none of {', '.join(names)}")
    for case, model in product(cases(count), models):
        for name, system in known[model].items():
            if not chosen or name in chosen:
                lender = known[model].get(system.shares)
                _run_if_missing(out, store, backbones[model], case, (name, system), lender)


def _run_if_missing(
    out: Path,
    store: Path,
    backbone: Backbone,
    case: Case,
    named: tuple[str, System],
    lender: System | None,
) -> None:
    """Append the row of a system and a pair, unless it exists."""
    name, system = named

    def row_of(identity: Mapping[str, Any]) -> dict[str, Any] | None:
        return next((row for row in read(out) if identity.items() <= row.items()), None)

    identity = _identity(backbone, name, system, case)
    if row_of(identity) is not None:
        return
    shared = _identity(backbone, system.shares, lender, case) if lender else identity
    lent, folder = row_of(shared), store / rows.key(shared)
    if lent is None or not folder.exists():
        lent, folder = None, store / rows.key(identity)
        shutil.rmtree(folder, ignore_errors=True)
    cache = MotionCache(folder, _CAP)
    row = identity | in_a_process(measure, backbone, system, case, cache, lent)
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{backbone.name}, {case.clip}, {name}: {row['cold_cpu_seconds']:.0f} s of the CPU")


def read(out: Path) -> list[dict[str, Any]]:
    """The rows of a file; none if it does not exist."""
    return [json.loads(line) for line in out.open(encoding="utf-8")] if out.exists() else []


def _identity(backbone: Backbone, name: str, system: System, case: Case) -> dict[str, Any]:
    """The columns that identify a row."""
    return {
        "model": backbone.name,
        "fingerprint": backbone.fingerprint,
        "system": name,
        "config": json.dumps(manifest.plain(system.method.config)),
        **{"clip": case.clip, "group": case.group, "prompt": case.prompt, "seed": 0},
    }


def measure(
    backbone: Backbone,
    system: System,
    case: Case,
    cache: MotionCache,
    lent: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The cost and the scores of one system on one pair. `lent` is the row of the system that has
    learned the motion in `cache`; None if it is learned here."""
    method, size = system.method, backbone.defaults
    clip = shapes_pairs.source(case.scene, size.frames, size.height)
    source = Source(source_prompt=case.source_prompt)
    draw = Draw(seed=0, guidance_scale=size.guidance_scale)
    shape = backbone.latent_shape(size.frames, size.height, size.width)
    kinds = operations(backbone, method, shape, system.weights)
    row: dict[str, Any] = {}
    with count_passes(backbone, shape[2]) as count, system.patched(backbone):
        meter = partial(_metered, row, backbone, kinds, count)

        def learn() -> Motion:
            return stages.learn_motion(backbone, method, [clip], source, cache=cache).run()

        def transfer() -> Video:
            work = stages.transfer_motion(
                backbone, motion, case.prompt, config=method.config, draw=draw
            )
            return work.run()

        if lent is None:
            meter("learn", learn)
        else:
            row |= {k: value for k, value in lent.items() if k.startswith("learn_")}
        motion = meter("load", learn)
        assert row["load_calls"] == 0, "the motion was not in the store"
        result = meter("transfer", transfer)
    for name in ("seconds", "cpu_seconds", "calls", "forwards", "tflop"):
        row[f"cold_{name}"] = round(row[f"learn_{name}"] + row[f"transfer_{name}"], 4)
        row[f"stored_{name}"] = round(row[f"load_{name}"] + row[f"transfer_{name}"], 4)
    sampling = stages.resolve_sampling(draw, backbone, method, motion)
    return row | {
        "learned_by": lent["system"] if lent else "",
        "partial_fraction": kinds.fraction,
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        **scores(case, clip, result),
        "versions": ", ".join(f"{name} {it}" for name, it in manifest.versions().items()),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _metered(
    row: dict[str, Any],
    backbone: Backbone,
    kinds: "Kinds",
    count: PassCount,
    verb: str,
    once: Callable[[], Any],
) -> Any:
    """The result of a function, whose cost is written to the row under the name of a verb."""
    count.total, calls = Passes(), backbone.nfe
    with work._peak_memory(backbone.device) as peak:
        clock, processor = time.perf_counter(), time.process_time()
        result = once()
        processor, clock = time.process_time() - processor, time.perf_counter() - clock
    passes = count.total
    row |= {
        f"{verb}_seconds": round(clock, 3),
        f"{verb}_cpu_seconds": round(processor, 3),
        f"{verb}_calls": backbone.nfe - calls,
        f"{verb}_passes": dataclasses.asdict(passes),
        f"{verb}_forwards": round(passes.forward_equivalents(kinds.fraction), 2),
        f"{verb}_tflop": round(kinds.flops(passes) / 1e12, 4),
        f"{verb}_peak_memory_mb": peak(),
    }
    return result


def scores(case: Case, source: Video, result: Video) -> dict[str, Any]:
    """The metrics of a result, as columns of a row."""
    source, result = align(source, result)
    truth = shapes_pairs.ground_truth(case.scene, case.prompt, result.frames)
    found = evaluate.evaluate(source, result, case.prompt, Tools(), None, truth).run()
    return {rows.METRIC + score.metric.name: score.value for score in found}


@dataclass(frozen=True)
class Kinds:
    """The floating-point operations of one pass of each kind."""

    full: float
    partial: float
    full_backward: float
    partial_backward: float

    @property
    def fraction(self) -> float:
        """The part of the network that lies before the last tap."""
        return self.partial / self.full

    def flops(self, passes: Passes) -> float:
        """The floating-point operations of passes."""
        return sum(
            getattr(self, field.name) * getattr(passes, field.name)
            for field in dataclasses.fields(self)
        )


def operations(
    backbone: Backbone, method: MotionMethod[Any], shape: tuple[int, ...], weights: bool
) -> Kinds:
    """Count one pass of each kind, at the taps of a method. `weights` adds the gradients of weights
    to the backward pass from these taps. Those of adapters are not counted."""
    plain = backbone.denoiser(backbone.encode_text(["a red circle"]))
    x, t = torch.zeros(shape), backbone.schedule.sized(shape).grid(1)[0]
    reads = [role for role in method.roles if role in backbone.roles]
    taps = select_taps(backbone, reads)

    def features(x: Tensor) -> Sequence[Tensor]:
        return [*read_features(backbone, plain, taps, x, t).values()] if taps else plain(x, t)

    def back(outputs: Callable[[Tensor], Sequence[Tensor]], targets: Sequence[Tensor]) -> None:
        leaf = x.clone().requires_grad_(True)
        with torch.enable_grad():
            loss = torch.stack([one.float().sum() for one in outputs(leaf)]).sum()
        torch.autograd.grad(loss, [leaf, *targets], allow_unused=True)

    with torch.no_grad():
        full, partial = _flops(lambda: plain(x, t)), _flops(lambda: features(x))
    full_backward = _flops(lambda: back(lambda x: plain(x, t), ())) - full
    with _gradients(backbone, weights) as targets:
        partial_backward = _flops(lambda: back(features, targets)) - partial
    return Kinds(full, partial, full_backward, partial_backward)


def _flops(once: Callable[[], object]) -> float:
    with OperationCount() as count:
        once()
    return count.total.flops


@contextmanager
def _gradients(backbone: Backbone, weights: bool) -> Iterator[list[Tensor]]:
    """Inside this context the weights have gradients, if they should. The value is their list."""
    backbone.network.requires_grad_(weights)
    try:
        yield [*backbone.network.parameters()] if weights else []
    finally:
        backbone.network.requires_grad_(False)


def forecast(models: Sequence[str]) -> dict[str, Any]:
    """What `recast doctor` forecasts for the default preset of each method, in seconds, with the
    rates that it measures now."""
    device, settings = torch.device("cpu"), Settings(device="cpu")
    speed = time_estimate.speed_of_this_machine(device, torch.float32)
    assert speed is not None
    found: dict[str, Any] = {"machine": dataclasses.asdict(speed)}
    for model in models:
        names = tuple(defaults.MEASURED[model])
        memory = memory_estimate.estimate_memory(model, settings, device, names)
        estimate = time_estimate.estimate_time(memory, model, settings, device, names)
        found[model] = {
            f"{name}:{method_presets.default_preset(name, model)}": {
                "learn": speed.seconds(work.learn),
                "transfer": speed.seconds(work.transfer),
            }
            for name, work in estimate.methods.items()
        }
    return found


def in_a_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The result of a function in a copy of this process, whose peak memory is that of the function
    alone."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function(*arguments)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise SystemExit("the process of a system ended without a result; see above") from None
    finally:
        process.join()


def main(arguments: argparse.Namespace) -> None:
    """Compute missing rows, write the forecasts, and print the tables."""
    out = arguments.out
    run(out, arguments.store, arguments.models, arguments.pairs, arguments.systems)
    with atomic(speed_tables.forecast_file(out)) as temporary:
        temporary.write_text(json.dumps(forecast(MODELS), indent=1) + "\n")
    tables.main(out, [], None, None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--systems", nargs="+", default=[], help="by default all")
    parser.add_argument("--store", type=Path, default=Path("out/speed-motions"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    main(parser.parse_args())
