"""The attention kernels of diffusers, such as SageAttention, in passes that compute no gradients.

Owns which passes use the kernel that the user chose. It refuses to know models, and to compute
attention. Many of the fastest kernels have no backward pass, and some round their inputs to 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import nn

from recast.errors import BadCall
from recast.networks.compiled_blocks import has_hook

Kind = Literal["native", "flash", "flash_3", "sage", "xformers", "cudnn", "flex"]
"""native is torch's own fused attention, which has a backward pass."""

_NAMES = {"flash_3": "_flash_3", "cudnn": "_native_cudnn"}
"""What diffusers calls a kernel, where it is not its kind."""


def check(network: nn.Module, kind: Kind) -> None:
    """Raise `BadCall` for a kernel whose package is missing, and for a network whose attention
    cannot use kernels of diffusers."""
    if kind == "native":
        return
    processors = (getattr(module, "processor", None) for module in network.modules())
    if not any(hasattr(processor, "_attention_backend") for processor in processors):
        raise BadCall(
            f"this model has only torch's attention; leave `attention` at native instead of {kind}"
        )
    try:
        with _active(kind):
            pass
    except (RuntimeError, ImportError, ValueError) as error:
        raise BadCall(f"`attention` cannot be {kind} here: {error}") from error


@contextmanager
def without_gradients(network: nn.Module, kind: Kind) -> Iterator[None]:
    """Inside this context a pass of the network uses the kernel. It changes nothing if gradients
    are computed, or if a module of the network has a hook: features that are read in one pass are
    compared with those of a pass with gradients.

    Raises `BadCall` if the pass fails, as it does for a kernel that needs a GPU, another precision
    or attention without a mask.
    """
    if kind == "native" or torch.is_grad_enabled() or any(map(has_hook, network.modules())):
        yield
        return
    try:
        with _active(kind):
            yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise BadCall(
            f"this model does not run with the attention kernel {kind} here ({reason}); leave "
            "`attention` at native, or choose another kernel"
        ) from error


def _active(kind: Kind) -> AbstractContextManager[Any]:
    from diffusers.models.attention_dispatch import attention_backend

    context: AbstractContextManager[Any] = attention_backend(_NAMES.get(kind, kind))
    return context
