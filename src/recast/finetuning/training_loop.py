"""The learn loop: train adapters iteration by iteration, with events and checkpoints.

Owns the order of training and what a checkpoint is. Knows no method and no layer.
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
    """Train from `state`: a motion that holds only the clip's noise, or a checkpoint.

    Returns a motion with the temporal adapter's parameters in float16 and the losses of all
    iterations in its metadata. Raises `BadMotion` for a checkpoint that does not fit, and
    `NotFinite`.
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
