"""The bytes of all tensors that exist at one time during a computation, on any device.

Owns the count of storages: each storage counts once, as long as something references it. The count
also works on torch's meta device, where tensors have shapes but no values, so that the memory of a
computation can be predicted on a smaller machine. It does not include the workspaces of kernels,
and the rounding and caching of an allocator. It refuses to know models.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Inside this context `current` is the number of bytes of the storages that were created in it
    and still exist, and `peak` is its maximum so far. Older storages, such as weights, are not
    counted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        inputs = {id(storage) for storage in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if id(storage) not in self._known | inputs:
                self._count(storage)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self._known.add(key)
        self.current += size
        self.peak = max(self.peak, self.current)

        def drop() -> None:
            self._known.discard(key)
            self.current -= size

        # torch keeps one Python object for a storage as long as the storage lives.
        weakref.finalize(storage, drop).atexit = False


@contextmanager
def fused_attention() -> Iterator[None]:
    """Inside this context attention saves the same tensors for the backward pass as fused kernels:
    queries, keys, values, the result and one number for each query and head, but no attention maps.
    On the meta device torch would otherwise choose the implementation that saves all maps."""
    # A torch function mode would be inactive in the backward pass, and so in recomputed layers.
    original = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention with the CPU's fused kernel, which also works on the meta device. The arguments are
    those of `scaled_dot_product_attention`, with queries, keys and values (B, heads, N, C)."""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (tensor.repeat_interleave(repeats, -3) for tensor in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(
            ~attn_mask, -torch.inf
        )
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return out


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
