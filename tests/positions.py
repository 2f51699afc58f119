"""CogVideoX's own tables of positions, changed as the authors of DiTFlow change them."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from recast.backbones import cogvideox
from recast.backbones.cogvideox import CogVideoX


def tiny_2b_at_table_size() -> CogVideoX:
    """A tiny 2b whose clips have the size of its table of positions: it then reads that table and
    computes no other."""
    backbone, side = cogvideox.tiny_of(), 64
    backbone.defaults = dataclasses.replace(backbone.defaults, height=side, width=side)
    return backbone


@contextmanager
def shifted_table(transformer: Any, offset: Tensor) -> Iterator[None]:
    """Inside this context an offset (1, F, H, W, C) is added to the fixed positions of 2b."""
    embed, flat = transformer.patch_embed, offset.flatten(1, 3)
    words = torch.zeros(1, embed.max_text_seq_length, flat.shape[2])
    table = embed.pos_embedding
    embed.pos_embedding = table + torch.cat([words, flat], 1)
    try:
        yield
    finally:
        embed.pos_embedding = table


@contextmanager
def shifted_rotary(transformer: nn.Module, offset: Tensor) -> Iterator[None]:
    """Inside this context an offset (1, F, H, W, C) is added to the cosines and sines that 5b and
    1.5 are called with."""

    def shift(network: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        tables, shifts = named["image_rotary_emb"], offset.flatten(0, 3).chunk(2, 1)
        moved = tuple(table + one for table, one in zip(tables, shifts, strict=True))
        return args, {**named, "image_rotary_emb": moved}

    handle = transformer.register_forward_pre_hook(shift, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
