"""Attention as two matrix products with a softmax between them, where that is faster.

On processors the backward pass of torch's fused attention is slow in bfloat16. This module owns
when plain products take its place, and refuses to know models: results are equal to rounding.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LARGEST = 64 * 2**20
"""Bytes of the weights of all pairs of tokens in one layer above which attention stays fused. Plain
products keep these weights in memory until the backward pass."""


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """Attention without a mask, for queries (..., N, D), keys (..., M, D) and values (..., M, E).
    The result is (..., N, E), in the precision of the inputs."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    weights = torch.softmax(query * scale @ key.transpose(-2, -1), -1, dtype=query.dtype)
    return weights @ value


class PlainAttention(TorchFunctionMode):
    """Inside this context, in this thread, torch's fused attention is plain where it has no mask
    and no dropout, the inputs are bfloat16 on a processor, and the weights are not too large."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            inputs, others = _inputs(args, kwargs)
            if inputs is not None and not any(_is_set(value) for value in others.values()):
                return attention(*inputs, scale=kwargs.get("scale"))
        return func(*args, **kwargs)


def _inputs(
    args: Any, kwargs: dict[str, Any]
) -> tuple[tuple[Tensor, Tensor, Tensor] | None, dict[str, Any]]:
    """Query, key and value of a call, or None if fused attention is better for them; and the other
    arguments except the scale."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    query, key, value = (given.pop(name) for name in names[:3])
    given.pop("scale", None)
    weights = math.prod(query.shape[:-1]) * key.shape[-2] * query.element_size()
    fits = query.device.type == "cpu" and query.dtype == torch.bfloat16 and weights <= LARGEST
    return ((query, key, value) if fits else None), given


def _is_set(value: Any) -> bool:
    return isinstance(value, Tensor) or bool(value)


def where_faster(network: nn.Module) -> AbstractContextManager[Any]:
    """A context in which a pass of the network uses plain attention, if gradients are computed and
    weights of the network are bfloat16 on a processor. Otherwise it changes nothing."""
    # Some networks keep single layers, such as norms, in float32.
    faster = torch.is_grad_enabled() and any(
        weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
        for weight in network.parameters()
    )
    return PlainAttention() if faster else nullcontext()
