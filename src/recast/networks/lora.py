"""LoRAs of the user: small files that change the weights of a model when it is loaded.

Hu et al.: "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. diffusers reads the
file, in any format that it knows, and adds the products of the matrices to the weights. The model
then runs as fast as before, and its fingerprint differs from that of the model without a LoRA.

Owns how a LoRA is named, found, checked and added. It refuses to know models: a folder's index
names the pipeline whose loader is used. The LoRAs that methods train are in `adapters.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from recast.errors import BadCall, BadModel, reason_of
from recast.networks import diffusers_pipeline, meta_model
from recast.networks.library_logging import quiet
from recast.networks.settings import LoRAFile

if TYPE_CHECKING:
    from recast.networks.model_parts import ModelParts

_ADAPTER = "recast"
_SUFFIX = ".safetensors"
_EXPERTS = ("high", "low")
"""The experts of the noisy and of the clean levels, `transformer` and `transformer_2`."""
_UP_MATRICES = (".lora_B.weight", ".lora_up.weight", ".lora.up.weight", ".up.weight")


class _LoRA(NamedTuple):
    source: str
    """A folder or a hub id."""
    file: str | None
    """The file in it; None for the only file of a hub id."""
    weight: float
    expert: str
    """high or low; empty for a model with one network."""


def check(loras: Sequence[LoRAFile]) -> None:
    """Raise `BadCall` for a LoRA that is not named as `LoRAFile` says, and `BadModel` for a file
    that does not exist."""
    for lora in loras:
        _parse(lora)


def add(loras: Sequence[LoRAFile], parts: ModelParts, pipeline: str) -> None:
    """Add LoRAs to the weights of a model's network and, if they have layers for them, its text
    encoders. `pipeline` is the class of diffusers' pipeline in the index of the model's folder.

    Raises `BadCall` and `BadModel` as `check` does, and `BadModel` for a file that is damaged or
    was made for another model. On the meta device LoRAs are only checked, because they have no
    effect on memory.
    """
    check(loras)
    if not loras or meta_model.current() is not None:
        return
    import diffusers

    kind: Any = getattr(diffusers, pipeline, None)
    if not hasattr(kind, "load_lora_weights"):
        raise BadModel(f"{parts.name} takes no LoRA, because diffusers' {pipeline} loads none")
    for lora in loras:
        _check_expert(_parse(lora), lora, parts)
    # The pipeline only loads the file. Some ask their VAE for settings that others do not have.
    pipe = diffusers_pipeline.build(parts, kind, {"vae": None})
    with taking_adapters(parts.networks[0]):
        for lora in loras:
            _add(_parse(lora), pipe, parts)


@contextmanager
def taking_adapters(network: nn.Module) -> Iterator[None]:
    """Inside this context a network has diffusers' methods for LoRAs. Its UNet3DConditionModel has
    none, although the pipeline of this class loads LoRAs."""
    from diffusers.loaders import PeftAdapterMixin

    plain = type(network)
    if not issubclass(plain, PeftAdapterMixin):
        network.__class__ = type(plain.__name__, (plain, PeftAdapterMixin), {})
    try:
        yield
    finally:
        network.__class__ = plain


def _check_expert(lora: _LoRA, given: LoRAFile, parts: ModelParts) -> None:
    """Raise `BadCall` unless an expert is named exactly if the model has two."""
    if parts.transformer_2 is not None and not lora.expert:
        raise BadCall(
            f"{parts.name} has two experts, and a file does not say which of them it changes; "
            f"write high={given} or low={given} in `lora`, or both"
        )
    if parts.transformer_2 is None and lora.expert:
        plain = str(given).removeprefix(f"{lora.expert}=")
        raise BadCall(f"{parts.name} has one network; write {plain} in `lora`, not {given}")


def _parse(lora: LoRAFile) -> _LoRA:
    expert, separator, rest = str(lora).partition("=")
    expert, rest = (expert, rest) if separator and expert in _EXPERTS else ("", str(lora))
    path, colon, number = rest.rpartition(":")
    try:
        weight = float(number) if colon else 1.0
    except ValueError:  # a colon in the path
        path, weight = rest, 1.0
    path = path if colon else number
    if not -100 <= weight <= 100:  # also for nan
        raise BadCall(f"the weight of a `lora` must be between -100 and 100, got {lora}")
    local = Path(path).expanduser()
    if local.is_file() and local.suffix == _SUFFIX:
        return _LoRA(str(local.parent), local.name, weight, expert)
    words = path.split("/")
    if local.exists() or path.startswith((".", "~", "/")) or len(words) < 2:
        raise BadModel(
            f"there is no LoRA file {path}; `lora` takes a {_SUFFIX} file, a hub id, or a hub id "
            f"and a file in it, each with :WEIGHT or without"
        )
    return _LoRA("/".join(words[:2]), "/".join(words[2:]) or None, weight, expert)


def _add(lora: _LoRA, pipe: Any, parts: ModelParts) -> None:
    options = {"weight_name": lora.file, "use_safetensors": True}
    name = f"the LoRA {lora.file or lora.source}"
    try:
        with quiet():
            state = type(pipe).lora_state_dict(lora.source, **options)
            state = state[0] if isinstance(state, tuple) else state
            second = {"load_into_transformer_2": True} if lora.expert == "low" else {}
            pipe.load_lora_weights(lora.source, adapter_name=_ADAPTER, **options, **second)
            layers = sum(map(_count_layers, parts.networks))
            expected = sum(key.endswith(_UP_MATRICES) for key in state)
            if layers < expected or not layers:
                raise BadModel(
                    f"{name} changes {expected} layers, but {parts.name} has {layers} of them; it "
                    "was made for another model"
                )
            changed = [part for part in pipe._lora_loadable_modules if hasattr(pipe, part)]
            pipe.fuse_lora(changed, lora_scale=lora.weight, safe_fusing=True)
            pipe.unload_lora_weights()
    except BadModel:
        raise
    except Exception as error:  # diffusers and peft raise many kinds of exceptions
        raise BadModel(
            f"{name} cannot be added to {parts.name} ({reason_of(error)}); check that it was made "
            "for this model"
        ) from error


def _count_layers(network: nn.Module) -> int:
    from peft.tuners.tuners_utils import BaseTunerLayer  # importing takes a second

    layers = (one for one in network.modules() if isinstance(one, BaseTunerLayer))
    return sum(_ADAPTER in layer.active_adapters for layer in layers)
