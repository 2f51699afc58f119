"""Muon for processors without instructions for bfloat16.

This module owns the update in float32. torch's own Muon orthogonalises in bfloat16, which such a
processor emulates at an eightieth of its speed, so that half of a training step is spent there.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Float32Muon(torch.optim.Muon):
    """torch's Muon with the same settings and state, in float32 throughout. Its rates are those of
    `adjust_lr_fn="match_rms_adamw"` (Liu et al., arXiv 2502.16982).

    It takes matrices only, like torch's Muon, which raises ValueError for others.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have gradients. Returns the loss of `closure`, which computes
        the gradients, or None without one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(mean, group["momentum"]) if group["nesterov"] else mean
        update = orthogonalized(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = 0.2 * math.sqrt(max(parameter.shape)) * group["lr"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def orthogonalized(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """The matrix (M, N) with singular values near 1, by Newton-Schulz steps of fifth order (Jordan
    et al. 2024), in the matrix's own precision."""
    a, b, c = coefficients
    wide = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if wide is not matrix else x
