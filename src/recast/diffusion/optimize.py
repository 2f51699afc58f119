"""The one place that optimises: descent of a loss over a tensor, and training of adapters."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from recast.errors import NotFinite, missing_extra

_SCALE = 2.0**12
"""Losses are multiplied by this before their gradients pass the network, and the gradients divided:
in float16 those of a mean over a clip would vanish. A power of two changes no other precision."""


def descend(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    lrs: Sequence[float],
    optimizer: Callable[..., Optimizer] = torch.optim.Adam,
) -> Iterator[tuple[Tensor, float]]:
    """One step of a fresh optimizer for each of `lrs`, from `start`; gradients are on in here only.

    Yields what each step arrives at, detached, and the loss before it. Raises `NotFinite`.
    """
    x = start.detach().clone().requires_grad_(True)
    stepper = optimizer([x], lr=1.0)
    scale = _SCALE
    for index, lr in enumerate(lrs):
        stepper.param_groups[0]["lr"] = lr
        try:
            x.grad, reached, scale = gradient(loss, x, scale)
        except NotFinite as error:
            raise NotFinite(f"{error} after {index} inner steps") from error
        stepper.step()
        yield x.detach().clone(), reached


class Slope(NamedTuple):
    """The gradient of a loss, the loss, and the scale at which the gradient passed the network."""

    gradient: Tensor
    loss: float
    scale: float


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor, scale: float = _SCALE) -> Slope:
    """The gradient of a loss at x; gradients are on in here only. Where it is not finite at the
    scale, which a sum over a clip may not be in float16, it is computed again at a sixteenth of it.

    Raises `NotFinite` where the loss is not, or its gradient is not at scale 1.
    """
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().clone().requires_grad_(True)
        value = loss(x)
        (slope,) = torch.autograd.grad(scale * value, x)
    reached = float(value.detach())
    if not math.isfinite(reached):
        raise NotFinite(f"the loss is {reached}")
    if bool(slope.isfinite().all()):
        return Slope(slope / scale, reached, scale)
    if scale == 1:
        raise NotFinite("the gradient is not finite")
    return gradient(loss, x, max(1.0, scale / 16))


def minimize(
    loss: Callable[[Tensor], Tensor], start: Tensor, lrs: Sequence[float]
) -> tuple[Tensor, list[float]]:
    """All of `descend` by Adam: where it ends, and the loss before every step."""
    seen = list(descend(loss, start, lrs))
    end = seen[-1][0] if seen else start.detach().clone()
    return end, [value for _, value in seen]


class Group(NamedTuple):
    """Parameters, their learning rate and their loss.

    The loss of iteration i is the value of a context, which holds in place what it was computed
    with until its gradient is known; None is an iteration that leaves the parameters as they are.
    """

    parameters: Sequence[nn.Parameter]
    lr: float
    loss: Callable[[int], AbstractContextManager[Tensor | None]]


def adamw_class(eight_bit: bool) -> Callable[..., Optimizer]:
    """AdamW (Loshchilov & Hutter 2019), or one whose moments take a quarter of the memory, by
    bitsandbytes. Raises `BadCall` where that is not installed."""
    if not eight_bit:
        return torch.optim.AdamW
    with missing_extra("eight-bit"):
        import bitsandbytes

    kind: Callable[..., Optimizer] = bitsandbytes.optim.AdamW8bit
    return kind


def adamw(
    groups: Sequence[Group],
    weight_decay: float,
    kind: Callable[..., Optimizer] = torch.optim.AdamW,
) -> Optimizer:
    """An optimizer of all groups with betas 0.9 and 0.999 and ε = 1e-8, which are its defaults."""
    rates = [{"params": list(group.parameters), "lr": group.lr} for group in groups]
    return kind(rates, weight_decay=weight_decay)


def train(
    groups: Sequence[Group],
    optimizer: Optimizer,
    iterations: int,
    *,
    done: int = 0,
    clip: float = 0.0,
) -> Iterator[tuple[int, float]]:
    """Take the iterations from `done` + 1 on; after each, its number and the first group's loss.

    Every group follows the gradient of its own loss alone, all of them from the same point. A norm
    of a group's gradient above `clip` is cut to it; 0 does not. Raises `NotFinite`.
    """
    for index in range(done + 1, iterations + 1):
        values = [_differentiated(group, index, clip) for group in groups]
        optimizer.step()
        yield index, values[0]


def _differentiated(group: Group, index: int, clip: float) -> float:
    """The loss, with its gradients in the parameters."""
    with torch.enable_grad(), group.loss(index) as loss:
        if loss is None:
            for parameter in group.parameters:
                parameter.grad = None
            return float("nan")
        found = torch.autograd.grad(_SCALE * loss, list(group.parameters), allow_unused=True)
    for parameter, gradient in zip(group.parameters, found, strict=True):
        parameter.grad = None if gradient is None else gradient / _SCALE
    norm = nn.utils.clip_grad_norm_(group.parameters, clip or float("inf"))
    value = float(loss.detach())
    if not torch.isfinite(loss) or not torch.isfinite(norm):
        raise NotFinite(
            f"the loss is {value} and its gradient's norm {float(norm)} at iteration {index}; try "
            "dtype float32 or bfloat16, or a lower lr"
        )
    return value


def packed(optimizer: Optimizer) -> dict[str, Tensor]:
    """All that an optimizer remembers, as tensors of its own."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().clone()
        for index, memory in state.items()
        for name, value in memory.items()
    }


def restore(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `packed` gave, into an optimizer of the same parameters."""
    whole = optimizer.state_dict()
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        counts = tensor.ndim == 0 and not tensor.is_floating_point()
        memory = whole["state"].setdefault(int(index), {})
        memory[name] = int(tensor) if counts else tensor.clone()
    optimizer.load_state_dict(whole)
