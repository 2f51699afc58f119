"""Networks that are built from their config, without reading weights.

Owns what `checkpoint_loading` returns inside the contexts of `meta_model`. It refuses to know the
contexts' purpose and which models there are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recast.networks import meta_model, tiny

N = TypeVar("N", bound=nn.Module)
T = TypeVar("T")


def init_empty(build: Callable[[], N], dtype: torch.dtype) -> N:
    """A network on the meta device, or one with random weights, by the current context. Each weight
    has the precision that loading would give it."""
    model = meta_model.current()
    assert model is not None
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # so that a large network never exists in float32
    try:
        with meta_model.META if meta_model.on_meta() else model.device:
            network = build()
    finally:
        torch.set_default_dtype(before)
    _cast(network, dtype)
    if isinstance(network, PreTrainedModel) and meta_model.on_meta():
        network.forward = partial(_text_states, network.config, dtype)
    return network.to(model.home).requires_grad_(False)


def _cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights as diffusers and transformers cast them when they load a checkpoint."""
    in_float32 = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    of_transformers = isinstance(network, PreTrainedModel)
    # diffusers always keeps these modules in float32, transformers only next to float16.
    if of_transformers and dtype != torch.float16:
        in_float32 = set()
    saved = network.state_dict().keys()
    for name, weight in (*network.named_parameters(), *network.named_buffers()):
        # Buffers that are not in the files are cast only by diffusers, with the whole network.
        if weight.is_floating_point() and (name in saved or not (of_transformers or in_float32)):
            wide = bool(in_float32 & {*name.split(".")})
            weight.data = weight.data.to(torch.float32 if wide else dtype)


def _text_states(config: Any, dtype: torch.dtype, ids: Tensor, *args: Any, **named: Any) -> Any:
    """The output of a text encoder for tokens (B, N), with the shapes that its config gives.

    transformers reads the values of masks, which do not exist on the meta device, so the encoder
    itself cannot run there, and its own activations stay unknown.
    """
    states = torch.empty(*ids.shape, config.hidden_size, dtype=dtype, device=meta_model.META)
    return SimpleNamespace(
        last_hidden_state=states,
        hidden_states=(states,) * (config.num_hidden_layers + 1),
        pooler_output=states[:, 0],
    )


def tokenizer(kind: type[T]) -> T:
    """A tokenizer of this class that knows only letters. The number of tokens is that of the real
    one, because every model pads its text to a fixed length."""
    return tiny.tokenizer(kind)
