"""Weights that wait in main memory and visit the device block by block, while a block runs.

Knows no model. Gradients flow through blocks that have left: what autograd saves of a visiting
weight is where it is at home, and it comes again when the way back needs it. (diffusers' group
offloading minds forward passes only: of a norm, autograd saves the parameter itself, whose values
by then lie on another device.)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_AGAIN: ContextVar[bool] = ContextVar("again", default=False)


class _Away(NamedTuple):
    """A saved view of a weight."""

    home: Tensor
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


def blocks(network: nn.Module) -> list[nn.Module]:
    """The entries of the outermost module lists, in order; of one that has module lists of its own,
    their entries. So no block is larger than what gradient checkpointing runs again."""
    found: list[nn.Module] = []
    for child in network.children():
        if not isinstance(child, nn.ModuleList):
            found.extend(blocks(child))
            continue
        for entry in child:
            listed = any(isinstance(inner, nn.ModuleList) for inner in entry.children())
            found.extend(blocks(entry) if listed else [entry])
    return found


def tensors(network: nn.Module) -> list[Tensor]:
    """All parameters and buffers, each once."""
    return list({id(one): one for one in (*network.parameters(), *network.buffers())}.values())


def rest(network: nn.Module) -> list[Tensor]:
    """Parameters and buffers that are in no block."""
    inside = {id(one) for block in blocks(network) for one in tensors(block)}
    return [one for one in tensors(network) if id(one) not in inside]


def attach(network: nn.Module, device: torch.device) -> None:
    """From now on the network is at home in main memory, and its blocks visit the device when they
    run."""
    network.to("cpu")
    for block in blocks(network):
        block.forward = partial(_run, block, block.forward, device)


def take_turns(network: nn.Module, networks: Sequence[nn.Module], device: torch.device) -> None:
    """Bring what is in no block of a network to the device, unless it is there; that of the others
    gives way."""
    own = rest(network)
    if all(one.device.type == device.type for one in own):
        return
    for other in networks:
        for one in rest(other):
            one.data = one.data.to("cpu")
    for one in own:
        one.data = one.data.to(device)


def again(forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Call a forward that checkpointing will run again on the way back: it saves nothing, so no
    weight has to be remembered."""
    token = _AGAIN.set(True)
    try:
        return forward(*args, **named)
    finally:
        _AGAIN.reset(token)


def _run(
    block: nn.Module,
    forward: Callable[..., Any],
    device: torch.device,
    *args: Any,
    **named: Any,
) -> Any:
    with _visiting(block, device):
        return forward(*args, **named)


@contextmanager
def _visiting(block: nn.Module, device: torch.device) -> Iterator[None]:
    """Within the block of code the weights are copies on the device."""
    homes = [(one, one.data) for one in tensors(block)]
    try:
        for one, home in homes:
            one.data = home.to(device, copy=True)
        if _AGAIN.get():
            yield
        else:
            known = {one.untyped_storage().data_ptr(): home for one, home in homes}
            with torch.autograd.graph.saved_tensors_hooks(
                partial(_pack, known), partial(_unpack, device)
            ):
                yield
    finally:
        for one, home in homes:
            one.data = home


def _pack(known: dict[int, Tensor], tensor: Tensor) -> Tensor | _Away:
    home = known.get(tensor.untyped_storage().data_ptr())
    if home is None:
        return tensor
    return _Away(home, tensor.shape, tensor.stride(), int(tensor.storage_offset()))


def _unpack(device: torch.device, saved: Tensor | _Away) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    copy = saved.home.to(device, copy=True)
    return copy.as_strided(saved.shape, saved.stride, saved.offset)
