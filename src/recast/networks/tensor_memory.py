"""How many bytes of tensors a computation holds at once: counted, whatever device they are on.

Also on torch's meta device, where tensors have a shape and no values, so that what a computation
would need can be told without the memory for it. Knows no model.

Not in it: what kernels need for themselves and what an allocator rounds up and keeps. Storages are
counted as long as something holds them, each of them once.
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
    """Within the block, `held` is how many bytes live in storages that were made in it, and `most`
    the largest number so far. What was there before, weights among it, is not counted."""

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
        given = {id(one) for one in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if id(storage) not in self._known | given:
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
def fused() -> Iterator[None]:
    """Within the block, attention keeps what fused kernels keep for the way back (queries, keys,
    values, the result, one number a query and head) and no maps. On the meta device torch would
    take the way that keeps all maps."""
    # A function mode would be off while gradients run, and with it off where layers run again.
    own = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own


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
    """By the CPU's fused kernel, which is registered for the meta device too. Takes what
    `scaled_dot_product_attention` does, of (B, heads, N, C)."""
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = (one.repeat_interleave(times, -3) for one in (key, value))
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
