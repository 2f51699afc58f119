"""The work of a computation on any device: floating-point operations, bytes, and calls of kernels.

Owns the count. The formulas for floating-point operations are those of torch's FLOP counter
(`torch.utils.flop_counter`), to which the CPU's attention is added. The count also works on torch's
meta device, so that the work of a model can be known on a machine that could not run it. It refuses
to know models, and how long the work takes (`machine_speed`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, slots=True)
class Operations:
    """The work of a computation, which may be an average."""

    flops: float = 0.0
    """Floating-point operations of matrix products, convolutions and attention."""
    bytes: float = 0.0
    """Bytes that kernels read and write: their inputs and outputs. Views count nothing."""
    calls: float = 0.0
    """Calls of kernels. Views are no calls."""

    def __add__(self, other: Operations) -> Operations:
        return Operations(
            self.flops + other.flops, self.bytes + other.bytes, self.calls + other.calls
        )

    def __sub__(self, other: Operations) -> Operations:
        return self + -1.0 * other

    def __rmul__(self, factor: float) -> Operations:
        return Operations(factor * self.flops, factor * self.bytes, factor * self.calls)


class OperationCount(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Inside this context `total` is the work that was done in it so far."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = Operations()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        formula = _formulas().get(func.overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:  # an operation that consists of others, such as `linear` in inference mode
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        if not _moves_nothing(func, inputs, outputs):
            flops = float(formula(*args, **kwargs, out_val=out)) if formula else 0.0
            moved = sum(tensor.nbytes for tensor in (*inputs, *outputs))
            self.total = self.total + Operations(flops, float(moved), 1.0)
        return out


@lru_cache(maxsize=1)
def _formulas() -> Mapping[Any, Callable[..., float]]:
    """Operation -> its floating-point operations, from its arguments and `out_val`."""
    from torch.utils import flop_counter  # here, because most commands count nothing

    registry: Mapping[Any, Callable[..., float]] = flop_counter.flop_registry
    forward: Callable[..., float] = flop_counter.sdpa_flop_count
    backward: Callable[..., float] = flop_counter.sdpa_backward_flop_count
    aten = torch.ops.aten
    return {
        **registry,
        # The tensors are the first arguments of both.
        aten._scaled_dot_product_flash_attention_for_cpu: lambda *args, **_: forward(
            *(tensor.shape for tensor in args[:3])
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *args, **_: backward(
            *(tensor.shape for tensor in args[:4])
        ),
    }


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _moves_nothing(func: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Whether an operation only describes the memory of its input in another way, or returns no
    tensor."""
    if func.is_view or not outputs:
        return True
    if func._schema.is_mutable:
        return False
    known = {tensor.untyped_storage()._cdata for tensor in inputs}
    return all(tensor.untyped_storage()._cdata in known for tensor in outputs)
