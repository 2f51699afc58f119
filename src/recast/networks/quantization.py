"""Linear layers with 8-bit weights from torchao, which need half the memory of bfloat16.

Owns the quantization of weights and the number of bytes that they need. It refuses to know models.
Only weights are rounded, each row with its own scale. Activations keep their precision, and
gradients can be computed. Autograd saves the dequantized weights of a layer for the backward pass,
unless gradient checkpointing recomputes the layer's block.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from recast import registry
from recast.errors import BadCall, missing_extra

Kind = Literal["full", "int8", "float8"]


def check(kind: Kind, offload: str) -> None:
    """Raise `BadCall` for 8-bit weights if torchao is not installed, or with block offloading."""
    if kind == "full":
        return
    if offload == "blocks":
        raise BadCall(
            f"`weights={kind}` does not work with `offload=blocks`; use `offload=networks` or "
            "`weights=full`"
        )
    _torchao()


def quantize(network: nn.Module, kind: Kind) -> None:
    """Quantize the weights of all linear layers in place, except layers that the network's class
    keeps in float32. Raises `BadCall` if torchao is not installed."""
    if kind == "full":
        return
    library = _torchao()
    in_float32 = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    config = {
        "int8": library.Int8WeightOnlyConfig,
        "float8": library.Float8WeightOnlyConfig,
    }[kind]

    def is_quantizable(module: nn.Module, path: str) -> bool:
        if not isinstance(module, nn.Linear) or _is_quantized(module.weight):
            return False
        return module.weight.dtype != torch.float32 or not in_float32 & set(path.split("."))

    library.quantize_(network, config(), filter_fn=is_quantizable)


def dequantized(weight: Tensor) -> Tensor:
    """The values of a weight, as a plain tensor."""
    quantized: Any = weight
    return quantized.dequantize() if _is_quantized(weight) else weight


def nbytes(weight: Tensor) -> int:
    """The bytes of a weight, including the scales of a quantized weight."""
    if not _is_quantized(weight):
        return weight.nbytes
    quantized: Any = weight
    parts = (getattr(quantized, name) for name in quantized.__tensor_flatten__()[0])
    return sum(part.nbytes for part in parts if part is not None)


def _is_quantized(weight: Tensor) -> bool:
    return is_traceable_wrapper_subclass(weight)


def _torchao() -> Any:
    with missing_extra("quantize"), registry.quiet_imports():
        import torchao.quantization
    return torchao.quantization
