"""Adapters: LoRA and weight differences, which change a frozen network.

An adapter consists of trainable tensors, named as in a motion file, and of a context manager inside
which the network uses them. A backbone's `transformers` name the layers. Owns the effect of the
tensors on the layers. It refuses to know methods and training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from recast.errors import BadCall, BadMotion
from recast.networks.library_logging import quiet

_PEFT = "motion"
"""The name of the adapter inside peft's layers."""
_A, _B, _DIFF = ".lora_A.weight", ".lora_B.weight", ".diff"


def check_no_adapters(network: nn.Module) -> None:
    """Raise `BadCall` if the user has loaded adapters into the network, which peft would
    disable."""
    loaded = network.__dict__.get("peft_config")
    if loaded is not None:
        names = ", ".join(loaded) or "deleted adapters, whose layers remain"
        raise BadCall(
            f"this model has adapters loaded ({names}); unload them with unload_lora_weights and "
            "wrap the model again; to preserve their effect, call fuse_lora before"
        )


class Adapter(ABC):
    """Trainable tensors in float32, on the device of the network, and their effect on the network.
    Raises `BadCall` for a network that has other adapters."""

    def __init__(self, network: nn.Module, tensors: Mapping[str, Tensor], device: Any) -> None:
        check_no_adapters(network)
        self.network = network
        # Sorted by name, as in a file, because an optimizer identifies parameters by their order.
        self.tensors = {
            name: nn.Parameter(tensor.detach().to(device, torch.float32, copy=True))
            for name, tensor in sorted(tensors.items())
        }

    @abstractmethod
    def applied(self, frames: int | None = None) -> AbstractContextManager[None]:
        """Inside this context the network uses the tensors on clips of this number of frames of
        latents, which only some adapters need to know. At its end, also after an exception,
        the network is unchanged. With gradient checkpointing, the backward pass must be inside the
        context too."""

    def _linear(self, name: str, path: str) -> nn.Linear:
        """The linear layer at `path`, to which the tensor `name` belongs. Raises `BadMotion` if the
        network has no such layer."""
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


@contextmanager
def input_shapes(network: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Inside this context a forward pass fills the dict: path of a layer -> shape of its input."""
    shapes: dict[str, tuple[int, ...]] = {}
    handles: list[RemovableHandle] = []

    def hook(path: str) -> Callable[[nn.Module, Any], None]:
        def store(module: nn.Module, args: Any) -> None:
            shapes[path] = tuple(args[0].shape)

        return store

    try:
        for path in paths:
            handles.append(network.get_submodule(path).register_forward_pre_hook(hook(path)))
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


@final
class LoRA(Adapter):
    """Low-rank additions to linear layers (Hu et al. 2022), in peft's layers.

    "<component>.<layer>.lora_A.weight" is (rank, in) and "<component>.<layer>.lora_B.weight" is
    (out, rank). These are the names of diffusers; peft's names lack the component. α equals the
    rank, so that W becomes W + B·A. Raises `BadMotion` for tensors that do not fit the network.
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
        """Tensors for the layers at these paths, without effect: A is uniform in ±1/√in, as in
        peft, and B is zero."""
        tensors = {}
        for path in paths:
            layer = network.get_submodule(path)
            assert isinstance(layer, nn.Linear)
            uniform = torch.rand(rank, layer.in_features, generator=generator)
            tensors[f"{component}.{path}{_A}"] = (2 * uniform - 1) / layer.in_features**0.5
            tensors[f"{component}.{path}{_B}"] = torch.zeros(layer.out_features, rank)
        return tensors

    @contextmanager
    def applied(self, frames: int | None = None) -> Iterator[None]:
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
        """The paths of the adapted layers. Raises `BadMotion` for names or shapes that are not
        those of a LoRA."""
        paths = []
        for name, tensor in self.tensors.items():
            path = name.removeprefix(f"{component}.").removesuffix(_A).removesuffix(_B)
            layer = self._linear(name, path)
            rank = self._rank()
            shapes = {_A: (rank, layer.in_features), _B: (layer.out_features, rank)}
            stem = f"{component}.{path}"
            is_pair = {stem + suffix for suffix in shapes} <= self.tensors.keys()
            shape = next((shapes[s] for s in shapes if name == stem + s), None)
            if shape is None or not is_pair or tuple(tensor.shape) != shape:
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
    """Path -> a layer of peft that wraps the layer at the path. The network is unchanged."""
    from peft import LoraConfig, inject_adapter_in_model  # importing takes a second

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=paths, lora_dropout=0.0)
    bases = {path: network.get_submodule(path) for path in paths}
    try:
        with quiet():  # peft imports torchao, which warns about kernels for other devices
            # The matrices are created on the meta device, because the caller replaces them.
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
    """A hook that passes keyword arguments by position. In AnimateDiff's transformers diffusers
    calls `proj_in(input=…)`, but the argument of peft's layers has another name."""
    return (*args, *named.values()), {}


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


@final
class WeightDifferences(Adapter):
    """Differences that are added to the weights of linear layers: full fine-tuning that leaves the
    weights themselves unchanged.

    "<component>.<layer>.diff" is (out, in). AdamW's weight decay acts on the differences and not on
    the weights. Raises `BadMotion` for tensors that do not fit the network.
    """

    def __init__(
        self, network: nn.Module, tensors: Mapping[str, Tensor], device: Any, component: str
    ) -> None:
        super().__init__(network, tensors, device)
        self._pairs: list[tuple[str, str]] = []
        for name, tensor in tensors.items():
            path = name.removeprefix(f"{component}.").removesuffix(_DIFF)
            layer = self._linear(name, path)
            valid_name = name == f"{component}.{path}{_DIFF}"
            if not valid_name or tensor.shape != layer.weight.shape:
                raise BadMotion(
                    f"the motion's {name}, {tuple(tensor.shape)}, is not a difference of "
                    f"weights {tuple(layer.weight.shape)}"
                )
            self._pairs.append((path, name))

    @staticmethod
    def zeros(network: nn.Module, paths: Iterable[str], component: str) -> dict[str, Tensor]:
        """Zero differences for the layers at these paths."""
        return {
            f"{component}.{path}{_DIFF}": torch.zeros(network.get_parameter(f"{path}.weight").shape)
            for path in paths
        }

    @contextmanager
    def applied(self, frames: int | None = None) -> Iterator[None]:
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
    """The tensors whose effect is the weighted sum of the effects of several sets of tensors, all
    for the same kind of adapter.

    A tensor that a set lacks counts as zero. The matrices of LoRAs are concatenated along the rank.
    Raises `BadMotion` for tensors of different shapes, which cannot be added.
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
                    f"the motions cannot be added: {name} is {' and '.join(map(str, shapes))}; "
                    "learn them at one size and number of frames"
                )
            total[name] = torch.stack([weight * tensor for tensor, weight in terms]).sum(0)
    return total
