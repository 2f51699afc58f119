"""Motion embeddings: an adapter that adds to the inputs of temporal self-attention.

Owns the embeddings of Motion Inversion and their effect on the layers. It refuses to know methods
and training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.hooks import RemovableHandle

from recast.errors import BadMotion
from recast.networks.adapters import Adapter
from recast.networks.attention_layers import Transformer


@final
class MotionEmbeddings(Adapter):
    """m^QK and m^V of Motion Inversion (Wang et al. 2024, eq. 1), added to the inputs of the
    projections of temporal self-attention.

    "query_key.<transformer>" is m^QK, (1, F, C) or (h·w, F, C); as in the released code, all
    attentions of a transformer share it. "value.<projection>" is m^V, (h·w, F, C). `gamma` scales
    m^V. With `difference`, m_i − m_(i−1) replaces m^V, which removes static appearance. For a clip
    of another length the embeddings are interpolated linearly. If they are `constant`, they stay in
    main memory, and what is added to each layer is computed once. Raises `BadMotion` for tensors
    that do not fit the network.
    """

    def __init__(
        self,
        network: nn.Module,
        tensors: Mapping[str, Tensor],
        device: Any,
        transformers: Sequence[Transformer],
        *,
        gamma: float = 1.0,
        difference: bool = False,
        constant: bool = False,
    ) -> None:
        super().__init__(network, tensors, "cpu" if constant else device)
        self._gamma, self._difference, self._constant = gamma, difference, constant
        self._addends: dict[tuple[object, ...], Tensor] = {}
        """What is added if the embeddings are constant: (name, frames, dtype) -> addend."""
        self._pairs: list[tuple[str, str]] = []
        """(path of a projection, name of the tensor that is added to its input)."""
        for path, attentions in transformers:
            for attention in attentions:
                self._pairs += [
                    (projection, f"query_key.{path}")
                    for projection in (attention.query, attention.key)
                ]
                self._pairs.append((attention.value, f"value.{attention.value}"))
        self._pairs = [pair for pair in self._pairs if pair[1] in tensors]
        for name in set(tensors) - {name for _, name in self._pairs}:
            raise BadMotion(f"the motion's {name} belongs to no temporal attention of this model")
        for path, name in self._pairs:
            self._check(name, tensors[name], self._linear(name, path).in_features)

    @staticmethod
    def zeros(
        transformers: Sequence[Transformer],
        shapes: Mapping[str, tuple[int, ...]],
        *,
        spatial: bool = False,
    ) -> dict[str, Tensor]:
        """Zero tensors for the projections of these transformers. `shapes` maps the path of a
        projection to the shape of its input, (h·w, F, C). With `spatial`, m^QK also has a vector
        for every position."""
        tensors = {}
        for path, attentions in transformers:
            positions, *rest = shapes[attentions[0].query]
            tensors[f"query_key.{path}"] = torch.zeros(positions if spatial else 1, *rest)
            for attention in attentions:
                tensors[f"value.{attention.value}"] = torch.zeros(shapes[attention.value])
        return tensors

    @contextmanager
    def applied(self, frames: int | None = None) -> Iterator[None]:
        handles: list[RemovableHandle] = []
        try:
            for path, name in self._pairs:
                hook = _add_to_input(partial(self._addend, name))
                handles.append(self.network.get_submodule(path).register_forward_pre_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _addend(self, name: str, x: Tensor) -> Tensor:
        """What is added to the input x (…, F, C) of a projection, in the precision of x."""
        key = (name, x.shape[1], x.dtype)
        if key in self._addends:
            return self._addends[key]
        tensor: Tensor = self.tensors[name]
        embedding = tensor.detach() if self._constant else tensor
        addend = self._fit(name, embedding.to(x.device), x.shape[1]).to(x)
        if self._constant:
            self._addends[key] = addend
        return addend

    def _fit(self, name: str, embedding: Tensor, frames: int) -> Tensor:
        """m^QK or γ·m^V for this number of frames, or γ times the differences of m^V between
        frames, in which the first frame is unchanged."""
        embedding = _fit_frames(embedding, frames)
        if not name.startswith("value."):
            return embedding
        if self._difference:
            differences = embedding[:, 1:] - embedding[:, :-1]
            embedding = torch.cat([embedding[:, :1], differences], 1)
        return self._gamma * embedding

    @staticmethod
    def _check(name: str, tensor: Tensor, channels: int) -> None:
        if tensor.ndim != 3 or tensor.shape[2] != channels or not tensor.numel():
            raise BadMotion(
                f"the motion's {name} has shape {tuple(tensor.shape)}; this model needs three "
                f"dimensions, of which the last is {channels}"
            )


def _add_to_input(addend_for: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any], Any]:
    """A hook that adds an embedding to the input (B·h·w, F, C) of a projection. `addend_for`
    returns it for an input, as (1, F, C) or (h·w, F, C)."""

    def add(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        addend = addend_for(x)
        if len(x) % len(addend):
            raise BadMotion(
                f"the motion was learned at {len(addend)} positions of a layer that now has "
                f"{len(x)}; make clips of the size of the source"
            )
        clips = x.unflatten(0, (-1, len(addend)))  # the clips of a batch follow one another
        return ((clips + addend).flatten(0, 1), *args[1:])

    return add


def _fit_frames(embedding: Tensor, frames: int) -> Tensor:
    """The embedding (…, F, C), interpolated linearly to this number of frames."""
    if embedding.shape[1] == frames:
        return embedding
    return interpolate(embedding.mT, frames, mode="linear", align_corners=False).mT
