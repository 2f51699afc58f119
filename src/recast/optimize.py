"""The one optimisation loop: minimise a loss over tensors, and say how it went."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recast.errors import NotFinite


def minimize(
    loss: Callable[[Tensor], Tensor], start: Tensor, lrs: Sequence[float]
) -> tuple[Tensor, list[float]]:
    """One step of a fresh Adam for each of `lrs`, from `start`; gradients are on in here only.

    Returns the minimiser, detached, and the loss before every step.
    """
    x = start.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr=1.0)
    history = []
    for lr in lrs:
        optimizer.param_groups[0]["lr"] = lr
        with torch.enable_grad():
            value = loss(x)
            (x.grad,) = torch.autograd.grad(value, x)
        history.append(float(value.detach()))
        if not torch.isfinite(value):
            raise NotFinite(f"the loss is {history[-1]} after {len(history) - 1} inner steps")
        optimizer.step()
    return x.detach(), history
