"""What video transformers have in common: tokens that lie in a grid, and packed frames.

A transformer's layers see one row of tokens, in which those of the text may come first or last.
Owns how such a row reads as features, which blocks play which role, and which
clip lengths a VAE that packs frames takes. Which block is best for a role nobody has measured here;
DiTFlow (Pondaven et al., CVPR 2025) guides CogVideoX near its middle, as the roles do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from recast.errors import BadCall
from recast.networks.feature_hooks import Tap, record


class Grid:
    """How the tokens of the pass under way lie; the backbone sets it before each pass.

    `heads`: how a layer's output lies that has the heads apart. `text`: where its tokens are.
    """

    def __init__(
        self, heads: Literal["a n", "n a"] = "a n", text: Literal["first", "last"] = "first"
    ) -> None:
        self._heads, self._text = heads, text
        self.shape = (0, 0, 0)
        """Frames, height and width in tokens."""

    def features(self, output: Tensor, frames: int) -> Tensor:
        """A layer's output, (B, N, C) or with heads, as (B, F, H, W, C): heads side by side, text
        left out."""
        if output.ndim == 4:
            output = rearrange(output, f"b {self._heads} c -> b n (a c)")
        f, h, w = self.shape
        own = slice(f * h * w) if self._text == "last" else slice(-f * h * w, None)
        return rearrange(output[:, own], "b (f h w) c -> b f h w c", f=f, h=h, w=w)

    def tables(self, output: Tensor, frames: int) -> Tensor:
        """What rotary positions are told by, (…, N, …, C), which knows no text, as (B, F, H, W, C).

        Other dimensions are of size 1, but for that of the batch, where there is one."""
        return output.reshape(-1, *self.shape, output.shape[-1])


def rotary(grid: Grid, path: str = "rope", *also: str) -> tuple[Tap, ...]:
    """The role "positions" where they are rotary: cosines and sines, which turn the queries and
    keys of every block."""
    return (Tap(path, grid.tables, also=also, parts=2),)


_ATTENTION = {"queries": "norm_q", "keys": "norm_k", "values": "to_v"}


def roles(
    blocks: Mapping[str, int],
    heads: int,
    grid: Grid,
    *,
    attention: str = "attn1",
    experts: Sequence[str] = ("",),
) -> dict[str, tuple[Tap, ...]]:
    """Role -> taps, for blocks in module lists, each of so many, whose self-attention is called
    `attention`. Numbers run on from list to list.

    "block3" is what block 3 puts out; "queries3", "keys3" and "values3" are its self-attention's,
    normalised and without positions. Those without a number are the middle block's, where a pass
    can stop. It attends across space and time at once, so that its queries and keys are the
    temporal ones too. `experts` are prefixes of modules that take each other's place.
    """

    def tap(path: str, heads: int = 1) -> tuple[Tap, ...]:
        first, *others = (f"{expert}{path}" for expert in experts)
        return (Tap(first, grid.features, heads, tuple(others)),)

    found: dict[str, tuple[Tap, ...]] = {}
    paths = [f"{name}.{index}" for name, count in blocks.items() for index in range(count)]
    for index, block in enumerate(paths):
        found[f"block{index}"] = tap(block)
        for role, layer in _ATTENTION.items():
            found[f"{role}{index}"] = tap(f"{block}.{attention}.{layer}", heads)
    middle = len(paths) // 2
    own = {role: f"{role}{middle}" for role in _ATTENTION}
    own |= {f"temporal_{role}": f"{role}{middle}" for role in ("queries", "keys")}
    own |= dict.fromkeys(("motion", "middle"), f"block{middle}")
    return {**{role: found[name] for role, name in own.items()}, **found}


@torch.no_grad()
def attention(
    network: nn.Module,
    blocks: str,
    grid: Grid,
    look: Callable[[], object],
    *,
    heads: int,
    places: Sequence[slice],
    tokens: int | None = None,
) -> Tensor:
    """What each position attends to each word of the text, (F, H, W, words), in a pass of one clip
    that `look` makes: the mean over heads and over the middle third of `blocks`. Unmeasured.

    `places` are the tokens of each word, `tokens` how many count at all; None is every one.
    """
    count = len(network.get_submodule(blocks))  # type: ignore[arg-type]  # a module list
    paths = [f"{blocks}.{i}.attn2" for i in range(count // 3, count - count // 3)]
    queries = [Tap(f"{path}.norm_q", grid.features) for path in paths]
    keys = [Tap(f"{path}.norm_k", _as_it_is) for path in paths]
    with record(network, [*queries, *keys], 0, stop=True) as seen:
        look()
    maps = [
        _shares(seen[query.path], seen[key.path][:, :tokens], heads, places)
        for query, key in zip(queries, keys, strict=True)
    ]
    return torch.stack(maps).mean(0)


def _as_it_is(output: Tensor, frames: int) -> Tensor:
    return output


def _shares(queries: Tensor, keys: Tensor, heads: int, places: Sequence[slice]) -> Tensor:
    """What each position, (1, F, H, W, C), attends to the tokens of each word, (F, H, W, words),
    keys being (1, N, C); frame by frame, as the maps of all would not fit."""
    key = rearrange(keys[0].float(), "n (a c) -> a n c", a=heads)
    frames = []
    for frame in queries[0]:
        query = rearrange(frame.float(), "h w (a c) -> a (h w) c", a=heads)
        shares = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1).mean(0)
        words = torch.stack([shares[:, own].mean(-1) for own in places], -1)
        frames.append(rearrange(words, "(h w) n -> h w n", h=frame.shape[0]))
    return torch.stack(frames)


def check_frames(frames: int, pack: int) -> None:
    """Raise `BadCall` unless a clip is one frame and then whole packs; the message gives the two
    nearest lengths."""
    if frames < 1 or (frames - 1) % pack:
        low = max(0, frames - 1) // pack * pack + 1
        raise BadCall(
            f"{low} or {low + pack} frames, got {frames}: this model takes one and then {pack} at "
            "a time"
        )


def packs(frames: int, size: int) -> list[slice]:
    """The frames that each frame of a causal VAE's latents shows: one, and then `size` each."""
    return [slice(0, 1), *(slice(start, start + size) for start in range(1, frames, size))]
