"""From a name that a user types to a loaded model or a configured method.

Owns how a backbone's name is resolved: an alias, a folder in diffusers' format, or a hub id. Names
no model and no method itself.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from recast import registry
from recast.backbones.base import Backbone, Settings
from recast.errors import BadModel, UnknownName
from recast.networks import devices, hub_cache

if TYPE_CHECKING:
    from recast.networks.meta_model import MetaModel

_INDEX = "model_index.json"


def aliases() -> dict[str, str]:
    """Every short name of a model, and the name of the backbone file that loads it."""
    return {alias: name for name in registry.names("backbones") for alias in _module(name).ALIASES}


def load(name: str, settings: Settings | None = None) -> Backbone:
    """Load a backbone by alias, folder or hub id; an id that has an alias is that alias.

    Raises `UnknownName` for a name that is none of these, `BadModel` for a folder or id that holds
    no model that Recast can use, `BadCall` for settings that this machine cannot meet.
    """
    settings, name = settings or Settings(), _known_as(name)
    loaded: Backbone = _loader(name).load(name, settings)
    return loaded


def _known_as(name: str) -> str:
    """The alias of a hub id, the first if it has several; any other name as it is."""
    if name.count("/") != 1 or Path(name).expanduser().is_dir():
        return name
    found = aliases().items()
    return next((alias for alias, module in found if _module(module).ALIASES[alias] == name), name)


def _loader(name: str, *, download: bool = True) -> ModuleType:
    """The backbone file that loads a model of this name; without `download` a hub id is looked up
    in the local cache alone."""
    found, folder = aliases(), Path(name).expanduser()
    if name in found:
        return _module(found[name])
    if folder.is_dir():
        return _for_folder(folder)
    if _is_file_path(name):
        raise BadModel(f"there is no model folder {name}; check the path")
    if name.count("/") == 1:
        return (
            _for_index(_hub_index(name), name)
            if download
            else _for_folder(hub_cache.cached_folder(name))
        )
    raise UnknownName("backbone", name, found)


@contextmanager
def outlined(
    name: str, settings: Settings, device: torch.device
) -> Iterator[tuple[Backbone, MetaModel]]:
    """Within the block a backbone without weights, as `load` would load it for a run on `device`:
    its passes have shapes and no values, and take no memory. Nothing is downloaded; an alias that
    is not there whole is made of the config that its makers published, where Recast knows it.

    Raises `BadModel` for a model that is not on this machine, and as `load` does.
    """
    with registry.unheard():
        from recast.networks import meta_model  # with diffusers and transformers, which load slowly

    plain = replace(settings, offload="none")
    with meta_model.use_meta_models(device) as outline, tempfile.TemporaryDirectory() as scratch:
        there = _there(_known_as(name), Path(scratch))
        loader = _loader(there, download=False)
        if not loader.__name__.startswith("recast."):
            raise BadModel(f"{name} is a model of another package, which has to load it whole")
        yield loader.load(there, plain), outline


def with_random_weights(name: str, settings: Settings) -> Backbone:
    """The named model at its full size, its weights drawn anew: to measure what runs take where the
    real ones cannot be had. Nothing is downloaded, as in `outlined`; what stands for the tokenizer
    knows letters.

    Raises as `load` does, and `BadModel` for a model whose configs are not known here.
    """
    with registry.unheard():
        from recast.networks import meta_model  # as in `outlined`

    device = devices.usable_device(settings.device)
    home = device if settings.offload == "none" else torch.device("cpu")
    with (
        meta_model.random_weights(device, home),
        tempfile.TemporaryDirectory() as scratch,
    ):
        there = _there(_known_as(name), Path(scratch))
        drawn: Backbone = _loader(there, download=False).load(there, settings)
        return drawn


def published(alias: str) -> Mapping[str, Any]:
    """File -> content of the configs that a model's makers published; empty where Recast does not
    know them."""
    module = aliases().get(alias)
    return getattr(_module(module), "PUBLISHED", {}).get(alias, {}) if module else {}


def _there(name: str, scratch: Path) -> str:
    """The name itself or, of an alias whose configs are not all downloaded, a folder in `scratch`
    of those that its makers published."""
    files = published(name)
    if not files:
        return name
    source = _module(aliases()[name]).ALIASES[name]
    if _has_all(source, files):
        return name
    folder = scratch / source.split("/")[-1]
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(dict(content)))
    return str(folder)


def _has_all(source: str, files: Iterable[str]) -> bool:
    """Whether the files of a hub id are in the local cache. Of several ids it is the first that
    has the pipeline's files."""
    try:
        first, *_ = [hub_cache.cached_folder(one) for one in source.split(" + ")]
    except BadModel:
        return False
    return all((first / path).is_file() for path in files)


def wrap(pipeline: Any, settings: Settings | None = None) -> Backbone:
    """Use the networks of a diffusers pipeline that is already loaded, where and as they are.

    Raises `BadModel`, naming the pipelines that do.
    """
    kind = type(pipeline).__name__
    module = _pipelines().get(kind)
    if module is None:
        raise BadModel(f"a {kind} cannot be wrapped; Recast takes {_supported()}")
    wrapped: Backbone = module.wrap(pipeline, settings or Settings())
    return wrapped


def _module(name: str) -> ModuleType:
    return registry.load("backbones", name)


def _pipelines() -> dict[str, ModuleType]:
    modules = map(_module, registry.names("backbones"))
    return {kind: module for module in modules for kind in module.PIPELINES}


def _supported() -> str:
    return ", ".join(sorted(_pipelines()))


def _is_file_path(name: str) -> bool:
    return name.startswith((".", "~", "/")) or name.count("/") > 1 or Path(name).exists()


def _for_folder(folder: Path) -> ModuleType:
    index = folder / _INDEX
    if not index.is_file():
        raise BadModel(f"{folder} is not a diffusers model folder: it has no {_INDEX}")
    return _for_index(index, str(folder))


def _for_index(index: Path, name: str) -> ModuleType:
    try:
        kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(f"{name} has a {_INDEX} that names no _class_name; it is damaged") from error
    module = _pipelines().get(str(kind))
    if module is None:
        raise BadModel(f"{name} holds a {kind}, and Recast can load {_supported()}")
    return module


def _hub_index(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, _INDEX))
    except Exception as error:  # which classes the hub's client raises changes with its version
        reason = type(error).__name__
        raise BadModel(
            f"{name} is no local folder and cannot be downloaded ({reason}); check the id, or, "
            "without a network, copy the model here and pass its folder"
        ) from error
