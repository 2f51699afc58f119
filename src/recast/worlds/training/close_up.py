"""Training steps of a transformer on the neighbourhood of the subject alone.

A window of each frame follows the subject, and the network sees only the tokens inside, at their
real positions. A step then costs as much as one on whole frames with a quarter as many clips, and
most of what it learns is about subjects. Training on patches with coordinates is due to Patch
Diffusion (Wang et al., NeurIPS 2023), and on part of the tokens to MaskDiT (Zheng et al., TMLR
2024). A part of the steps must show whole frames, because a window tells where the subject is.
This module refuses to know losses and data.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from einops import rearrange
from torch import Tensor

SIDE = 4
"""Height and width of the window in tokens."""
_JITTER = 1  # the window is off centre by at most so many tokens, the same in all frames


def corners(cover: Tensor, patch: int, rng: np.random.Generator) -> Tensor:
    """The upper left corner of the window in each frame in tokens, (B, F, 2), row before column.

    `cover` is the fraction of each latent position that the subject covers, (B, F, h, w). In frames
    without a subject the window is in the middle.
    """
    weight = cover.double().clamp_min(1e-6)
    height, width = weight.shape[2:]
    rows = weight.sum(3) @ (torch.arange(height, dtype=torch.double) + 0.5)
    columns = weight.sum(2) @ (torch.arange(width, dtype=torch.double) + 0.5)
    centre = torch.stack([rows, columns], -1) / weight.sum((2, 3))[..., None]
    off_centre = torch.from_numpy(rng.integers(-_JITTER, _JITTER + 1, (len(cover), 1, 2)))
    found = (centre / patch - SIDE / 2).round().long() + off_centre
    most = torch.tensor([height // patch - SIDE, width // patch - SIDE])
    return found.clamp_min(0).minimum(most)


def cut(x: Tensor, corner: Tensor, patch: int) -> Tensor:
    """The windows of x (B, C, F, h, w), (B, C, F, SIDE·patch, SIDE·patch)."""
    steps = torch.arange(SIDE * patch)
    rows, columns = ((patch * corner[..., axis, None] + steps) for axis in (0, 1))
    clip = torch.arange(len(x))[:, None, None, None]
    frame = torch.arange(x.shape[2])[None, :, None, None]
    found = x.movedim(1, -1)[clip, frame, rows[..., :, None], columns[..., None, :]]
    return rearrange(found, "b f h w c -> b c f h w")


@contextmanager
def real_positions(
    transformer: WanTransformer3DModel, corner: Tensor, size: tuple[int, int]
) -> Iterator[None]:
    """Inside this context the transformer reads the windows at their positions in frames of `size`,
    the height and width of the latents: its rotary embedding is that of the whole frames."""
    patch = transformer.config.patch_size[-1]
    width = size[1] // patch
    steps = torch.arange(SIDE)
    rows, columns = (corner[..., axis, None] + steps for axis in (0, 1))
    first = torch.arange(corner.shape[1])[None, :, None, None] * (size[0] // patch * width)
    index = (first + width * rows[..., :, None] + columns[..., None, :]).flatten(1)

    def at_index(module: Any, inputs: tuple[Tensor], output: Any) -> tuple[Tensor, ...]:
        x = inputs[0]
        whole = module.forward(x.new_empty(1, 1, x.shape[2], *size))
        return tuple(table[0].to(x.device)[index.to(x.device)] for table in whole)

    handle = transformer.rope.register_forward_hook(at_index)
    try:
        yield
    finally:
        handle.remove()
