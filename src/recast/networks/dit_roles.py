"""The roles of video transformers, whose tokens form a grid.

Owns how a sequence of tokens is read as features, and which block has which role. It refuses to
know single models. We have not measured which block is best for a role. The roles select the middle
block, because DiTFlow (Pondaven et al., CVPR 2025) guides CogVideoX near its middle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from recast.networks.feature_hooks import Tap, record


class TokenGrid:
    """The grid of the tokens in the current forward pass. A backbone sets `shape` before each pass.

    `heads` is the order of attention heads (a) and tokens (n) in the output of a layer that
    separates heads. `text` tells whether the tokens of the text precede or follow those of the
    clip.
    """

    def __init__(
        self, heads: Literal["a n", "n a"] = "a n", text: Literal["first", "last"] = "first"
    ) -> None:
        self._heads, self._text = heads, text
        self.shape = (0, 0, 0)
        """Frames, height and width in tokens."""

    def features(self, output: Tensor, frames: int) -> Tensor:
        """The output of a layer, (B, N, C) or with separate heads (B, a, N, C / a), as features
        (B, F, H, W, C). Heads are concatenated, and the tokens of the text are removed."""
        if output.ndim == 4:
            output = rearrange(output, f"b {self._heads} c -> b n (a c)")
        f, h, w = self.shape
        clip = slice(f * h * w) if self._text == "last" else slice(-f * h * w, None)
        return rearrange(output[:, clip], "b (f h w) c -> b f h w c", f=f, h=h, w=w)

    def positions(self, output: Tensor, frames: int) -> Tensor:
        """A table of rotary embeddings, (…, N, …, C) without the tokens of the text, as features
        (B, F, H, W, C). Other dimensions than these must have size 1."""
        return output.reshape(-1, *self.shape, output.shape[-1])


def rotary(grid: TokenGrid, path: str = "rope", *alternatives: str) -> tuple[Tap, ...]:
    """The taps of the role "positions" for rotary embeddings: the cosines and sines that rotate the
    queries and keys of every block. `path` is the module that computes them."""
    return (Tap(path, grid.positions, alternatives=alternatives, parts=2),)


_ATTENTION = {"queries": "norm_q", "keys": "norm_k", "values": "to_v"}


def roles(
    blocks: Mapping[str, int],
    heads: int,
    grid: TokenGrid,
    *,
    attention: str = "attn1",
    experts: Sequence[str] = ("",),
) -> dict[str, tuple[Tap, ...]]:
    """Role -> taps. `blocks` maps the name of a module list to its number of blocks; blocks are
    numbered through all lists. `attention` is the name of a block's self-attention.

    "block3" is the output of block 3. "queries3", "keys3" and "values3" belong to its
    self-attention; queries and keys are read after their normalisation and before the rotary
    embedding. Roles without a number belong to the middle block. Its self-attention covers space
    and time, so its queries and keys are also "temporal_queries" and "temporal_keys". `experts` are
    the path prefixes of networks of which one runs at each noise level.
    """

    def tap(path: str, heads: int = 1) -> tuple[Tap, ...]:
        first, *others = (f"{expert}{path}" for expert in experts)
        return (Tap(first, grid.features, heads, tuple(others)),)

    numbered: dict[str, tuple[Tap, ...]] = {}
    paths = [f"{name}.{index}" for name, count in blocks.items() for index in range(count)]
    for index, block in enumerate(paths):
        numbered[f"block{index}"] = tap(block)
        for role, layer in _ATTENTION.items():
            numbered[f"{role}{index}"] = tap(f"{block}.{attention}.{layer}", heads)
    middle = len(paths) // 2
    named = {role: f"{role}{middle}" for role in _ATTENTION}
    named |= {f"temporal_{role}": f"{role}{middle}" for role in ("queries", "keys")}
    named |= dict.fromkeys(("motion", "middle"), f"block{middle}")
    return {**{role: numbered[name] for role, name in named.items()}, **numbered}


@torch.no_grad()
def word_attention(
    network: nn.Module,
    blocks: str,
    grid: TokenGrid,
    run: Callable[[], object],
    *,
    heads: int,
    token_spans: Sequence[slice],
    tokens: int | None = None,
) -> Tensor:
    """The cross-attention weights between each position and each word, (F, H, W, words), in a
    forward pass of one clip, which `run` performs. The result is the mean over heads and over the
    middle third of `blocks`; we have not measured other choices.

    `token_spans` are the tokens of each word. The softmax is over the first `tokens` tokens of the
    text; None selects all tokens.
    """
    count = len(network.get_submodule(blocks))  # type: ignore[arg-type]  # a module list
    paths = [f"{blocks}.{i}.attn2" for i in range(count // 3, count - count // 3)]
    queries = [Tap(f"{path}.norm_q", grid.features) for path in paths]
    keys = [Tap(f"{path}.norm_k", _unchanged) for path in paths]
    with record(network, [*queries, *keys], 0, stop=True) as features:
        run()
    maps = [
        _word_weights(features[query.path], features[key.path][:, :tokens], heads, token_spans)
        for query, key in zip(queries, keys, strict=True)
    ]
    return torch.stack(maps).mean(0)


def _unchanged(output: Tensor, frames: int) -> Tensor:
    return output


def _word_weights(
    queries: Tensor, keys: Tensor, heads: int, token_spans: Sequence[slice]
) -> Tensor:
    """The attention weights (F, H, W, words) of queries (1, F, H, W, C) to the tokens of each word,
    for keys (1, N, C). Frames are processed one by one, because the attention maps of all frames
    would need too much memory."""
    key = rearrange(keys[0].float(), "n (a c) -> a n c", a=heads)
    frames = []
    for frame in queries[0]:
        query = rearrange(frame.float(), "h w (a c) -> a (h w) c", a=heads)
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1).mean(0)
        words = torch.stack([weights[:, span].mean(-1) for span in token_spans], -1)
        frames.append(rearrange(words, "(h w) n -> h w n", h=frame.shape[0]))
    return torch.stack(frames)
