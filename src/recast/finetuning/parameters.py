"""Motions that hold trained parameters, and checkpoints of training.

Owns the names of adapter tensors and optimizer state in the motion of a trained method and in a
checkpoint of its training. Knows no method. The tensors of an adapter are defined in
`networks.adapters`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor
from torch.optim import Optimizer

from recast.diffusion.optimize import LossScale
from recast.diffusion.training import Group, load_optimizer_tensors, optimizer_tensors
from recast.errors import BadMotion
from recast.motions.motion import Motion
from recast.networks.adapters import Adapter

_ADAPTER, _SPATIAL, _OPTIMIZER = "adapter/", "spatial/", "optimizer/"
"""Prefixes of the names of a checkpoint's tensors."""
_LOSS_SCALE = "loss_scale"
"""Name of the tensor with the state of the loss scale in a checkpoint."""


def learned_parameters(motion: Motion) -> dict[str, Tensor]:
    """The trained parameters of a motion: name -> tensor. Raises `BadMotion` if the motion has no
    parameters or no noise."""
    motion.check_holds("noise")
    tensors = {name: tensor for name, tensor in motion.tensors.items() if name != "noise"}
    if not tensors:
        raise BadMotion("this motion holds no learned parameters; learn it again")
    return tensors


def with_parameters(
    motion: Motion, tensors: Mapping[str, Tensor], losses: Sequence[float]
) -> Motion:
    """The motion with only its noise, if it has one, and these tensors, and with these losses in
    its metadata."""
    changed = motion.with_tensors(tensors, keep={"noise"} & motion.tensors.keys())
    return replace(changed, metadata={**motion.metadata, "losses": list(losses)})


def losses(motion: Motion) -> list[float]:
    """The losses of all finished iterations."""
    return list(motion.metadata.get("losses", []))


def adapter_tensors(checkpoint: Motion) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the temporal and of the spatial adapter in a checkpoint; an empty dict for an
    adapter that is not in it."""
    return _with_prefix(checkpoint, _ADAPTER), _with_prefix(checkpoint, _SPATIAL)


def checkpoint_tensors(
    temporal: Adapter, spatial: Adapter | None, optimizer: Optimizer, scale: LossScale
) -> dict[str, Tensor]:
    """The tensors that a checkpoint holds besides the noise."""
    tensors = {_LOSS_SCALE: scale.as_tensor(), **_prefixed(_ADAPTER, temporal.tensors)}
    if spatial is not None:
        tensors |= _prefixed(_SPATIAL, spatial.tensors)
    return tensors | _prefixed(_OPTIMIZER, optimizer_tensors(optimizer))


def restore_optimizer(
    optimizer: Optimizer, scale: LossScale, groups: Sequence[Group], checkpoint: Motion
) -> None:
    """Load the state of the optimizer and of the loss scale from a checkpoint, if it holds one.
    Raises `BadMotion` if the state belongs to parameters of other shapes."""
    shapes = [parameter.shape for group in groups for parameter in group.parameters]
    state = _with_prefix(checkpoint, _OPTIMIZER)
    for name, tensor in state.items():
        index = int(name.partition(".")[0])
        # Step counts and the scales of 8-bit moments have fewer than two dimensions.
        if tensor.ndim > 1 and shapes[index : index + 1] != [tensor.shape]:
            raise BadMotion(
                f"the checkpoint's {_OPTIMIZER}{name} has shape {tuple(tensor.shape)}, which does "
                "not fit the parameters"
            )
    load_optimizer_tensors(optimizer, state)
    if _LOSS_SCALE in checkpoint.tensors:
        scale.load(checkpoint.tensors[_LOSS_SCALE])


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _with_prefix(motion: Motion, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, under their names without the prefix."""
    return {n.removeprefix(prefix): t for n, t in motion.tensors.items() if n.startswith(prefix)}
