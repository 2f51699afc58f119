"""Linear layers whose weights are kept in 8 bits, by torchao: half the memory of bfloat16.

Knows no model. Weights alone are rounded, each row with a scale of its own; what passes a layer
keeps its precision, and gradients flow through. For the way back autograd keeps what the weights
of a layer were widened to, unless gradient checkpointing runs its block again.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from recast.errors import BadCall, missing_extra

Kind = Literal["full", "int8", "float8"]


def check(kind: Kind, offload: str) -> None:
    """Raise `BadCall` where such weights cannot be had, or cannot visit the device by blocks."""
    if kind == "full":
        return
    if offload == "blocks":
        raise BadCall(
            f"`weights={kind}` does not work with `offload=blocks`; use `offload=networks` or "
            "`weights=full`"
        )
    _torchao()


def quantize(network: nn.Module, kind: Kind) -> None:
    """Keep the linear layers' weights so, in place. What the network's makers keep in float32
    stays as it is. Raises `BadCall` where torchao is not installed."""
    if kind == "full":
        return
    library, kept = _torchao(), set(getattr(network, "_keep_in_fp32_modules", None) or ())
    config = {
        "int8": library.Int8WeightOnlyConfig,
        "float8": library.Float8WeightOnlyConfig,
    }[kind]

    def chosen(module: nn.Module, path: str) -> bool:
        if not isinstance(module, nn.Linear) or _is_quantized(module.weight):
            return False
        return module.weight.dtype != torch.float32 or not kept & set(path.split("."))

    library.quantize_(network, config(), filter_fn=chosen)


def widened(weight: Tensor) -> Tensor:
    """The numbers that a weight stands for, as a plain tensor."""
    kept: Any = weight
    return kept.dequantize() if _is_quantized(weight) else weight


def nbytes(weight: Tensor) -> int:
    """The bytes that a weight really takes."""
    if not _is_quantized(weight):
        return weight.nbytes
    kept: Any = weight
    parts = (getattr(kept, name) for name in kept.__tensor_flatten__()[0])
    return sum(part.nbytes for part in parts if part is not None)


def _is_quantized(weight: Tensor) -> bool:
    return is_traceable_wrapper_subclass(weight)


def _torchao() -> Any:
    with missing_extra("quantize"):
        import torchao.quantization
    return torchao.quantization
