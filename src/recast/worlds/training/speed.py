"""Faster training steps of a transformer on a processor.

This module owns how a network is executed, and refuses to know what it computes: results are equal
to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from recast.networks import plain_attention as plain


@contextmanager
def plain_attention() -> Iterator[None]:
    """Inside this context, attention without mask and dropout is two matrix products with a softmax
    between them.

    The backward pass of torch's fused attention is slow on processors: plain products are four
    times faster for 576 tokens with 32 channels a head. They keep the weights of all pairs of
    tokens in memory, which is too much for long sequences. The context replaces torch's function
    for the whole process, so it is for programs that do nothing else at that time.
    """
    functions: Any = F
    fused = functions.scaled_dot_product_attention

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **options: Any,
    ) -> Tensor:
        if attn_mask is not None or dropout_p or is_causal or any(options.values()):
            return fused(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options)
        return plain.attention(query, key, value, scale)

    functions.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functions.scaled_dot_product_attention = fused


def compile_blocks(transformer: nn.Module, but: nn.Module | None = None) -> None:
    """Compile each block of a transformer in place, except `but`, which needs a C++ compiler on a
    processor. The blocks are equal, so that one compilation serves all; it takes about a minute for
    each shape of a batch. A block with a hook must be left out: compiled code does not call it."""
    for block in transformer.get_submodule("blocks").children():
        if block is not but:
            block.compile(dynamic=False)
