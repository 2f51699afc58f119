"""The training loop: it trains adapters and yields `Step`, `Note` and `Checkpoint` events.

Owns the order of training and the content of a checkpoint. Knows no method and no layer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, final

from torch.optim import Optimizer

from recast.diffusion.optimize import LossScale
from recast.diffusion.training import Iteration, adamw, train
from recast.events import Checkpoint, Event, Note, Step
from recast.finetuning import parameters
from recast.finetuning.objectives import TrainingObjective
from recast.motions.motion import Motion


def train_with_checkpoints(
    objective: TrainingObjective,
    spatial_lr: float,
    optimizer_class: Callable[..., Optimizer],
    state: Motion,
) -> Generator[Event, None, Motion]:
    """Train from `state`, which is a motion that holds at most the inverted noise, or a checkpoint.

    Returns a motion with the noise of `state`, the temporal adapter's parameters in float16, and
    the losses of all iterations in its metadata. Raises `BadMotion` for a checkpoint that does not
    fit the adapters, and `NotFinite`.
    """
    config, scale = objective.config, LossScale()
    groups = objective.groups(spatial_lr)
    optimizer = adamw(groups, config.weight_decay, optimizer_class)
    parameters.restore_optimizer(optimizer, scale, groups, state)
    progress = _Progress(objective, optimizer, scale, state)
    done, total = len(progress.losses), config.iterations
    for iteration in train(
        groups, optimizer, total, done=done, clip=config.clip_gradient, scale=scale
    ):
        progress.count(iteration)
        if iteration.skipped:
            yield Note(
                text=f"training iteration {iteration.number} was skipped, because its gradient is "
                f"not finite; the loss scale is {scale.value:g} from now on"
            )
        index = iteration.number
        yield Step(stage="train", index=index, total=total, metrics={"loss": iteration.loss})
        if index % config.checkpoint_every == 0 and index < total:
            yield Checkpoint(index=index, state=progress.checkpoint)
    learned = {name: tensor.half() for name, tensor in objective.temporal.tensors.items()}
    return parameters.with_parameters(state, learned, progress.losses)


@final
@dataclass(slots=True, eq=False)
class _Progress:
    """The progress of a training, from which a checkpoint is copied only when one is saved."""

    objective: TrainingObjective
    optimizer: Optimizer
    scale: LossScale
    state: Motion
    losses: list[float] = field(init=False)
    """The losses of all finished iterations."""
    changing: bool = False
    """Whether an optimizer step has begun that belongs to no finished iteration yet."""

    def __post_init__(self) -> None:
        self.losses = parameters.losses(self.state)
        self.optimizer.register_step_pre_hook(self._begin_change)

    def count(self, iteration: Iteration) -> None:
        """Count a finished iteration."""
        self.losses.append(iteration.loss)
        self.changing = False

    def checkpoint(self) -> Motion | None:
        """A copy of the state after the last finished iteration; None if the parameters have begun
        to change since then."""
        if self.changing:
            return None
        objective = self.objective
        tensors = parameters.checkpoint_tensors(
            objective.temporal, objective.spatial, self.optimizer, self.scale
        )
        return parameters.with_parameters(self.state, tensors, self.losses)

    def _begin_change(self, *_: Any) -> None:
        self.changing = True
