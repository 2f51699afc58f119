"""Reading, replacing and shifting features inside a network, by forward hooks that are always
removed.

Features are (B, F, H, W, C). What a role's taps are is the backbone's business.
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
    """One place in a network: a module, and how its output reads as features."""

    path: str
    to_features: Callable[[Tensor, int], Tensor]
    """(the module's output, frames of x_t) -> (B, F, H, W, C): a choice of its entries, in another
    order; F is less where a layer packs frames."""
    heads: int = 1
    """Into how many heads attention parts the channels."""
    also: tuple[str, ...] = ()
    """Modules that stand in for it in some passes, as one expert does for another."""
    parts: int = 1
    """How many tensors the output is that read as one, side by side in their last dimension, as
    cosines and sines do."""


class _Stop(Exception):
    """Ends a forward pass of which nothing more is wanted. Never leaves `record`."""


@contextmanager
def record(
    network: nn.Module, taps: Sequence[Tap], frames: int, *, stop: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Within the block, a forward pass fills the dict: tap path -> features.

    With `stop`, the pass ends as soon as every tap has been seen, and with it the block: the call
    of the network has to be its last statement. Gradients flow as they do in a full pass.
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
    """Within the block, the network goes on with these features in place of the taps' own.

    tap path -> (B, F, H, W, C), or of one clip for a batch of any size. What of an output is no
    feature stays as it is. With checkpointing the way back belongs into the block too.
    """
    with _written(network, taps, features, frames, Tensor.index_copy):
        yield


@contextmanager
def added(
    network: nn.Module, taps: Sequence[Tap], offsets: Mapping[str, Tensor], frames: int
) -> Iterator[None]:
    """Within the block, the network goes on with the taps' own features plus these; else as
    `override`."""
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
    """`write` puts new features at their places in a flat output, (output, 0, places, new)."""

    def hook(tap: Tap) -> Callable[[nn.Module, Any, Any], Any]:
        def change(module: nn.Module, args: Any, output: Any) -> Any:
            own = _tensor(output, tap.parts)
            # Where each feature stands in the output: whatever the layout, this undoes it.
            place = torch.arange(own.numel(), device=own.device).reshape(own.shape)
            place = tap.to_features(place, frames)
            new = features[tap.path].to(own)
            # Where a batch reads as one clip, its clips' positions follow one another.
            new = new.repeat(1, 1, place.shape[2] // new.shape[2], 1, 1).expand(place.shape)
            out = write(own.flatten(), 0, place.flatten(), new.flatten()).reshape(own.shape)
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
            for path in (tap.path, *tap.also):
                handles.append(network.get_submodule(path).register_forward_hook(hook(tap)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def unrolled(features: Tensor, height: int, width: int) -> Tensor:
    """Positions that stand in a row, (B, F, H·W, 1, C), as a grid (B, F, H, W, C): that of latents
    of this height and width, or of them halved as often as needed. Grids stay as they are.

    Raises `BadCall` for a row that is no such grid.
    """
    rows, columns = features.shape[2:4]
    if columns > 1:
        return features
    tall, wide = height, width
    while tall * wide > rows and tall * wide > 1:
        tall, wide = math.ceil(tall / 2), math.ceil(wide / 2)
    if tall * wide != rows:
        raise BadCall(
            f"{rows} positions are no grid of {height}x{width} latents, nor of its halves"
        )
    return rearrange(features, "b f (h w) 1 c -> b f h w c", h=tall)


def _tensor(output: Any, parts: int = 1) -> Tensor:
    """The tensor of a module's output, which may be a tuple or one of diffusers' dataclasses; of
    several `parts`, all of them side by side."""
    if isinstance(output, Tensor):
        return output
    assert isinstance(output[0], Tensor)
    return output[0] if parts == 1 else torch.cat(output[:parts], -1)
