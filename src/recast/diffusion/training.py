"""Training: parameters that change by the gradients of their losses.

Owns optimizers, their state and the iterations of a training. Knows no network, no method and no
loss.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from recast.diffusion.optimize import LossScale
from recast.errors import NotFinite, missing_extra


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


class Iteration(NamedTuple):
    """One iteration of a training."""

    number: int
    """The number of the iteration, counted from 1."""
    loss: float
    """The loss of the first group."""
    skipped: bool
    """Whether the gradient overflowed, so that the parameters did not change."""


def train(
    groups: Sequence[Group],
    optimizer: Optimizer,
    iterations: int,
    *,
    done: int = 0,
    clip: float = 0.0,
    scale: LossScale | None = None,
) -> Iterator[Iteration]:
    """Train from iteration `done` + 1 to `iterations`.

    Each group gets the gradient of its own loss, and one optimizer step updates all groups. The
    norm of each group's gradient is clipped to `clip`; 0 turns clipping off. If a gradient is not
    finite, the iteration is skipped: no parameter changes, the gradients are set to zero, and
    `scale` is halved, as by torch's GradScaler. Raises `NotFinite` if that does not help.
    """
    scale = scale or LossScale()
    for index in range(done + 1, iterations + 1):
        results = [_compute_gradients(group, index, clip, scale.value) for group in groups]
        skipped = not all(is_finite for _, is_finite in results)
        if skipped:
            optimizer.zero_grad(set_to_none=False)
            with _explained(index, results[0][0]):
                scale.lower(2)
        else:
            optimizer.step()
            scale.count_step()
        yield Iteration(index, results[0][0], skipped)


def _compute_gradients(group: Group, index: int, clip: float, scale: float) -> tuple[float, bool]:
    """Set the gradients of a group's parameters. Returns the loss, or NaN for an iteration that
    does not change the parameters, and whether loss and gradients are finite."""
    with torch.enable_grad(), group.loss(index) as loss:
        if loss is None:
            for parameter in group.parameters:
                parameter.grad = None
            return float("nan"), True
        gradients = torch.autograd.grad(scale * loss, list(group.parameters), allow_unused=True)
    for parameter, gradient in zip(group.parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else gradient / scale
    norm = nn.utils.clip_grad_norm_(group.parameters, clip or float("inf"))
    return float(loss.detach()), bool(torch.isfinite(loss) & torch.isfinite(norm))


@contextmanager
def _explained(index: int, loss: float) -> Iterator[None]:
    """Inside this context a `NotFinite` error gets the iteration, the loss and a remedy added to
    its message."""
    try:
        yield
    except NotFinite as error:
        raise NotFinite(
            f"{error}, and the loss is {loss} at iteration {index}; try `dtype=float32`, "
            "`dtype=bfloat16` or a lower `lr`"
        ) from error


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
