"""Optimisation: minimising a loss over a tensor.

Owns the steps of the inner optimisation and the scaling of its gradients. Knows no network, no
method and no loss.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from recast.errors import NotFinite

Loss = Callable[[Tensor], Tensor]
GradientAt = Callable[[Tensor, int], "GradientResult"]  # (x, number of the step)

_SMALLEST_SCALE = 2.0**-8
_STEPS_TO_GROWTH = 2000
"""Number of iterations without an overflow after which torch's GradScaler doubles its scale."""


class LossScale:
    """The factor by which a loss is multiplied before the backward pass; its gradient is divided by
    it afterwards.

    Without it, the gradients of a mean over a clip would underflow in float16. A gradient that
    overflows lowers the scale, and the scale stays lowered for as long as the object is used. It is
    a power of two, so it changes no rounding in other precisions.
    """

    def __init__(self) -> None:
        self.value = 2.0**12
        self.steps_without_overflow = 0

    def lower(self, divisor: float) -> None:
        """Divide the scale after an overflow. Raises `NotFinite` if the scale is already the
        smallest one."""
        if self.value <= _SMALLEST_SCALE:
            raise NotFinite(
                f"the gradient is not finite, even with the smallest loss scale, {self.value:g}"
            )
        self.value = max(_SMALLEST_SCALE, self.value / divisor)
        self.steps_without_overflow = 0

    def count_step(self) -> None:
        """Count an optimizer step, and double the scale after 2000 steps without an overflow."""
        self.steps_without_overflow += 1
        if self.steps_without_overflow == _STEPS_TO_GROWTH:
            self.value *= 2
            self.steps_without_overflow = 0

    def as_tensor(self) -> Tensor:
        """The state of the scale, for a checkpoint."""
        return torch.tensor([self.value, self.steps_without_overflow], dtype=torch.float64)

    def load(self, state: Tensor) -> None:
        """Load the state that `as_tensor` returned."""
        value, steps = state.tolist()
        self.value, self.steps_without_overflow = value, int(steps)


class Minimizer(Protocol):
    """A function like `minimize`."""

    def __call__(
        self,
        loss: Loss,
        start: Tensor,
        sizes: Sequence[float],
        /,
        scale: LossScale | None = None,
        early_stop: float = 0.0,
    ) -> tuple[Tensor, list[float]]:
        """The last tensor, and the losses before every step."""


def descend(
    loss: Loss,
    start: Tensor,
    lrs: Sequence[float],
    optimizer: Callable[..., Optimizer] = torch.optim.Adam,
    scale: LossScale | None = None,
) -> Iterator[tuple[Tensor, float]]:
    """Minimise a scalar loss from `start`, a tensor of any shape, with one step of a new optimizer
    for each learning rate. Gradients are enabled only while the loss is computed.

    Yields the detached tensor after each step and the loss before that step. If several calls share
    a `scale`, none of them tries a scale at which another one overflowed. Raises `NotFinite`.
    """
    gradient_at = _checked_gradients(loss, scale or LossScale())
    for x, value in _descend(gradient_at, start, lrs, optimizer):
        yield x, float(value)


def _descend(
    gradient_at: GradientAt,
    start: Tensor,
    lrs: Sequence[float],
    optimizer: Callable[..., Optimizer] = torch.optim.Adam,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The detached tensor after each step of an optimizer, and the loss before that step."""
    x = start.detach().clone().requires_grad_(True)
    stepper = optimizer([x], lr=1.0)
    for index, lr in enumerate(lrs):
        stepper.param_groups[0]["lr"] = lr
        x.grad, value = gradient_at(x, index)
        stepper.step()
        yield x.detach().clone(), value


class GradientResult(NamedTuple):
    """The gradient of a loss, and the loss, a scalar."""

    gradient: Tensor
    loss: Tensor


def gradient(loss: Loss, x: Tensor, scale: LossScale | None = None) -> GradientResult:
    """The gradient of a scalar loss at x, a tensor of any shape. Gradients are enabled only inside.

    If the scaled gradient overflows, as that of a sum over a clip may in float16, `scale` is
    lowered to a sixteenth and the gradient is computed again. Raises `NotFinite` if the loss is not
    finite, or if its gradient is not finite with the smallest scale.
    """
    scale = scale or LossScale()
    while True:
        result = _gradient_with(scale.value, loss, x)
        if not bool(result.loss.isfinite()):
            raise NotFinite(f"the loss is {float(result.loss)}")
        if bool(result.gradient.isfinite().all()):
            return result
        scale.lower(16)


def _gradient_with(scale: float, loss: Loss, x: Tensor) -> GradientResult:
    """The gradient of a loss at x with one loss scale. Nothing waits for the device, and neither
    result need be finite."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().clone().requires_grad_(True)
        value = loss(x)
        (scaled_gradient,) = torch.autograd.grad(scale * value, x)
    return GradientResult(scaled_gradient / scale, value.detach())


def _checked_gradients(loss: Loss, scale: LossScale) -> GradientAt:
    """`gradient` at each inner step, whose number an error names."""

    def gradient_at(x: Tensor, index: int) -> GradientResult:
        try:
            return gradient(loss, x, scale)
        except NotFinite as error:
            raise NotFinite(f"{error} after {index} inner steps") from error

    return gradient_at


def _take_steps(
    steps_of: Callable[[GradientAt], Iterator[tuple[Tensor, Tensor]]],
    loss: Loss,
    start: Tensor,
    scale: LossScale | None,
    early_stop: float,
) -> tuple[Tensor, list[float]]:
    """Take the inner steps that `steps_of` yields, each as x and the loss before it.

    A number that is read from a GPU makes the CPU wait until the GPU has computed it, and then the
    GPU until it gets new work. So losses and gradients are checked once, after the last step. If
    one is not finite, all steps are taken again with a check at each, which lowers the loss scale
    or raises `NotFinite`. An early stop needs the loss of each step.
    """
    scale = scale or LossScale()
    x = start.detach().clone()
    if not early_stop:
        losses, finite = list[Tensor](), torch.ones((), dtype=torch.bool, device=x.device)

        def unchecked(x: Tensor, index: int) -> GradientResult:
            nonlocal finite
            result = _gradient_with(scale.value, loss, x)
            finite = finite & result.loss.isfinite() & result.gradient.isfinite().all()
            return result

        for after, value in steps_of(unchecked):
            x = after
            losses.append(value)
        if bool(finite):
            return x, [float(value) for value in losses]
    read = list[float]()
    for after, value in steps_of(_checked_gradients(loss, scale)):
        x = after
        read.append(float(value))
        if _has_stalled(read, early_stop):
            break
    return x, read


def _has_stalled(losses: Sequence[float], early_stop: float) -> bool:
    """Whether the last but one step lowered the loss by less than a fraction of it."""
    if early_stop == 0 or len(losses) < 2:
        return False
    return losses[-2] - losses[-1] < early_stop * losses[-2]


def minimize(
    loss: Loss,
    start: Tensor,
    lrs: Sequence[float],
    scale: LossScale | None = None,
    early_stop: float = 0.0,
) -> tuple[Tensor, list[float]]:
    """Minimise a scalar loss from `start` with a new Adam, one step for each learning rate. Returns
    the last tensor and the losses before every step.

    After a step that lowered the loss by less than the fraction `early_stop` comes only one more,
    whose gradient is known by then; 0 takes all steps. `scale` is as in `descend`. Raises
    `NotFinite`. `loss` may be called again at the start if it or its gradient is not finite.
    """
    return _take_steps(lambda at: _descend(at, start, lrs), loss, start, scale, early_stop)


def minimize_by_lbfgs(
    loss: Loss,
    start: Tensor,
    largest: Sequence[float],
    scale: LossScale | None = None,
    early_stop: float = 0.0,
) -> tuple[Tensor, list[float]]:
    """Minimise a scalar loss, whose smallest value is 0, from `start` by L-BFGS (Nocedal and
    Wright, "Numerical Optimization", 2006, algorithm 7.4), with one step for each number in
    `largest` and without a line search.

    The first step goes along the gradient and has Polyak's size, loss / |gradient|² (Polyak,
    "Introduction to Optimization", 1987, section 5.3), which reaches 0 where the loss is linear.
    Later ones know the curvature from the steps before. The root mean square of a step over the
    elements of x is at most the number in `largest`. `early_stop`, results and errors are as those
    of `minimize`.
    """
    return _take_steps(
        lambda at: _quasi_newton_steps(at, start, largest), loss, start, scale, early_stop
    )


class _Curvature(NamedTuple):
    """What one step says about the curvature."""

    change: Tensor
    """The change of x, (N,)."""
    gradient_change: Tensor
    """(N,)."""
    product: Tensor
    """The scalar product of both. A step counts where it is above 0."""

    def divide(self, number: Tensor) -> Tensor:
        """A scalar divided by the product; 0 if the step does not count."""
        return torch.where(self.product > 0, number / self.product, 0.0)


def _quasi_newton_steps(
    gradient_at: GradientAt, start: Tensor, largest: Sequence[float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensor after each step of L-BFGS, and the loss before that step."""
    x, curvature = start.detach().clone(), list[_Curvature]()
    before: tuple[Tensor, Tensor] | None = None
    for index, limit in enumerate(largest):
        direction, value = gradient_at(x, index)
        slope = direction.float().flatten()
        if before is not None:
            change, gradient_change = x.float().flatten() - before[0], slope - before[1]
            curvature.append(_Curvature(change, gradient_change, change @ gradient_change))
        before = x.float().flatten(), slope
        step = _quasi_newton(slope, curvature, value.float())
        size = step.square().mean().sqrt()
        # As exact as a Python number; Apple's GPUs have no float64.
        size = size if size.device.type == "mps" else size.double()
        x = x - ((limit / size).clamp(max=1).float() * step).view_as(x).to(x.dtype)
        yield x, value


def _quasi_newton(gradient: Tensor, curvature: Sequence[_Curvature], loss: Tensor) -> Tensor:
    """The inverse Hessian times the gradient (N,), by the two loops of L-BFGS. Without a step that
    counts, the inverse Hessian is Polyak's factor. A gradient of 0 gives 0."""
    square = gradient @ gradient
    factor = torch.where(square > 0, loss / square, 0.0)
    for before in curvature:
        last = before.product / (before.gradient_change @ before.gradient_change)
        factor = torch.where(before.product > 0, last, factor)
    step, weights = gradient, list[Tensor]()
    for before in reversed(curvature):
        weights.append(before.divide(before.change @ step))
        step = step - weights[-1] * before.gradient_change
    step = step * factor
    for before, weight in zip(curvature, reversed(weights), strict=True):
        step = step + (weight - before.divide(before.gradient_change @ step)) * before.change
    return step
