"""Reading and changing features inside a network, by forward hooks that are always removed.

Owns `Tap` and the contexts that record, replace and add features, (B, F, H, W, C). It refuses to
know which taps a role has: that is the backbone's knowledge.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from recast.errors import BadCall


class Tap(NamedTuple):
    """One module of a network, and how its output is read as features."""

    path: str
    to_features: Callable[[Tensor, int], Tensor]
    """(output of the module, frames of x_t) -> (B, F, H, W, C): a selection of the output's
    entries, in another order. F is smaller where a token covers several frames."""
    heads: int = 1
    """The number of attention heads into which the channels are divided."""
    alternatives: tuple[str, ...] = ()
    """Modules that take its place in some passes, as one expert takes that of another."""
    parts: int = 1
    """The number of tensors in the output that are read as one, side by side in their last
    dimension, such as cosines and sines."""


class _Stop(Exception):
    """Ends a forward pass early. It never leaves `record`."""


@contextmanager
def record(
    network: nn.Module, taps: Sequence[Tap], frames: int, *, stop: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Inside this context a forward pass fills the dict: tap path -> features.

    With `stop`, the pass ends as soon as every tap has been recorded, and the context ends with it,
    so the call of the network must be its last statement. Gradients flow as in a full pass.
    """
    seen: dict[str, Tensor] = {}

    def hook(tap: Tap) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            seen[tap.path] = tap.to_features(_tensor(output, tap.parts), frames)
            if stop and len(seen) == len(taps):
                raise _Stop

        return keep

    try:
        with _hooked(network, taps, hook):
            yield seen
    except _Stop:
        pass


@contextmanager
def override(
    network: nn.Module, taps: Sequence[Tap], features: Mapping[str, Tensor], frames: int
) -> Iterator[None]:
    """Inside this context the network continues with these features in place of the taps' own.

    `features` maps tap paths to (B, F, H, W, C), or to the features of one clip for a batch of any
    size. Entries of the output that are not part of the features are left unchanged. With gradient
    checkpointing the backward pass must be inside the context too.
    """
    with _written(network, taps, features, frames, Tensor.index_copy):
        yield


@contextmanager
def added(
    network: nn.Module, taps: Sequence[Tap], offsets: Mapping[str, Tensor], frames: int
) -> Iterator[None]:
    """Inside this context the network continues with the taps' own features plus these; otherwise
    as `override`."""
    with _written(network, taps, offsets, frames, Tensor.index_add):
        yield


@contextmanager
def _written(
    network: nn.Module,
    taps: Sequence[Tap],
    features: Mapping[str, Tensor],
    frames: int,
    write: Callable[[Tensor, int, Tensor, Tensor], Tensor],
) -> Iterator[None]:
    """`write(output, 0, indices, new)` puts new features at their indices in a flat output."""

    def hook(tap: Tap) -> Callable[[nn.Module, Any, Any], Any]:
        def change(module: nn.Module, args: Any, output: Any) -> Any:
            own = _tensor(output, tap.parts)
            # The index of each feature in the output, which inverts `to_features` for any layout.
            index = torch.arange(own.numel(), device=own.device).reshape(own.shape)
            index = tap.to_features(index, frames)
            new = features[tap.path].to(own)
            # Where a batch is read as one clip, the positions of its clips follow one another.
            new = new.repeat(1, 1, index.shape[2] // new.shape[2], 1, 1).expand(index.shape)
            out = write(own.flatten(), 0, index.flatten(), new.flatten()).reshape(own.shape)
            if isinstance(output, Tensor):
                return out
            return (*out.chunk(tap.parts, -1), *output[tap.parts :])

        return change

    with _hooked(network, taps, hook):
        yield


@contextmanager
def _hooked(
    network: nn.Module,
    taps: Sequence[Tap],
    hook: Callable[[Tap], Callable[[nn.Module, Any, Any], Any]],
) -> Iterator[None]:
    handles: list[RemovableHandle] = []
    try:
        for tap in taps:
            for path in (tap.path, *tap.alternatives):
                handles.append(network.get_submodule(path).register_forward_hook(hook(tap)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def as_grid(features: Tensor, height: int, width: int) -> Tensor:
    """Positions in a row, (B, F, H·W, 1, C), as a grid (B, F, H, W, C): the grid of latents of this
    height and width, halved as often as needed. Features that are a grid already are returned
    unchanged.

    Raises `BadCall` for a row whose length fits no such grid.
    """
    rows, columns = features.shape[2:4]
    if columns > 1:
        return features
    tall, wide = height, width
    while tall * wide > rows and tall * wide > 1:
        tall, wide = math.ceil(tall / 2), math.ceil(wide / 2)
    if tall * wide != rows:
        raise BadCall(
            f"{rows} positions fit no grid of {height}x{width} latents, nor one of its halves"
        )
    return rearrange(features, "b f (h w) 1 c -> b f h w c", h=tall)


def _tensor(output: Any, parts: int = 1) -> Tensor:
    """The tensor in a module's output, which may be a tuple or one of diffusers' dataclasses; for
    several `parts`, all of them side by side."""
    if isinstance(output, Tensor):
        return output
    assert isinstance(output[0], Tensor)
    return output[0] if parts == 1 else torch.cat(output[:parts], -1)
