"""Block offloading: weights stay in main memory and are on the device only while their block runs.

Owns the copies of weights in forward and backward passes. It refuses to know models and settings.
Gradients can be computed after the weights of a block have left the device: autograd saves a
reference to the weight in main memory, and the weight is copied again when the backward pass needs
it. diffusers' group offloading supports forward passes only: for a norm, autograd saves the
parameter itself, whose values are on another device when the backward pass runs.
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
    """What autograd saves in place of a view of a weight's copy on the device."""

    original: Tensor
    """The weight in main memory."""
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


def blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of a network, in order: the entries of its outermost module lists. An entry that
    contains module lists is replaced by their entries, so that no block is larger than a layer that
    gradient checkpointing recomputes."""
    entries: list[nn.Module] = []
    for child in network.children():
        if not isinstance(child, nn.ModuleList):
            entries.extend(blocks(child))
            continue
        for entry in child:
            has_lists = any(isinstance(inner, nn.ModuleList) for inner in entry.children())
            entries.extend(blocks(entry) if has_lists else [entry])
    return entries


def tensors(network: nn.Module) -> list[Tensor]:
    """All parameters and buffers. A tensor that the network uses twice is returned once."""
    return list({id(t): t for t in (*network.parameters(), *network.buffers())}.values())


def outside_blocks(network: nn.Module) -> list[Tensor]:
    """The parameters and buffers that are in no block."""
    inside = {id(tensor) for block in blocks(network) for tensor in tensors(block)}
    return [tensor for tensor in tensors(network) if id(tensor) not in inside]


def attach(network: nn.Module, device: torch.device) -> None:
    """Move the network to main memory permanently. A block is copied to the device when it
    runs."""
    network.to("cpu")
    for block in blocks(network):
        block.forward = partial(_run, block, block.forward, device)


def swap_in(network: nn.Module, networks: Sequence[nn.Module], device: torch.device) -> None:
    """Move the weights that are in no block to the device, and those of all other networks to main
    memory. Does nothing if the weights are already on the device."""
    weights = outside_blocks(network)
    if all(weight.device.type == device.type for weight in weights):
        return
    for other in networks:
        for weight in outside_blocks(other):
            weight.data = weight.data.to("cpu")
    for weight in weights:
        weight.data = weight.data.to(device)


def call_checkpointed(forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Call a forward function under gradient checkpointing. Checkpointing calls it again in the
    backward pass, so autograd saves nothing in this call, and weights need no hooks."""
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
    originals = [(tensor, tensor.data) for tensor in tensors(block)]
    try:
        for tensor, original in originals:
            tensor.data = original.to(device, copy=True)
        if _RECOMPUTED.get():
            yield
        else:
            by_address = {t.untyped_storage().data_ptr(): original for t, original in originals}
            with torch.autograd.graph.saved_tensors_hooks(
                partial(_pack, by_address), partial(_unpack, device)
            ):
                yield
    finally:
        for tensor, original in originals:
            tensor.data = original


def _pack(by_address: dict[int, Tensor], tensor: Tensor) -> Tensor | _SavedWeight:
    original = by_address.get(tensor.untyped_storage().data_ptr())
    if original is None:
        return tensor
    return _SavedWeight(original, tensor.shape, tensor.stride(), int(tensor.storage_offset()))


def _unpack(device: torch.device, saved: Tensor | _SavedWeight) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    copy = saved.original.to(device, copy=True)
    return copy.as_strided(saved.shape, saved.stride, saved.offset)
