"""The training loop: it trains adapters and yields `Step` and `Checkpoint` events.

Owns the order of training and the content of a checkpoint. Knows no method and no layer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from torch.optim import Optimizer

from recast.diffusion.optimize import adamw, train
from recast.events import Checkpoint, Event, Step
from recast.finetuning import parameters
from recast.finetuning.objectives import TrainingObjective
from recast.motions.motion import Motion


def train_with_checkpoints(
    objective: TrainingObjective,
    spatial_lr: float,
    optimizer_class: Callable[..., Optimizer],
    state: Motion,
) -> Generator[Event, None, Motion]:
    """Train from `state`, which is a motion that holds only the inverted noise, or a checkpoint.

    Returns a motion with the noise, the temporal adapter's parameters in float16, and the losses of
    all iterations in its metadata. Raises `BadMotion` for a checkpoint that does not fit the
    adapters, and `NotFinite`.
    """
    config, losses = objective.config, parameters.losses(state)
    groups = objective.groups(spatial_lr)
    optimizer = adamw(groups, config.weight_decay, optimizer_class)
    parameters.restore_optimizer(optimizer, groups, state)
    for index, loss in train(
        groups, optimizer, config.iterations, done=len(losses), clip=config.clip_gradient
    ):
        losses.append(loss)
        yield Step(stage="train", index=index, total=config.iterations, metrics={"loss": loss})
        if index % config.checkpoint_every == 0 and index < config.iterations:
            tensors = parameters.checkpoint_tensors(
                objective.temporal, objective.spatial, optimizer
            )
            checkpoint = parameters.with_parameters(state, tensors, losses)
            yield Checkpoint(index=index, state=checkpoint)
    learned = {name: tensor.half() for name, tensor in objective.temporal.tensors.items()}
    return parameters.with_parameters(state, learned, losses)
