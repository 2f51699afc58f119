"""Networks whose modules torch.compile has compiled in place.

Compiled code does not call hooks that were added after the compilation. Owns how such modules run
while they have hooks. It refuses to compile anything, and to know what a hook is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def uncompiled_where_hooked(network: nn.Module) -> Iterator[None]:
    """Inside this context, a compiled module runs uncompiled if it or a module inside it has a
    hook. All other compiled modules run compiled."""
    hooked = {
        module: module._compiled_call_impl
        for module in network.modules()
        if module._compiled_call_impl is not None and any(map(has_hook, module.modules()))
    }
    try:
        for module in hooked:
            module._compiled_call_impl = None
        yield
    finally:
        for module, call in hooked.items():
            module._compiled_call_impl = call


def original(network: Any) -> Any:
    """The network that `torch.compile(network)` wraps; any other object itself."""
    return getattr(network, "_orig_mod", network)


def has_hook(module: nn.Module) -> bool:
    """Whether a module calls functions before or after its forward pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
