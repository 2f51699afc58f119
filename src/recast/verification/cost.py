"""Check 7: seconds, network calls and memory of each stage, against what `recast doctor` predicts.

Each network runs alone, and each method learns and samples for a few steps. On a CUDA device the
memory is the most that was allocated, weights included. Elsewhere it is the size of all tensors of
a stage without the weights, so predicted and measured numbers are of one kind on each device. This
module owns the limit, which is unmeasured on GPUs. Methods are not judged: the prediction leaves
out their losses, optimisers and recorded features.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from recast.errors import BadCall, BadModel
from recast.events import Event, Step
from recast.networks.tensor_memory import TensorMemory
from recast.pipeline import memory_estimate, method_presets
from recast.pipeline.memory_estimate import MemoryEstimate, StageMemory
from recast.pipeline.source_clip import to_tensor
from recast.verification.check import SEED, Finding, Session, Usage, on_cuda, size_text
from recast.verification.config import VerifyConfig
from recast.verification.method_cost import STEPS, method_cost, method_table

LIMIT = 1.5
"""The largest measured memory of a stage, divided by the predicted one."""
_SPARE_ON_GPU = 2**28
"""Bytes by which the memory of a CUDA device may be larger besides, for workspaces of kernels."""
_ADVICE = (
    "Memory settings that `recast doctor` calls sufficient may not be: leave more room, or take "
    "one more of the savings it lists. Please send us report.json."
)
Row = dict[str, Any]


def check(session: Session) -> Generator[Event, None, Finding]:
    """Measure each stage and each method."""
    methods = methods_of(session.config)
    estimate, reason = _estimate(session, methods)
    stages = yield from _stages(session, estimate)
    rows = []
    for index, name in enumerate(methods, start=1):
        row = yield from method_cost(session, name)
        steps = estimate.guided_steps.get(name) if estimate else None
        stage = steps and steps[session.config.settings.gradient_checkpointing]
        rows.append({**row, "predicted_guided_bytes": _predicted(session, estimate, stage)})
        yield Step(stage="measure methods", index=index, total=len(methods))
    measured = [row for row in stages if row["predicted_bytes"]]
    spare = _SPARE_ON_GPU if on_cuda(session.device) else 0
    above = [row["stage"] for row in measured if _is_above(row, spare)]
    text = f"All {len(measured)} stages take at most {LIMIT:g} times the predicted memory."
    if above:
        text = f"These stages take more memory than {LIMIT:g} times the prediction: "
        text += f"{', '.join(above)}."
    if estimate is None:
        text = f"The stages were measured; there is no prediction: {reason}."
    return Finding(
        status="failed" if above else "passed",
        text=text,
        advice=_ADVICE if above else "",
        numbers={
            "limit": LIMIT,
            "memory": "with weights" if on_cuda(session.device) else "without weights",
            "stages": stages,
            "methods": rows,
        },
        tables={"One call of each stage": _stage_table(stages), "Methods": method_table(rows)},
    )


def methods_of(config: VerifyConfig) -> list[str]:
    """The methods that are measured. Raises `UnknownName` for a method that does not exist."""
    wanted = method_presets.method_names() if "all" in config.method else config.method
    for name in wanted:
        method_presets.method_module(name)
    return list(dict.fromkeys(("dmt", *wanted)))


def _estimate(session: Session, methods: list[str]) -> tuple[MemoryEstimate | None, str]:
    """What doctor predicts; or None, and the reason."""
    config = session.config
    try:
        return memory_estimate.estimate_memory(
            config.backbone, config.settings, session.device, methods, session.size
        ), ""
    except (BadCall, BadModel) as error:
        return None, str(error)


def _stages(session: Session, estimate: MemoryEstimate | None) -> Generator[Event, None, list[Row]]:
    backbone, clip = session.backbone, session.clips[0]
    pixels = to_tensor(clip.video)
    shape = backbone.latent_shape(*session.size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(SEED)).to(backbone.device)
    t = backbone.schedule.sized(shape).grid(STEPS)[0]
    # A guidance-distilled model takes two prompts only with a negative prompt, as in the estimate.
    denoise = backbone.cfg_denoiser(clip.prompt, "a", backbone.defaults.guidance_scale)
    work: dict[str, tuple[Callable[[], object], StageMemory | None]] = {
        "text": (lambda: backbone.encode_text([clip.prompt, ""]), None),
        "sampling": (lambda: denoise(x, t), estimate.sampling if estimate else None),
        "encode": (lambda: backbone.encode(pixels), estimate.encode if estimate else None),
        "decode": (lambda: backbone.decode(x), estimate.decode if estimate else None),
    }
    rows = []
    for index, (name, (once, stage)) in enumerate(work.items(), start=1):
        with torch.no_grad():
            usage, peak = _used(session, once)
        rows.append(
            {
                "stage": name,
                "seconds": usage.seconds,
                "nfe": usage.nfe,
                "peak_bytes": peak,
                "predicted_bytes": _predicted(session, estimate, stage),
            }
        )
        yield Step(stage="measure stages", index=index, total=len(work))
    return rows


def _used(session: Session, once: Callable[[], object]) -> tuple[Usage, int | None]:
    """The usage of the second of two calls, and its memory."""
    ledger = TensorMemory() if session.device.type == "cpu" else nullcontext()
    with ledger:
        once()
    usage = Usage(session.device, session.backbone)
    try:
        once()
    finally:
        usage.stop()
    return usage, ledger.peak if isinstance(ledger, TensorMemory) else usage.peak


def _predicted(
    session: Session, estimate: MemoryEstimate | None, stage: StageMemory | None
) -> int | None:
    """The predicted memory of a stage, of the same kind as the measured one."""
    if estimate is None or stage is None:
        return None
    if not on_cuda(session.device):
        return stage.peak
    weights = {
        "none": estimate.weights,
        "networks": stage.weights,
        "blocks": stage.block_weights,
    }
    return weights[session.backbone.offload] + stage.peak


def _is_above(row: Row, spare: int) -> bool:
    peak, predicted = row["peak_bytes"], row["predicted_bytes"]
    return peak is not None and bool(peak > LIMIT * predicted + spare)


def _stage_table(rows: Sequence[Row]) -> list[list[str]]:
    head = ["stage", "seconds", "network calls", "memory", "predicted"]
    return [
        head,
        *(
            [
                row["stage"],
                f"{row['seconds']:.2f}",
                str(row["nfe"]),
                size_text(row["peak_bytes"]),
                size_text(row["predicted_bytes"]),
            ]
            for row in rows
        ),
    ]
