"""Optimisation: descent of a loss over a tensor, and training of parameters.

Owns optimizers, gradient scaling and their state. Knows no network, no method and no loss.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from recast.errors import NotFinite, missing_extra

_SCALE = 2.0**12
"""Losses are multiplied by this scale before the backward pass, and gradients are divided by it:
the gradients of a mean over a clip would underflow in float16. A power of two changes nothing in
other precisions."""


def descend(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    lrs: Sequence[float],
    optimizer: Callable[..., Optimizer] = torch.optim.Adam,
) -> Iterator[tuple[Tensor, float]]:
    """Take one step of a new optimizer for each learning rate, from `start`. Gradients are enabled
    only inside.

    Yields the tensor after each step, detached, and the loss before it. Raises `NotFinite`.
    """
    x = start.detach().clone().requires_grad_(True)
    stepper = optimizer([x], lr=1.0)
    scale = _SCALE
    for index, lr in enumerate(lrs):
        stepper.param_groups[0]["lr"] = lr
        try:
            x.grad, value, scale = gradient(loss, x, scale)
        except NotFinite as error:
            raise NotFinite(f"{error} after {index} inner steps") from error
        stepper.step()
        yield x.detach().clone(), value


class GradientResult(NamedTuple):
    """The gradient of a loss, the loss, and the scale with which the gradient was computed."""

    gradient: Tensor
    loss: float
    scale: float


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor, scale: float = _SCALE) -> GradientResult:
    """The gradient of a loss at x. Gradients are enabled only inside. If the scaled gradient is not
    finite, as a sum over a clip may be in float16, it is computed again with a sixteenth of the
    scale.

    Raises `NotFinite` if the loss is not finite, or if its gradient is not finite at scale 1.
    """
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().clone().requires_grad_(True)
        value = loss(x)
        (slope,) = torch.autograd.grad(scale * value, x)
    loss_value = float(value.detach())
    if not math.isfinite(loss_value):
        raise NotFinite(f"the loss is {loss_value}")
    if bool(slope.isfinite().all()):
        return GradientResult(slope / scale, loss_value, scale)
    if scale == 1:
        raise NotFinite("the gradient is not finite")
    return gradient(loss, x, max(1.0, scale / 16))


def minimize(
    loss: Callable[[Tensor], Tensor], start: Tensor, lrs: Sequence[float]
) -> tuple[Tensor, list[float]]:
    """Descend with a new Adam, one step for each learning rate. Returns the last tensor and the
    loss before every step."""
    steps = list(descend(loss, start, lrs))
    end = steps[-1][0] if steps else start.detach().clone()
    return end, [value for _, value in steps]


class Group(NamedTuple):
    """Parameters, their learning rate and their loss.

    The loss of iteration i is the value of a context manager, which keeps the adapters applied
    until the gradient is computed. None stands for an iteration that does not change the
    parameters.
    """

    parameters: Sequence[nn.Parameter]
    lr: float
    loss: Callable[[int], AbstractContextManager[Tensor | None]]


def adamw_class(eight_bit: bool) -> Callable[..., Optimizer]:
    """AdamW (Loshchilov & Hutter 2019), or the AdamW of bitsandbytes, whose 8-bit moments take a
    quarter of the memory. Raises `BadCall` if bitsandbytes is not installed."""
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
    """An optimizer of all groups with the default betas 0.9 and 0.999 and ε = 1e-8."""
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
    """Take the iterations from `done` + 1 to `iterations`. Yields the number of each iteration and
    the loss of the first group.

    Every group follows the gradient of its own loss only, and all groups step together. The norm
    of each group's gradient is clipped to `clip`; 0 turns clipping off. Raises `NotFinite`.
    """
    for index in range(done + 1, iterations + 1):
        values = [_compute_gradients(group, index, clip) for group in groups]
        optimizer.step()
        yield index, values[0]


def _compute_gradients(group: Group, index: int, clip: float) -> float:
    """Compute the gradients of a group's loss into its parameters. Returns the loss, or NaN for an
    iteration that does not change them."""
    with torch.enable_grad(), group.loss(index) as loss:
        if loss is None:
            for parameter in group.parameters:
                parameter.grad = None
            return float("nan")
        gradients = torch.autograd.grad(_SCALE * loss, list(group.parameters), allow_unused=True)
    for parameter, gradient in zip(group.parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else gradient / _SCALE
    norm = nn.utils.clip_grad_norm_(group.parameters, clip or float("inf"))
    value = float(loss.detach())
    if not torch.isfinite(loss) or not torch.isfinite(norm):
        raise NotFinite(
            f"the loss is {value} and the norm of its gradient {float(norm)} at iteration {index}; "
            "try `dtype=float32`, `dtype=bfloat16` or a lower `lr`"
        )
    return value


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as copied tensors: "<index>.<name>" -> tensor."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().clone()
        for index, memory in state.items()
        for name, value in memory.items()
    }


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the state that `optimizer_tensors` returned into an optimizer of the same parameters."""
    whole = optimizer.state_dict()
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        counts = tensor.ndim == 0 and not tensor.is_floating_point()
        memory = whole["state"].setdefault(int(index), {})
        memory[name] = int(tensor) if counts else tensor.clone()
    optimizer.load_state_dict(whole)
