"""Optimisation: minimising a loss over a tensor, and training parameters.

Owns optimizers, their state and gradient scaling. Knows no network, no method and no loss.
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
"""Losses are multiplied by this scale before the backward pass, and gradients are divided by it
afterwards, because the gradients of a mean over a clip would underflow in float16. The scale is a
power of two, so it changes no rounding in other precisions."""


def descend(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    lrs: Sequence[float],
    optimizer: Callable[..., Optimizer] = torch.optim.Adam,
) -> Iterator[tuple[Tensor, float]]:
    """Minimise a scalar loss from `start`, a tensor of any shape, with one step of a new optimizer
    for each learning rate. Gradients are enabled only while the loss is computed.

    Yields the detached tensor after each step and the loss before that step. Raises `NotFinite`.
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
    """The gradient of a scalar loss at x, a tensor of any shape. Gradients are enabled only inside.

    The loss is multiplied by `scale` before the backward pass. If the scaled gradient overflows, as
    that of a sum over a clip may in float16, it is computed again with a sixteenth of the scale.
    Raises `NotFinite` if the loss is not finite, or if its gradient is not finite at scale 1.
    """
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().clone().requires_grad_(True)
        value = loss(x)
        (scaled_gradient,) = torch.autograd.grad(scale * value, x)
    loss_value = float(value.detach())
    if not math.isfinite(loss_value):
        raise NotFinite(f"the loss is {loss_value}")
    if bool(scaled_gradient.isfinite().all()):
        return GradientResult(scaled_gradient / scale, loss_value, scale)
    if scale == 1:
        raise NotFinite("the gradient is not finite")
    return gradient(loss, x, max(1.0, scale / 16))


def minimize(
    loss: Callable[[Tensor], Tensor], start: Tensor, lrs: Sequence[float]
) -> tuple[Tensor, list[float]]:
    """Minimise a scalar loss from `start` with a new Adam, one step for each learning rate. Returns
    the last tensor and the losses before every step. Raises `NotFinite`."""
    steps = list(descend(loss, start, lrs))
    end = steps[-1][0] if steps else start.detach().clone()
    return end, [value for _, value in steps]


class Group(NamedTuple):
    """Parameters that are trained with one learning rate and one loss."""

    parameters: Sequence[nn.Parameter]
    lr: float
    loss: Callable[[int], AbstractContextManager[Tensor | None]]
    """Number of the iteration -> a context manager whose value is the scalar loss. It keeps the
    adapters applied until the gradient is computed. A loss of None means that the iteration does
    not change the parameters."""


def adamw_class(eight_bit: bool) -> Callable[..., Optimizer]:
    """AdamW (Loshchilov & Hutter 2019) or, with `eight_bit`, the AdamW of bitsandbytes, whose 8-bit
    moments need a quarter of the memory. Raises `BadCall` if bitsandbytes is not installed."""
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
    """One optimizer for all groups, with the default betas 0.9 and 0.999 and ε = 1e-8."""
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
    """Train from iteration `done` + 1 to `iterations`. Yields the number of each iteration and the
    loss of the first group.

    Each group gets the gradient of its own loss, and one optimizer step updates all groups. The
    norm of each group's gradient is clipped to `clip`; 0 turns clipping off. Raises `NotFinite`.
    """
    for index in range(done + 1, iterations + 1):
        values = [_compute_gradients(group, index, clip) for group in groups]
        optimizer.step()
        yield index, values[0]


def _compute_gradients(group: Group, index: int, clip: float) -> float:
    """Set the gradients of a group's parameters. Returns the loss, or NaN for an iteration that
    does not change the parameters."""
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
    """Copies of an optimizer's state on the CPU: "<index of the parameter>.<name>" -> tensor."""
    states = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().clone()
        for index, state in states.items()
        for name, value in state.items()
    }


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the state that `optimizer_tensors` returned into an optimizer of the same parameters."""
    state_dict = optimizer.state_dict()
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        is_count = tensor.ndim == 0 and not tensor.is_floating_point()
        state = state_dict["state"].setdefault(int(index), {})
        state[name] = int(tensor) if is_count else tensor.clone()
    optimizer.load_state_dict(state_dict)
