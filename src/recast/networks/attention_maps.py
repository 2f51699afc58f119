"""Reading and replacing the attention maps of diffusers' attention modules with hooks.

A map says how much each position attends to each token. A module does not return its maps: they are
computed again from the outputs of its projections. Owns the context in which they are replaced. It
refuses to know which attentions a role has, and why a map is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from recast.networks.feature_hooks import Tap

Rewrite = Callable[[str, Tensor], Tensor | None]
"""(tap path, maps (B, F, heads, N, M) of N positions and M tokens) -> the maps that replace them;
None leaves the attention unchanged."""


@contextmanager
def rewritten_maps(
    network: nn.Module,
    taps: Sequence[Tap],
    rewrite: Rewrite,
    frames: int,
    clips: slice = slice(None),
) -> Iterator[None]:
    """Inside this context `rewrite` replaces attention maps of the clips of a batch that `clips`
    selects.

    The taps are attention modules of diffusers without a mask, whose outputs are (B·F, N, C). Maps
    are float32, and `rewrite` is called in the order of the layers. A replaced map needs no sum of
    1.
    """
    with ExitStack() as stack:
        for tap in taps:
            attention: Any = network.get_submodule(tap.path)
            seen: dict[str, Tensor] = {}
            for name in ("to_q", "to_k", "to_v"):
                hook = attention.get_submodule(name).register_forward_hook(_store(seen, name))
                stack.callback(hook.remove)
            change = _change(attention, seen, tap.path, rewrite, frames, clips)
            last = attention.get_submodule("to_out.0").register_forward_pre_hook(change)
            stack.callback(last.remove)
        yield


def _store(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def store(module: nn.Module, args: Any, output: Tensor) -> None:
        seen[name] = output

    return store


def _change(
    attention: Any,
    seen: dict[str, Tensor],
    path: str,
    rewrite: Rewrite,
    frames: int,
    clips: slice,
) -> Callable[[nn.Module, Any], Any]:
    """A hook before the last layer of an attention, which gets the weighted sums of the values."""

    def change(module: nn.Module, args: Any) -> Any:
        layout, sizes = "(b f) n (h d) -> b f h n d", {"f": frames, "h": attention.heads}
        queries, keys, values = (
            rearrange(seen.pop(name), layout, **sizes)[clips].float()
            for name in ("to_q", "to_k", "to_v")
        )
        new = rewrite(path, (queries @ keys.mT * attention.scale).softmax(-1))
        if new is None:
            return None
        output = rearrange(args[0], "(b f) n c -> b f n c", f=frames).clone()
        output[clips] = rearrange(new @ values, "b f h n d -> b f n (h d)").to(output)
        return (rearrange(output, "b f n c -> (b f) n c"), *args[1:])

    return change
