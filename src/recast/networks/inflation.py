"""Tune-A-Video's inflation of an image network: what makes it see a whole clip.

Wu et al.: "Tune-A-Video: One-Shot Tuning of Image Diffusion Models for Text-to-Video Generation",
ICCV 2023. Attention within a frame attends to the first and the previous frame (sparse-causal
attention), and each transformer block ends with a new attention over frames, whose last layer is
zero at first. The queries and the new layers are trained.

Liu et al.: "Video-P2P: Video Editing with Cross-attention Control", CVPR 2024, attends to the first
frame alone.

Owns these changes as an adapter. It refuses to know methods and training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, final

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from recast.errors import BadMotion
from recast.networks.adapters import Adapter, WeightDifferences
from recast.networks.attention_layers import Transformer
from recast.networks.feature_hooks import Tap, extended

_NEW = ".attn_temp."
_MATRICES = ("to_q", "to_k", "to_v", "to_out")
_BIAS = "to_out.bias"


def first_and_previous(frame: int) -> Sequence[int]:
    """The frames to which a frame attends in Tune-A-Video."""
    return 0, max(frame - 1, 0)


def first(frame: int) -> Sequence[int]:
    """The frame to which every frame attends in Video-P2P."""
    return (0,)


class _Block(NamedTuple):
    """A transformer block: its path, and the heads and channels of its attention."""

    path: str
    heads: int
    channels: int


@final
class InflatedNetwork(Adapter):
    """Trained queries and trained attention over frames, in an image network that sees clips.

    "<component>.<layer>.diff" (out, in) is added to the weights of a query, as in
    `WeightDifferences`. "<component>.<block>.attn_temp.to_q.diff" (C, C), and so on for to_k, to_v
    and to_out, are added to the initial weights of the new attention, which are random for the
    first three and zero for the last. "<component>.<block>.attn_temp.to_out.bias" is (C,). Raises
    `BadMotion` for tensors that do not fit the network.
    """

    def __init__(
        self,
        network: nn.Module,
        tensors: Mapping[str, Tensor],
        device: Any,
        component: str,
        transformers: Sequence[Transformer],
        keys_and_values: Sequence[Tap],
        sources: Callable[[int], Sequence[int]] = first_and_previous,
    ) -> None:
        """`transformers` are the transformers within a frame. `keys_and_values` are the taps of
        their self-attentions. `sources` gives the frames to which a frame attends."""
        new = {name: tensor for name, tensor in tensors.items() if _NEW in name}
        super().__init__(network, new, device)
        old = {name: tensor for name, tensor in tensors.items() if _NEW not in name}
        self._queries = WeightDifferences(network, old, device, component)
        self._new = dict(self.tensors)
        self.tensors = dict(sorted({**self._queries.tensors, **self._new}.items()))
        self._taps, self._component, self._sources = keys_and_values, component, sources
        self._copied_maps: tuple[int, int] | None = None
        self._blocks = _blocks(network, transformers)
        self._initial = _initial_weights(self._blocks, device)
        self._check()

    @staticmethod
    def zeros(
        network: nn.Module, component: str, transformers: Sequence[Transformer]
    ) -> dict[str, Tensor]:
        """Tensors without effect, except that attention within a frame looks at other frames."""
        queries = [attention.query for one in transformers for attention in one.attentions]
        tensors = WeightDifferences.zeros(network, queries, component)
        for block in _blocks(network, transformers):
            tensors |= {
                f"{component}.{block.path}{_NEW}{name}": torch.zeros(shape)
                for name, shape in _shapes(block).items()
            }
        return tensors

    @contextmanager
    def applied(self, frames: int | None = None) -> Iterator[None]:
        assert frames is not None
        with ExitStack() as stack:
            stack.enter_context(self._queries.applied())
            sources = [self._sources(frame) for frame in range(frames)]
            stack.enter_context(extended(self.network, self._taps, frames, sources))
            for block in self._blocks:
                module = self.network.get_submodule(block.path)
                handle = module.register_forward_hook(self._attend_over_time(block, frames))
                stack.callback(handle.remove)
            yield

    @contextmanager
    def copied_maps(self, source: int, target: int) -> Iterator[None]:
        """Inside this context the new attentions of the clip `target` of a batch have the attention
        maps of the clip `source`, that is its queries and keys."""
        self._copied_maps = (source, target)
        try:
            yield
        finally:
            self._copied_maps = None

    def _attend_over_time(
        self, block: _Block, frames: int
    ) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        stem = f"{self._component}.{block.path}{_NEW}"

        def attend(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            weights = [
                (self._initial[block.path, name] + self._new[f"{stem}{name}.diff"]).to(output)
                for name in _MATRICES
            ]
            bias = self._new[f"{stem}{_BIAS}"].to(output)
            x = rearrange(output, "(b f) n c -> (b n) f c", f=frames)
            normed = layer_norm(x, x.shape[-1:])
            q, k, v = (
                rearrange(linear(normed, weight), "m f (h d) -> m h f d", h=block.heads)
                for weight in weights[:3]
            )
            if self._copied_maps is not None:
                q, k = (self._with_copy(x, len(output) // frames) for x in (q, k))
            attended = rearrange(scaled_dot_product_attention(q, k, v), "m h f d -> m f (h d)")
            x = x + linear(attended, weights[3], bias)
            return rearrange(x, "(b n) f c -> (b f) n c", n=output.shape[1])

        return attend

    def _with_copy(self, x: Tensor, clips: int) -> Tensor:
        """Queries or keys (B·N, …), in which one clip has those of another one."""
        assert self._copied_maps is not None
        source, target = self._copied_maps
        x = rearrange(x, "(b n) ... -> b n ...", b=clips).clone()
        x[target] = x[source]
        return rearrange(x, "b n ... -> (b n) ...")

    def _check(self) -> None:
        expected = {
            f"{self._component}.{block.path}{_NEW}{name}": shape
            for block in self._blocks
            for name, shape in _shapes(block).items()
        }
        found = {name: tuple(tensor.shape) for name, tensor in self._new.items()}
        if found != expected:
            names = sorted(
                name for name in {*found, *expected} if found.get(name) != expected.get(name)
            )
            raise BadMotion(
                f"the motion's {names[0]} does not fit this model; the file is damaged or of "
                "another model"
            )


def _blocks(network: nn.Module, transformers: Sequence[Transformer]) -> list[_Block]:
    """The transformer blocks, each known by the queries of its self-attention."""
    blocks = []
    for transformer in transformers:
        for attention in transformer.attentions:
            path, found, _ = attention.query.rpartition(".attn1.")
            if found:
                module: Any = network.get_submodule(f"{path}.attn1")
                blocks.append(_Block(path, module.heads, module.to_q.out_features))
    return blocks


def _shapes(block: _Block) -> dict[str, tuple[int, ...]]:
    square = (block.channels, block.channels)
    return {**{f"{name}.diff": square for name in _MATRICES}, _BIAS: (block.channels,)}


def _initial_weights(blocks: Sequence[_Block], device: Any) -> dict[tuple[str, str], Tensor]:
    """The initial weights of the new attentions: uniform in ±1/√C, as torch initializes a linear
    layer, and zero for the last layer."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for block in blocks:
        for name in _MATRICES[:3]:
            uniform = 2 * torch.rand(block.channels, block.channels, generator=generator) - 1
            weights[block.path, name] = (uniform / block.channels**0.5).to(device)
        weights[block.path, _MATRICES[3]] = torch.zeros_like(weights[block.path, name])
    return weights
