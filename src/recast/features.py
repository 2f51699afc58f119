"""Reading and replacing features inside a network, by forward hooks that are always removed.

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
    """(the module's output, number of frames) -> (B, F, H, W, C): a choice of its entries, in
    another order."""
    heads: int = 1
    """Into how many heads attention parts the channels."""


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
            seen[tap.path] = tap.to_features(_tensor(output), frames)
            if stop and len(seen) == len(taps):
                raise _Stop

        return keep

    handles: list[RemovableHandle] = []
    try:
        for tap in taps:
            handles.append(network.get_submodule(tap.path).register_forward_hook(hook(tap)))
        yield seen
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def override(
    network: nn.Module, taps: Sequence[Tap], features: Mapping[str, Tensor], frames: int
) -> Iterator[None]:
    """Within the block, the network goes on with these features in place of the taps' own.

    tap path -> (B, F, H, W, C), or of one clip for a batch of any size. What of an output is no
    feature stays as it is. With checkpointing the way back belongs into the block too.
    """

    def hook(tap: Tap) -> Callable[[nn.Module, Any, Any], Any]:
        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            own = _tensor(output)
            # Where each feature stands in the output: whatever the layout, this undoes it.
            place = torch.arange(own.numel(), device=own.device).reshape(own.shape)
            place = tap.to_features(place, frames)
            new = features[tap.path].to(own).expand(place.shape)
            out = own.flatten().index_copy(0, place.flatten(), new.flatten()).reshape(own.shape)
            return out if isinstance(output, Tensor) else (out, *output[1:])

        return replace

    handles: list[RemovableHandle] = []
    try:
        for tap in taps:
            handles.append(network.get_submodule(tap.path).register_forward_hook(hook(tap)))
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


def _tensor(output: Any) -> Tensor:
    """The tensor of a module's output, which may be a tuple or one of diffusers' dataclasses."""
    if isinstance(output, Tensor):
        return output
    first = output[0]
    assert isinstance(first, Tensor)
    return first
