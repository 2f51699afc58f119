"""Networks that are built from their config without reading weights.

Owns the networks and tokenizers that `checkpoint_loading` returns inside the contexts of
`meta_model`. It refuses to know the purpose of these contexts, and single models.
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

N = TypeVar("N", bound="nn.Module")
T = TypeVar("T")


def init_empty(build: Callable[[], N], dtype: torch.dtype) -> N:
    """A network on the meta device or a network with random weights, as the current context says.
    Each weight has the dtype that it would have after loading."""
    model = meta_model.current()
    assert model is not None
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # a large network in float32 might not fit into memory
    try:
        with meta_model.META if meta_model.on_meta() else model.device:
            network = build()
    finally:
        torch.set_default_dtype(previous)
    _cast(network, dtype)
    if isinstance(network, PreTrainedModel) and meta_model.on_meta():
        network.forward = partial(_text_states, network.config, dtype)
    return network.to(model.storage).requires_grad_(False)


def _cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights as diffusers and transformers cast them when they load a checkpoint."""
    in_float32 = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    of_transformers = isinstance(network, PreTrainedModel)
    # diffusers always keeps these modules in float32; transformers does so only for float16.
    if of_transformers and dtype != torch.float16:
        in_float32 = set()
    saved = network.state_dict().keys()
    for name, weight in (*network.named_parameters(), *network.named_buffers()):
        # diffusers casts the whole network, so it also casts buffers that are not in the files.
        if weight.is_floating_point() and (name in saved or not (of_transformers or in_float32)):
            keep_float32 = bool(in_float32 & {*name.split(".")})
            weight.data = weight.data.to(torch.float32 if keep_float32 else dtype)


def _text_states(config: Any, dtype: torch.dtype, ids: Tensor, *args: Any, **named: Any) -> Any:
    """The output of a text encoder for token ids (B, N), with the shapes that follow from its
    config.

    The encoder itself cannot run on the meta device, because transformers reads the values of
    masks. So the memory of its activations remains unknown.
    """
    states = torch.empty(*ids.shape, config.hidden_size, dtype=dtype, device=meta_model.META)
    return SimpleNamespace(
        last_hidden_state=states,
        hidden_states=(states,) * (config.num_hidden_layers + 1),
        pooler_output=states[:, 0],
    )


def tokenizer(kind: type[T]) -> T:
    """A tokenizer of this class whose vocabulary consists of single characters. It gives as many
    tokens as the real tokenizer, because every model pads its text to a fixed length."""
    return tiny.tokenizer(kind)
