"""Time and memory of one method on one model, from a few steps of it.

Time and memory of a step do not depend on the number of steps, nor on the values of the weights.
This module owns how a method is shortened. It refuses to name a method.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from statistics import median
from typing import Any

from recast.errors import BadCall
from recast.events import Event, Job, Step
from recast.motions.method import MotionMethod, Sampling
from recast.motions.motion import Motion
from recast.networks.tensor_memory import TensorMemory
from recast.pipeline import method_presets, requirements
from recast.pipeline.source_clip import to_tensor
from recast.verification.check import SEED, Session, Usage, size_text

STEPS = 5
"""The number of sampling levels, of which a few run. Every method guides at least the first."""
_FEW = 3
"""The number of timed steps of learning, and of timed levels of sampling."""
_SHORT = {
    "iterations": _FEW,
    "inner_steps": _FEW,
    "inversion_steps": _FEW,
    "checkpoint_every": _FEW,
    "report_every": 1,
}
"""Settings of any method that limit its steps."""
_KINDS = {
    "invert": "inversion step",
    "train": "training step",
    "distil": "distillation step",
    "guided": f"guided level, {_FEW} inner steps",
    "plain": "plain level",
}
"""Kinds of steps. Those of sampling are guided or plain."""


def method_cost(session: Session, name: str) -> Generator[Event, None, dict[str, Any]]:
    """Seconds, network calls and memory of learning and of transfer with the method's default
    preset, and the median seconds of each kind of step. For a method that cannot run there is the
    reason instead."""
    backbone, clip = session.backbone, session.clips[0]
    config = method_presets.default_config(name, session.config.backbone)
    method = method_presets.configure(name, _replaced(config, _SHORT))
    sampling = Sampling(steps=STEPS, guidance_scale=backbone.defaults.guidance_scale, seed=SEED)
    try:
        requirements.check_model(method, backbone)
        requirements.check_windows(method, backbone, session.size)
    except BadCall as error:
        return {"method": name, "reason": str(error)}
    learning = Usage(session.device, backbone)
    source_prompt = clip.source_prompt or clip.prompt
    job = method.learn(backbone, to_tensor(clip.video), source_prompt, sampling)
    learned = yield from _timed(job, learning, stop=None)
    motion, transfer = job.result, Usage(session.device, backbone)
    sampled = yield from _timed(
        method.transfer(backbone, motion, clip.prompt, sampling), transfer, stop=_FEW
    )
    return {
        "method": name,
        "learn": _row(learning),
        "transfer": _row(transfer),
        # The first step of a kind also encodes the clip, and warms up.
        "seconds_per_step": {
            kind: round(median(times[1:] or times), 3)
            for kind, times in {**learned, **sampled}.items()
        },
        "guided_bytes": _guided_memory(session, method, motion, sampling, transfer.peak),
    }


def method_table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The rows of `method_cost` as cells: seconds for each kind of step, and memory."""
    kinds = [k for k in _KINDS if any(k in row.get("seconds_per_step", ()) for row in rows)]
    head = ["method", *(f"{_KINDS[kind]}, s" for kind in kinds), "memory, first level"]
    table = [[*head, "predicted"]]
    for row in rows:
        if "reason" in row:
            table.append([row["method"], row["reason"]])
            continue
        each = row["seconds_per_step"]
        cells = [f"{each[kind]:.2f}" if kind in each else "–" for kind in kinds]
        sizes = map(size_text, (row["guided_bytes"], row["predicted_guided_bytes"]))
        table.append([row["method"], *cells, *sizes])
    return table


def _replaced(config: Any, values: Mapping[str, int]) -> Any:
    """The config with these values, for the settings that it has."""
    names = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{k: v for k, v in values.items() if k in names})


def _timed(
    job: Job[Any], usage: Usage, *, stop: int | None
) -> Generator[Event, None, dict[str, list[float]]]:
    """Run a job, or its first `stop` levels of sampling, and return the seconds of each step by its
    kind."""
    last, found = usage.now(), defaultdict(list)
    try:
        for event in job:
            if isinstance(event, Step):
                now = usage.now()
                kind = "guided" if "loss_before" in event.metrics else "plain"
                found[kind if event.stage == "sample" else event.stage].append(now - last)
                last = now
                yield Step(stage=event.stage, index=event.index, total=event.total)
                if stop and event.stage == "sample" and event.index == stop:
                    break
    finally:
        usage.stop()
        job.close()
    return found


def _row(usage: Usage) -> dict[str, Any]:
    return {"seconds": usage.seconds, "nfe": usage.nfe, "peak_bytes": usage.peak}


def _guided_memory(
    session: Session,
    method: MotionMethod[Any],
    motion: Motion,
    sampling: Sampling,
    on_device: int | None,
) -> int | None:
    """The memory of the first level of a transfer. On a CUDA device it is that of the transfer."""
    if session.device.type != "cpu":
        return on_device
    # From the second inner step on, the memory does not change.
    config = _replaced(method.config, {"inner_steps": 2})
    method = method_presets.configure(method.name, config)
    job = method.transfer(session.backbone, motion, session.clips[0].prompt, sampling)
    with TensorMemory() as ledger:
        for event in job:
            if isinstance(event, Step) and event.stage == "sample":
                break
    job.close()
    return ledger.peak
