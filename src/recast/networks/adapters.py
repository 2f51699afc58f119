"""Adapters, which change a frozen network only while they are applied: motion embeddings, LoRA and
differences of weights.

An adapter is a set of trainable tensors, named as in a motion file, and a context manager inside
which the network uses them. A backbone's `transformers` say which layers there are. Owns what the
tensors do to the layers. It refuses to know methods and training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear
from torch.utils.hooks import RemovableHandle

from recast.errors import BadCall, BadMotion
from recast.networks.attention_layers import Transformer

_PEFT = "motion"
"""The name of the adapter inside peft's layers."""
_A, _B, _DIFF = ".lora_A.weight", ".lora_B.weight", ".diff"


def check_no_adapters(network: nn.Module) -> None:
    """Raise `BadCall` for a network with adapters of the user, which peft would disable."""
    loaded = network.__dict__.get("peft_config")
    if loaded is not None:
        names = ", ".join(loaded) or "deleted ones, whose layers are still there"
        raise BadCall(
            f"this model has adapters loaded ({names}); unload them first (unload_lora_weights), "
            "after fuse_lora if the model should keep their effect, and wrap it again"
        )


class Adapter(ABC):
    """Trainable tensors, in float32 on the network's device, and how the network uses them. Raises
    `BadCall` for a network that has other adapters."""

    def __init__(self, network: nn.Module, tensors: Mapping[str, Tensor], device: Any) -> None:
        check_no_adapters(network)
        self.network = network
        # In the order of the names, as in a file, because optimisers number their parameters.
        self.tensors = {
            name: nn.Parameter(tensor.detach().to(device, torch.float32, copy=True))
            for name, tensor in sorted(tensors.items())
        }

    @abstractmethod
    def applied(self) -> AbstractContextManager[None]:
        """Inside this context the network uses the tensors; afterwards, also after an exception, it
        is unchanged. With gradient checkpointing the backward pass must be inside the context
        too."""

    def _linear(self, name: str, path: str) -> nn.Linear:
        """The layer to which the tensor of that name belongs. Raises `BadMotion`."""
        try:
            layer = self.network.get_submodule(path)
        except AttributeError:
            layer = None
        if not isinstance(layer, nn.Linear):
            raise BadMotion(
                f"the motion's {name} is for a linear layer {path}, which this model does not "
                "have; the file is damaged or of another model"
            )
        return layer


@final
class MotionEmbeddings(Adapter):
    """m^QK and m^V of Motion Inversion (Wang et al. 2024, eq. 1), added to the inputs of the
    projections of temporal self-attention.

    "query_key.<transformer>" is (1, F, C), shared by the attentions of the transformer as in the
    released code, or (h·w, F, C); "value.<projection>" is (h·w, F, C). `gamma` scales m^V, and with
    `difference` m_i − m_(i−1) takes its place, which removes static appearance. For clips of other
    lengths both are interpolated linearly.
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
    ) -> None:
        super().__init__(network, tensors, device)
        self._gamma, self._difference = gamma, difference
        self._pairs: list[tuple[str, str]] = []
        """The paths of projections, each with the name of the tensor that is added to its input."""
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
        """Tensors without effect, for projections whose inputs have these shapes (h·w, F, C). With
        `spatial`, m^QK too has a value for every position."""
        tensors = {}
        for path, attentions in transformers:
            positions, *rest = shapes[attentions[0].query]
            tensors[f"query_key.{path}"] = torch.zeros(positions if spatial else 1, *rest)
            for attention in attentions:
                tensors[f"value.{attention.value}"] = torch.zeros(shapes[attention.value])
        return tensors

    @contextmanager
    def applied(self) -> Iterator[None]:
        handles: list[RemovableHandle] = []
        try:
            for path, name in self._pairs:
                added = self._value if name.startswith("value.") else _stretched
                hook = _adding(self.tensors[name], added)
                handles.append(self.network.get_submodule(path).register_forward_pre_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _value(self, embedding: Tensor, frames: int) -> Tensor:
        """γ·m^V, or γ times its difference in time, in which the first frame keeps its value."""
        embedding = _stretched(embedding, frames)
        if self._difference:
            steps = embedding[:, 1:] - embedding[:, :-1]
            embedding = torch.cat([embedding[:, :1], steps], 1)
        return self._gamma * embedding

    @staticmethod
    def _check(name: str, tensor: Tensor, width: int) -> None:
        if tensor.ndim != 3 or tensor.shape[2] != width or not tensor.numel():
            raise BadMotion(
                f"the motion's {name} is {tuple(tensor.shape)}; this model takes {width} channels"
            )


def _adding(
    embedding: Tensor, fitted: Callable[[Tensor, int], Tensor]
) -> Callable[[nn.Module, Any], Any]:
    def add(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        added = fitted(embedding, x.shape[1]).to(x)
        if len(added) > 1:
            if len(x) % len(added):
                raise BadMotion(
                    f"the motion was learned at {len(added)} positions of a layer that now has "
                    f"{len(x)}; make clips of the size that it was learned at"
                )
            added = added.repeat(len(x) // len(added), 1, 1)  # the clips of a batch
        return (x + added, *args[1:])

    return add


def _stretched(embedding: Tensor, frames: int) -> Tensor:
    if embedding.shape[1] == frames:
        return embedding
    return interpolate(embedding.mT, frames, mode="linear", align_corners=False).mT


@contextmanager
def input_shapes(network: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Inside this context a forward pass fills the dict: path of a layer -> shape of its input."""
    seen: dict[str, tuple[int, ...]] = {}
    handles: list[RemovableHandle] = []

    def hook(path: str) -> Callable[[nn.Module, Any], None]:
        def keep(module: nn.Module, args: Any) -> None:
            seen[path] = tuple(args[0].shape)

        return keep

    try:
        for path in paths:
            handles.append(network.get_submodule(path).register_forward_pre_hook(hook(path)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@final
class LoRA(Adapter):
    """Low-rank additions to linear layers (Hu et al. 2022), in peft's layers.

    "<component>.<layer>.lora_A.weight" is (rank, in) and "<component>.<layer>.lora_B.weight" is
    (out, rank): the keys of diffusers and, without the component, those of peft. α equals the rank,
    so that W becomes W + B·A.
    """

    def __init__(
        self, network: nn.Module, tensors: Mapping[str, Tensor], device: Any, component: str
    ) -> None:
        super().__init__(network, tensors, device)
        self._layers: dict[str, nn.Module] = {}
        paths = self._paths(component)
        if paths:
            self._layers = _peft_layers(network, paths, self._rank())
        for path, layer in self._layers.items():
            stem = f"{component}.{path}"
            for matrix, suffix in (("lora_A", _A), ("lora_B", _B)):
                getattr(layer, matrix)[_PEFT].weight = self.tensors[stem + suffix]

    @staticmethod
    def initial(
        network: nn.Module,
        paths: Iterable[str],
        rank: int,
        component: str,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Tensors without effect: B is zero, and A is uniform within ±1/√in, as in peft."""
        tensors = {}
        for path in paths:
            layer = network.get_submodule(path)
            assert isinstance(layer, nn.Linear)
            drawn = torch.rand(rank, layer.in_features, generator=generator)
            tensors[f"{component}.{path}{_A}"] = (2 * drawn - 1) / layer.in_features**0.5
            tensors[f"{component}.{path}{_B}"] = torch.zeros(layer.out_features, rank)
        return tensors

    @contextmanager
    def applied(self) -> Iterator[None]:
        bases: dict[str, nn.Module] = {}
        try:
            for path, layer in self._layers.items():
                bases[path] = self.network.get_submodule(path)
                _put(self.network, path, layer)
            yield
        finally:
            for path, base in bases.items():
                _put(self.network, path, base)

    def _paths(self, component: str) -> list[str]:
        """The paths of the adapted layers. Raises `BadMotion` for names or shapes that no LoRA
        has."""
        paths = []
        for name, tensor in self.tensors.items():
            path = name.removeprefix(f"{component}.").removesuffix(_A).removesuffix(_B)
            layer = self._linear(name, path)
            rank = self._rank()
            wanted = {_A: (rank, layer.in_features), _B: (layer.out_features, rank)}
            stem = f"{component}.{path}"
            pair = {stem + suffix for suffix in wanted} <= self.tensors.keys()
            shape = next((wanted[s] for s in wanted if name == stem + s), None)
            if shape is None or not pair or tuple(tensor.shape) != shape:
                raise BadMotion(
                    f"the motion's {name}, {tuple(tensor.shape)}, is not a matrix of a LoRA of "
                    f"rank {rank} for a layer from {layer.in_features} to {layer.out_features}"
                )
            if name.endswith(_A):
                paths.append(path)
        return paths

    def _rank(self) -> int:
        return next((len(t) for name, t in self.tensors.items() if name.endswith(_A)), 0)


def _peft_layers(network: nn.Module, paths: list[str], rank: int) -> dict[str, nn.Module]:
    """peft's layer for each of these paths. It wraps the network's own layer, which stays in the
    network."""
    from peft import LoraConfig, inject_adapter_in_model  # importing takes a second

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=paths, lora_dropout=0.0)
    bases = {path: network.get_submodule(path) for path in paths}
    try:
        # On the meta device, because its matrices are replaced afterwards.
        inject_adapter_in_model(config, network, _PEFT, low_cpu_mem_usage=True)
        layers = {path: network.get_submodule(path).eval() for path in paths}
        for layer in layers.values():
            layer.register_forward_pre_hook(_by_position, with_kwargs=True)
        return layers
    finally:
        for path, base in bases.items():
            _put(network, path, base)
        network.__dict__.pop("peft_config", None)


def _by_position(module: nn.Module, args: Any, named: Any) -> Any:
    """Pass keyword arguments by position: diffusers calls `proj_in(input=…)` in AnimateDiff's
    transformers, and the argument of peft's layers has another name."""
    return (*args, *named.values()), {}


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


@final
class WeightDifferences(Adapter):
    """Differences that are added to the weights of linear layers: full fine-tuning that can be
    removed again.

    "<component>.<layer>.diff" is (out, in). AdamW's weight decay acts on the differences and not on
    the weights.
    """

    def __init__(
        self, network: nn.Module, tensors: Mapping[str, Tensor], device: Any, component: str
    ) -> None:
        super().__init__(network, tensors, device)
        self._pairs: list[tuple[str, str]] = []
        for name, tensor in tensors.items():
            path = name.removeprefix(f"{component}.").removesuffix(_DIFF)
            layer = self._linear(name, path)
            named = name == f"{component}.{path}{_DIFF}"
            if not named or tensor.shape != layer.weight.shape:
                raise BadMotion(
                    f"the motion's {name}, {tuple(tensor.shape)}, is not a difference of "
                    f"weights {tuple(layer.weight.shape)}"
                )
            self._pairs.append((path, name))

    @staticmethod
    def zeros(network: nn.Module, paths: Iterable[str], component: str) -> dict[str, Tensor]:
        """Tensors without effect."""
        return {
            f"{component}.{path}{_DIFF}": torch.zeros(network.get_parameter(f"{path}.weight").shape)
            for path in paths
        }

    @contextmanager
    def applied(self) -> Iterator[None]:
        handles: list[RemovableHandle] = []

        def hook(diff: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
            return lambda module, args, output: output + linear(args[0], diff.to(args[0]))

        try:
            for path, name in self._pairs:
                layer = self.network.get_submodule(path)
                handles.append(layer.register_forward_hook(hook(self.tensors[name])))
            yield
        finally:
            for handle in handles:
                handle.remove()


def weighted_sum(
    sets: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> dict[str, Tensor]:
    """The tensors whose effect is the weighted sum of the effects of several sets of one kind.

    A tensor that a set lacks counts as zero. The ranks of LoRAs are concatenated. Raises
    `BadMotion` for tensors of different shapes, which have no sum.
    """
    names = dict.fromkeys(name for tensors in sets for name in tensors)
    total: dict[str, Tensor] = {}
    for name in names:
        terms = [(t[name].float(), w) for t, w in zip(sets, weights, strict=True) if name in t]
        if name.endswith(_A):
            total[name] = torch.cat([tensor for tensor, _ in terms])
        elif name.endswith(_B):
            total[name] = torch.cat([weight * tensor for tensor, weight in terms], 1)
        else:
            shapes = sorted({tuple(tensor.shape) for tensor, _ in terms})
            if len(shapes) > 1:
                raise BadMotion(
                    f"the motions do not add up: {name} is {' and '.join(map(str, shapes))}; learn "
                    "them at one size and number of frames"
                )
            total[name] = torch.stack([weight * tensor for tensor, weight in terms]).sum(0)
    return total
