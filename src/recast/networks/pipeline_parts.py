"""Loading the parts of a model.

Owns how a model folder is opened, in which order its parts are loaded, and how the parts of a
loaded pipeline are taken. It refuses to know the classes and numbers of a model: a backbone gives
them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadCall, BadModel
from recast.networks import checkpoint_loading, lora, meta_model, placement
from recast.networks.compiled_blocks import original
from recast.networks.devices import usable_device
from recast.networks.model_parts import ModelParts
from recast.networks.settings import LoRAFile, NetworkSettings

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PartClasses = Mapping[str, type[Any]]
"""Name of a part -> its class, such as `unet` or `transformer`, `vae`, `text_encoder` and
`tokenizer`. The network that denoises is the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """The content of a model folder's `recast.json`."""

    path: Path
    defaults: Mapping[str, Any] | None = None
    """Frames, height, width, fps, steps and guidance scale as numbers; None if the card does not
    give them."""
    words: frozenset[str] = frozenset()
    """All words on which the model was trained; empty if the card does not give them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolder:
    """A model folder of which only small files have been read. Errors in these files are reported
    before gigabytes of weights are loaded."""

    name: str
    path: Path
    pipeline: str
    """The class of its pipeline in diffusers."""
    card: ModelCard
    device: torch.device
    dtype: torch.dtype
    lora: tuple[LoRAFile, ...]
    """LoRAs that are added to the weights."""

    def parts(
        self,
        classes: PartClasses,
        *,
        float32: Collection[str] = (),
        boundary_ratio: float | None = None,
        elsewhere: Mapping[str, Path] = MappingProxyType({}),
    ) -> ModelParts:
        """Load the scheduler and the tokenizers, which are small, and then the networks. The parts
        that `float32` names are loaded in float32, and the others in `dtype`. `elsewhere` gives the
        folders of parts that are not in the model's folder. LoRAs are added to the weights. Raises
        `BadModel`."""
        loaded: dict[str, Any] = {"scheduler": read_scheduler(self.path / "scheduler")}
        for part, kind in classes.items():
            if part.startswith("tokenizer"):
                loaded[part] = checkpoint_loading.tokenizer(kind, self.path / part)
        for part, kind in classes.items():
            dtype = torch.float32 if part in float32 else self.dtype
            if part.startswith("text_encoder"):
                loaded[part] = checkpoint_loading.text_network(kind, self.path / part, dtype)
            elif part not in loaded:
                folder = elsewhere.get(part, self.path / part)
                loaded[part] = checkpoint_loading.network(kind, folder, dtype)
        parts = ModelParts(
            name=self.name,
            device=self.device,
            words=self.card.words,
            boundary_ratio=boundary_ratio,
            **loaded,
        )
        lora.add(self.lora, parts, self.pipeline)
        return parts


def open_folder(
    source: str,
    settings: NetworkSettings,
    aliases: Mapping[str, str],
    pipelines: frozenset[str],
    *,
    gpu_dtype: torch.dtype = torch.float16,
    download: Sequence[str] = (),
) -> ModelFolder:
    """Open the folder of an alias, a hub id or a path.

    `gpu_dtype` is the precision for `dtype=auto` on a GPU. `download` are the `parts` of
    `find_folder`. Raises `BadModel` for a folder that does not hold one of these pipelines, and
    `BadCall` for settings that this machine does not support.
    """
    device = model_device(settings)
    dtype = network_dtype(settings, device, gpu_dtype)
    placement.check(settings, device)
    lora.check(settings.lora)
    path = checkpoint_loading.find_folder(aliases.get(source, source), download)
    return ModelFolder(
        name=_loaded_name(source, aliases),
        path=path,
        pipeline=checkpoint_loading.check_index(path, pipelines),
        lora=settings.lora,
        card=_read_card(path / "recast.json"),
        device=device,
        dtype=dtype,
    )


def read_scheduler(folder: Path) -> dict[str, Any]:
    """The config of a scheduler. Raises `BadModel` for a config that Recast does not support."""
    config = checkpoint_loading.read_json(folder / "scheduler_config.json")
    from_diffusers(config)
    return config


def take_parts(pipeline: DiffusionPipeline, classes: PartClasses) -> ModelParts:
    """The parts of a loaded diffusers pipeline. They stay on their device. A network that
    `torch.compile(network)` wraps is taken out of it, and runs uncompiled."""
    parts: dict[str, Any] = {name: original(getattr(pipeline, name)) for name in classes}
    first = parts[next(iter(classes))]
    return ModelParts(
        # The last part of the folder or hub id from which the pipeline was loaded.
        name=Path(str(pipeline.config.get("_name_or_path") or "wrapped")).name,
        device=first.device,
        scheduler=pipeline.scheduler.config,
        boundary_ratio=pipeline.config.get("boundary_ratio"),
        **parts,
    )


def model_device(settings: NetworkSettings) -> torch.device:
    """The device on which networks are loaded. Raises `BadCall` if this machine does not have
    it."""
    return meta_model.META if meta_model.on_meta() else usable_device(settings.device)


def network_dtype(
    settings: NetworkSettings, device: torch.device, gpu_dtype: torch.dtype
) -> torch.dtype:
    """The precision of the networks. Raises `BadCall` for float16 on the CPU."""
    device = meta_model.target_device(device)
    if settings.dtype == "auto":
        return torch.float32 if device.type == "cpu" else gpu_dtype
    if settings.dtype == "float16" and device.type == "cpu":
        raise BadCall("`dtype=float16` is too slow on the CPU; use float32 or bfloat16")
    kinds = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    return kinds[settings.dtype]


def _loaded_name(source: str, aliases: Mapping[str, str]) -> str:
    """The name of a loaded model: its alias, or the last part of its hub id or path."""
    path = Path(source).expanduser()
    name = source if source in aliases or not path.is_dir() else path.resolve().name
    return name.split("/")[-1]


def _read_card(path: Path) -> ModelCard:
    """The card in a file; an empty card if the file does not exist. Raises `BadModel`."""
    if not path.exists():
        return ModelCard(path=path)
    content = checkpoint_loading.read_json(path)
    try:
        words = frozenset(content.get("words", ()))
    except TypeError as error:
        raise BadModel(f"{path} must give words as an array of strings ({error})") from error
    return ModelCard(path=path, defaults=content.get("defaults"), words=words)
