"""The one optimisation loop: go down a loss over tensors, and say how it went."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from recast.errors import NotFinite


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
    for index, lr in enumerate(lrs):
        stepper.param_groups[0]["lr"] = lr
        x.grad, reached = gradient(loss, x)
        if not math.isfinite(reached):
            raise NotFinite(f"the loss is {reached} after {index} inner steps")
        stepper.step()
        yield x.detach().clone(), reached


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, float]:
    """The gradient of a loss at x, and the loss; gradients are on in here only."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().clone().requires_grad_(True)
        value = loss(x)
        (slope,) = torch.autograd.grad(value, x)
    return slope, float(value.detach())


def minimize(
    loss: Callable[[Tensor], Tensor], start: Tensor, lrs: Sequence[float]
) -> tuple[Tensor, list[float]]:
    """All of `descend` by Adam: where it ends, and the loss before every step."""
    seen = list(descend(loss, start, lrs))
    end = seen[-1][0] if seen else start.detach().clone()
    return end, [value for _, value in seen]
