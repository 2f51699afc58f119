"""Models of their configs alone: outlines on torch's meta device, to see what a run would need, and
models with random weights, to measure what it takes.

Within `outlined`, networks can be called like those with weights; the results have shapes and no
values. Within `random_weights`, they compute. Nothing is downloaded. Owns what is different while
such a model is made; the files of the models do not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers import PreTrainedModel

from recast.errors import BadModel
from recast.networks import tiny

N = TypeVar("N", bound=nn.Module)
T = TypeVar("T")
META = torch.device("meta")
T5_XXL = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
"""The config of T5 1.1's largest, whose encoder several models have."""

CLIP_LARGE = {
    "model_type": "clip_text_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 49408,
}
"""That of CLIP's ViT-L/14, as Stable Diffusion 1 has it."""
STABLE_VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
"""That of Stable Diffusion's VAE."""


@dataclass(slots=True)
class MetaModel:
    """The model under way, for a run on `device`."""

    device: torch.device
    networks: list[nn.Module] = field(default_factory=list)
    """All that take turns on the device."""
    activated: list[nn.Module] = field(default_factory=list)
    """Those that were called for, in order."""
    home: torch.device = META
    """Where the networks are made to stay: meta, unless they have random weights."""


_CURRENT: ContextVar[MetaModel | None] = ContextVar("outline", default=None)


@contextmanager
def use_meta_models(device: torch.device) -> Iterator[MetaModel]:
    """Within the block models are loaded as outlines, and can be run."""
    outline = MetaModel(device)
    token = _CURRENT.set(outline)
    try:
        yield outline
    finally:
        _CURRENT.reset(token)


@contextmanager
def random_weights(device: torch.device, home: torch.device) -> Iterator[None]:
    """Within the block models are loaded with random weights, which are drawn on `device` and stay
    at `home`."""
    token = _CURRENT.set(MetaModel(device, home=home))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current() -> MetaModel | None:
    """The outline under way, or None where models are loaded with their weights."""
    return _CURRENT.get()


def on_meta() -> bool:
    """Whether networks are made without any weights."""
    outline = _CURRENT.get()
    return outline is not None and outline.home == META


def computes_on(device: torch.device) -> torch.device:
    """The device itself or, of an outline, the one that it is made for."""
    outline = _CURRENT.get()
    return device if outline is None else outline.device


def making() -> AbstractContextManager[object]:
    """Where a network is made of others that were loaded: without weights in an outline."""
    return META if on_meta() else nullcontext()


def init_empty(make: Callable[[], N], dtype: torch.dtype) -> N:
    """A network without weights, or with random ones, each in the precision that loading would give
    it."""
    outline = _CURRENT.get()
    assert outline is not None
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # so that large ones are never there in float32
    try:
        with META if outline.home == META else outline.device:
            made = make()
    finally:
        torch.set_default_dtype(before)
    kept = set(getattr(made, "_keep_in_fp32_modules", None) or ())
    told = isinstance(made, PreTrainedModel)
    # diffusers keeps these in float32 always, transformers where the others are float16.
    if told and dtype != torch.float16:
        kept = set()
    saved = made.state_dict().keys()
    for name, weight in (*made.named_parameters(), *made.named_buffers()):
        # Tables that are not in the files are cast by diffusers alone, with the whole.
        if weight.is_floating_point() and (name in saved or not (told or kept)):
            weight.data = weight.data.to(torch.float32 if kept & {*name.split(".")} else dtype)
    if told and outline.home == META:
        made.forward = partial(_states, made.config, dtype)
    return made.to(outline.home).requires_grad_(False)


def _states(config: Any, dtype: torch.dtype, ids: Tensor, *args: Any, **named: Any) -> Any:
    """What a text encoder makes of tokens (B, N), by its config: transformers look at the values of
    masks, which are not there. So a text encoder's own activations stay unknown."""
    states = torch.empty(*ids.shape, config.hidden_size, dtype=dtype, device=META)
    return SimpleNamespace(
        last_hidden_state=states,
        hidden_states=(states,) * (config.num_hidden_layers + 1),
        pooler_output=states[:, 0],
    )


def tokenizer(kind: type[T]) -> T:
    """A stand-in that knows letters. The length of what it makes is that of the real one, since
    every model fills it up."""
    return tiny.tokenizer(kind)


def cached(source: str) -> Path:
    """The folder of a hub's model in the local cache. Raises `BadModel` if it is not there."""
    # What is no pipeline, such as an adapter, has no index.
    for name in ("model_index.json", "config.json"):
        found: Any = try_to_load_from_cache(source, name)
        if isinstance(found, str):
            return Path(found).parent
    raise BadModel(f"{source} is not downloaded yet")
