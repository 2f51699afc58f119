"""Weights that stay in main memory and are copied to the device block by block, while a block runs.

Owns the copies of forward and backward passes. It refuses to know models and settings. Gradients
flow through blocks whose weights have left the device: autograd saves a reference to the weight in
main memory, and the weight is copied again when the backward pass needs it. (diffusers' group
offloading supports forward passes only: for a norm, autograd saves the parameter itself, whose
values are on another device by the time of the backward pass.)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_RECOMPUTED: ContextVar[bool] = ContextVar("recomputed", default=False)


class _SavedWeight(NamedTuple):
    """A view of a weight that autograd saves, without its copy on the device."""

    home: Tensor
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


def blocks(network: nn.Module) -> list[nn.Module]:
    """The entries of the outermost module lists, in order; for an entry that has module lists of
    its own, their entries. So no block is larger than a layer that gradient checkpointing
    recomputes."""
    entries: list[nn.Module] = []
    for child in network.children():
        if not isinstance(child, nn.ModuleList):
            entries.extend(blocks(child))
            continue
        for entry in child:
            listed = any(isinstance(inner, nn.ModuleList) for inner in entry.children())
            entries.extend(blocks(entry) if listed else [entry])
    return entries


def tensors(network: nn.Module) -> list[Tensor]:
    """All parameters and buffers, each once."""
    return list({id(one): one for one in (*network.parameters(), *network.buffers())}.values())


def outside_blocks(network: nn.Module) -> list[Tensor]:
    """Parameters and buffers that are in no block."""
    inside = {id(one) for block in blocks(network) for one in tensors(block)}
    return [one for one in tensors(network) if id(one) not in inside]


def attach(network: nn.Module, device: torch.device) -> None:
    """Move the network to main memory for good; its blocks are copied to the device when they
    run."""
    network.to("cpu")
    for block in blocks(network):
        block.forward = partial(_run, block, block.forward, device)


def swap_in(network: nn.Module, networks: Sequence[nn.Module], device: torch.device) -> None:
    """Move the weights outside the blocks of a network to the device, unless they are there, and
    those of the other networks to main memory."""
    own = outside_blocks(network)
    if all(one.device.type == device.type for one in own):
        return
    for other in networks:
        for one in outside_blocks(other):
            one.data = one.data.to("cpu")
    for one in own:
        one.data = one.data.to(device)


def call_checkpointed(forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Call a forward function that checkpointing will call again in the backward pass: autograd
    saves nothing in this call, so no weight has to be recorded."""
    token = _RECOMPUTED.set(True)
    try:
        return forward(*args, **named)
    finally:
        _RECOMPUTED.reset(token)


def _run(
    block: nn.Module,
    forward: Callable[..., Any],
    device: torch.device,
    *args: Any,
    **named: Any,
) -> Any:
    with _on_device(block, device):
        return forward(*args, **named)


@contextmanager
def _on_device(block: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside this context the weights of a block are copies on the device."""
    homes = [(one, one.data) for one in tensors(block)]
    try:
        for one, home in homes:
            one.data = home.to(device, copy=True)
        if _RECOMPUTED.get():
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


def _pack(known: dict[int, Tensor], tensor: Tensor) -> Tensor | _SavedWeight:
    home = known.get(tensor.untyped_storage().data_ptr())
    if home is None:
        return tensor
    return _SavedWeight(home, tensor.shape, tensor.stride(), int(tensor.storage_offset()))


def _unpack(device: torch.device, saved: Tensor | _SavedWeight) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    copy = saved.home.to(device, copy=True)
    return copy.as_strided(saved.shape, saved.stride, saved.offset)
