"""The one optimisation loop: go down a loss over tensors, and say how it went."""

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
        with torch.enable_grad():
            value = loss(x)
            (x.grad,) = torch.autograd.grad(value, x)
        reached = float(value.detach())
        if not torch.isfinite(value):
            raise NotFinite(f"the loss is {reached} after {index} inner steps")
        stepper.step()
        yield x.detach().clone(), reached


def minimize(
    loss: Callable[[Tensor], Tensor], start: Tensor, lrs: Sequence[float]
) -> tuple[Tensor, list[float]]:
    """All of `descend` by Adam: where it ends, and the loss before every step."""
    seen = list(descend(loss, start, lrs))
    end = seen[-1][0] if seen else start.detach().clone()
    return end, [value for _, value in seen]
