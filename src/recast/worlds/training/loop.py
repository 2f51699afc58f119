"""The training loop of all networks of the rendered worlds: EMA, checkpoints, resuming, a log.

This module refuses to know data and networks; a `Stage` brings both. Batch `n` of a stage depends
only on the seed and on `n`, so that a resumed run sees the same batches as an uninterrupted one.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recast.errors import BadCall
from recast.events import Event, Step, job
from recast.media.atomic_files import atomic
from recast.networks.devices import has_bfloat16

Loss = Callable[[Any, int, np.random.Generator], Tensor]


def autocast(device: str) -> torch.autocast:
    """Networks run in bfloat16 inside this context if that is faster: on GPUs, and on processors
    with instructions for it (AMX, or AVX-512 BF16). Other processors stay with float32."""
    return torch.autocast(device, torch.bfloat16, enabled=device != "cpu" or has_bfloat16())


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One network, its loss, and the settings of its training."""

    name: str
    model: nn.Module
    loss: Loss
    """A function (model, step, rng) -> scalar that also draws the batch."""
    steps: int
    lr: float
    warmup: int = 100
    """Steps over which the learning rate rises from zero."""
    cooldown: float = 0.25
    """Fraction of the steps, at the end, over which the learning rate falls to zero."""
    ema: float = 0.999
    weight_decay: float = 0.01
    muon: bool = False
    """Train the matrices inside blocks with Muon at the same rate (Jordan et al. 2024; scaled to
    AdamW's step size as in Liu et al., arXiv 2502.16982), and the other parameters with AdamW. The
    transformer then needs 200 steps where AdamW at 6e-4 needs about 300."""
    frozen: tuple[str, ...] = ()
    """Parts of the network, such as "clip.text_model", whose parameters stay unchanged."""
    checkpoint_every: int = 200
    on_checkpoint: Callable[[nn.Module, int], None] | None = None
    """Called at every checkpoint with the averaged model and the number of steps."""


@job
def train_stage(stage: Stage, folder: Path, seed: int = 0) -> Generator[Event, None, nn.Module]:
    """Train `stage.model` in place. The result is the same model with its EMA weights.

    `folder` receives `<name>.pt`, the checkpoint from which an interrupted run resumes, and
    `<name>.jsonl`, the log. Raises `BadCall` if the stage needs Muon and the installed torch has no
    Muon.
    """
    model = stage.model.train().requires_grad_(True)
    for part in stage.frozen:
        model.get_submodule(part).requires_grad_(False)
    average = copy.deepcopy(model).requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizers = _optimizers(stage, model)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{stage.name}.pt"
    start = _resume(checkpoint, model, average, optimizers)
    start_time = time.monotonic()
    losses: list[Tensor] = []  # read together, because each reading waits for the device
    for step in range(start, stage.steps):
        losses.append(_update(stage, model, optimizers, parameters, step, seed))
        _update_average(average, model, min(stage.ema, (1 + step) / (10 + step)))
        if (step + 1) % 50 == 0 or step + 1 == stage.steps:
            row = {"step": step + 1, "loss": float(torch.stack(losses).mean())}
            row["seconds"] = round(time.monotonic() - start_time, 1)
            with (folder / f"{stage.name}.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            losses.clear()
            yield Step(stage=stage.name, index=step + 1, total=stage.steps, metrics=row)
        if (step + 1) % stage.checkpoint_every == 0 or step + 1 == stage.steps:
            _save(checkpoint, model, average, optimizers, step + 1)
            if stage.on_checkpoint is not None:
                stage.on_checkpoint(average, step + 1)
    model.load_state_dict(average.state_dict())
    return model.eval().requires_grad_(False)


def _optimizers(stage: Stage, model: nn.Module) -> list[torch.optim.Optimizer]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if stage.muon and "blocks." in name and p.ndim == 2]
    by_muon = set(matrices)
    others = [p for _, p in named if p not in by_muon]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=stage.lr, weight_decay=stage.weight_decay)
    ]
    if matrices:
        if not hasattr(torch.optim, "Muon"):
            raise BadCall(
                f"training a transformer needs torch 2.9 or newer, got {torch.__version__}"
            )
        muon = _muon(matrices[0].device)(
            matrices,
            lr=stage.lr,
            weight_decay=stage.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        optimizers.append(muon)
    return optimizers


def _muon(device: torch.device) -> type[torch.optim.Muon]:
    if device.type != "cpu" or has_bfloat16():
        return torch.optim.Muon
    from recast.worlds.training.muon import Float32Muon  # fails with a torch that has no Muon

    return Float32Muon


def _update(
    stage: Stage,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    parameters: list[nn.Parameter],
    step: int,
    seed: int,
) -> Tensor:
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = stage.lr * _lr_factor(step, stage)
    # For dropout and posterior noise inside the networks.
    torch.manual_seed(seed * 1_000_003 + step)
    loss = stage.loss(model, step, np.random.default_rng([seed, step]))
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach()


def _lr_factor(step: int, stage: Stage) -> float:
    remaining = (stage.steps - step) / max(1.0, stage.cooldown * stage.steps)
    falling = 0.5 - 0.5 * math.cos(math.pi * min(1.0, remaining))
    return min(1.0, (step + 1) / stage.warmup, falling)


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    pairs = zip(average.parameters(), model.parameters(), strict=True)
    for mean, value in pairs:
        mean.lerp_(value, 1 - decay)


def _save(
    path: Path,
    model: nn.Module,
    average: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
) -> None:
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
    }
    with atomic(path) as temporary:
        torch.save(state, temporary)


def _resume(
    path: Path,
    model: nn.Module,
    average: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])
