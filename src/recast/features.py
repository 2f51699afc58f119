"""Reading features inside a network, by forward hooks that are always removed.

Features are (B, F, H, W, C). What a role's taps are is the backbone's business.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Tap(NamedTuple):
    """One place in a network: a module, and how its output reads as features."""

    path: str
    to_features: Callable[[Tensor, int], Tensor]
    """(the module's output, frames of x_t) -> (B, F, H, W, C); F is less where a layer packs
    frames."""
    also: tuple[str, ...] = ()
    """Modules that stand in for it in some passes, as one expert does for another."""


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
            for path in (tap.path, *tap.also):
                handles.append(network.get_submodule(path).register_forward_hook(hook(tap)))
        yield seen
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _tensor(output: Any) -> Tensor:
    """The tensor of a module's output, which may be a tuple or one of diffusers' dataclasses."""
    if isinstance(output, Tensor):
        return output
    first = output[0]
    assert isinstance(first, Tensor)
    return first
