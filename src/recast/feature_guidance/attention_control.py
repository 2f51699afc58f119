"""Cross-attention control: the attention maps of a sample are made from those of its source.

Hertz et al.: "Prompt-to-Prompt Image Editing with Cross-Attention Control", ICLR 2023. Owns the
replacement, refinement and re-weighting of maps, and the positions that attend to chosen words.
Knows no network and no method. `networks.attention_maps` reads and replaces maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from recast.errors import BadCall


@final
class CrossAttention:
    """The cross-attention maps of the sample, from those of the source and its own."""

    def __init__(
        self, mapper: Tensor, known: Tensor, *, emphasized: Sequence[int], emphasis: float
    ) -> None:
        """`mapper` and `known` are those of `Correspondence`."""
        self._mapper, self._known = mapper, known
        self._weights = torch.ones_like(known)
        self._weights[list(emphasized)] = emphasis

    def replaced(self, maps: Tensor) -> Tensor:
        """The maps (2, F, heads, N, M) of the source and the sample. Those of the sample are the
        source's at the words that both prompts have, and its own elsewhere, with weights for
        words."""
        mapper, known, weights = (it.to(maps) for it in (self._mapper, self._known, self._weights))
        source, sample = maps
        return torch.stack([source, (source @ mapper * known + sample * (1 - known)) * weights])


@final
class LocalBlend:
    """Where a sample may differ from its source: at positions that attend to chosen words, in all
    maps of one size that were added so far."""

    def __init__(
        self, source: Sequence[int], sample: Sequence[int], size: Sequence[int], threshold: float
    ) -> None:
        """`source` and `sample` are indices of tokens of the two prompts. `size` is that of the
        maps."""
        self._tokens, self._size, self._threshold = (source, sample), size, threshold
        self._sum: Tensor | None = None
        self._found: set[int] = set()

    def add(self, maps: Tensor) -> None:
        """Add the maps (2, F, heads, N, M) of the source and the sample in one layer, if they have
        the right size."""
        self._found.add(maps.shape[-2])
        if maps.shape[-2] != self._size[0] * self._size[1]:
            return
        pairs = zip(maps, self._tokens, strict=True)
        new = torch.stack([_attention_to(one, tokens) for one, tokens in pairs])
        self._sum = new if self._sum is None else self._sum + new

    def check(self) -> None:
        """Raise `BadCall` if no map of the right size was added."""
        if self._sum is None:
            raise BadCall(
                f"no cross-attention of this model has maps of {self._size[0]}x{self._size[1]} "
                "positions, but of "
                f"{', '.join(map(str, sorted(self._found)))}; choose another `blend_downsampling`"
            )

    def mask(self, height: int, width: int) -> Tensor:
        """True where the sample is kept, (1, 1, F, H, W)."""
        assert self._sum is not None
        maps = rearrange(self._sum, "b f (h w) -> b f h w", h=self._size[0])
        maps = interpolate(max_pool2d(maps, 3, 1, 1), (height, width))
        share = maps / maps.amax((2, 3), keepdim=True).clamp_min(1e-12)
        return (share > self._threshold).any(0)[None, None]


def _attention_to(maps: Tensor, tokens: Sequence[int]) -> Tensor:
    """How much each position attends to the tokens with these indices together: maps
    (..., heads, N, M) -> (..., N)."""
    index = torch.tensor(tokens, dtype=torch.long, device=maps.device)
    return maps[..., index].sum(-1).mean(-2)
