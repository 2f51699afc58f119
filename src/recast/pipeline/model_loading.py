"""Models by name: an alias, a folder in diffusers' format, or a hub id becomes a loaded model.

This module owns the way in which a name is resolved. It refuses to name a model itself: the modules
in `recast.backbones` state their aliases and the diffusers pipelines that they can load.
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
from recast.errors import BadCall, BadModel, UnknownName
from recast.networks import devices, hub_cache

if TYPE_CHECKING:
    from recast.networks.meta_model import MetaModel

_INDEX = "model_index.json"


def aliases() -> dict[str, str]:
    """Every alias of a model, with the name of the backbone module that loads it."""
    return {alias: name for name in registry.names("backbones") for alias in _module(name).ALIASES}


def load(name: str, settings: Settings | None = None) -> Backbone:
    """Load a model by its alias, folder or hub id. A hub id that has an alias is loaded under it.

    Raises `UnknownName` for a name that is neither alias nor folder nor hub id, `BadModel` for a
    folder or id without a model that Recast can load, and `BadCall` for settings that this machine
    does not support.
    """
    settings, name = settings or Settings(), alias_of(name)
    module = backbone_module(name)
    _check_control_net(module, name, settings)
    backbone: Backbone = module.load(name, settings)
    return backbone


def wrap(pipeline: Any, settings: Settings | None = None) -> Backbone:
    """A backbone from a loaded diffusers pipeline. Its networks keep their device and precision.
    Compiled blocks stay compiled, and run uncompiled while a method reads or changes their
    features.

    Raises `BadModel` for another object, with the names of the pipelines that can be wrapped.
    """
    kind = type(pipeline).__name__
    module = _modules_by_pipeline().get(kind)
    if module is None:
        raise BadModel(f"an object of class {kind} cannot be wrapped; Recast wraps {_supported()}")
    settings = settings or Settings()
    _check_control_net(module, kind, settings)
    backbone: Backbone = module.wrap(pipeline, settings)
    return backbone


@contextmanager
def load_on_meta(
    name: str, settings: Settings, device: torch.device
) -> Iterator[tuple[Backbone, MetaModel]]:
    """Inside this context, the model is built on torch's meta device as `load` would build it for
    `device`: it runs and has shapes, but no values, and takes no memory.

    Nothing is downloaded. An alias whose files are not all on this machine is built from its
    published configs, if Recast knows them. Raises `BadModel` for a model that is not on this
    machine, and the errors of `load`.
    """
    with registry.quiet_imports():
        from recast.networks import meta_model  # imports diffusers and transformers, which is slow

    settings = replace(settings, offload="none")
    with meta_model.use_meta_models(device) as model, tempfile.TemporaryDirectory() as scratch:
        source = _with_published_configs(alias_of(name), Path(scratch))
        module = backbone_module(source, download=False)
        if not module.__name__.startswith("recast."):
            raise BadModel(
                f"the memory of {name} cannot be estimated, because another package loads it"
            )
        _check_control_net(module, name, settings)
        yield module.load(source, settings), model


def load_with_random_weights(name: str, settings: Settings) -> Backbone:
    """A model at its full size with random weights, to measure time and memory without its weights.

    Nothing is downloaded, as in `load_on_meta`. The tokenizer is replaced by one whose tokens are
    single letters. Raises `BadModel` for a model whose configs are not known, and the errors of
    `load`.
    """
    with registry.quiet_imports():
        from recast.networks import meta_model  # as in `load_on_meta`

    device = devices.usable_device(settings.device)
    home = device if settings.offload == "none" else torch.device("cpu")
    with (
        meta_model.random_weights(device, home),
        tempfile.TemporaryDirectory() as scratch,
    ):
        source = _with_published_configs(alias_of(name), Path(scratch))
        module = backbone_module(source, download=False)
        _check_control_net(module, name, settings)
        backbone: Backbone = module.load(source, settings)
        return backbone


def source_of(name: str) -> str:
    """Where a model is: a folder, a hub id, or several of them joined by " + ". Raises the errors
    of `check_name`."""
    check_name(name)
    modules, name = aliases(), alias_of(name)
    return str(_module(modules[name]).ALIASES[name]) if name in modules else name


def describe_alias(alias: str) -> str:
    """One line about the model of an alias, or about its family if the alias has none."""
    module = _module(aliases()[alias])
    line: str | None = getattr(module, "DESCRIPTIONS", {}).get(alias)
    return line or (module.__doc__ or "").strip().partition("\n")[0]


def published(alias: str) -> Mapping[str, Any]:
    """The published config files of a model, path to content; empty if Recast does not know
    them."""
    module = aliases().get(alias)
    return getattr(_module(module), "PUBLISHED", {}).get(alias, {}) if module else {}


def alias_of(name: str) -> str:
    """The first alias of a hub id; any other name unchanged."""
    if name.count("/") != 1 or Path(name).expanduser().is_dir():
        return name
    modules = aliases().items()
    return next(
        (alias for alias, module in modules if _module(module).ALIASES[alias] == name), name
    )


def check_name(name: str) -> None:
    """Raise `UnknownName` or `BadModel` for a name that is neither an alias nor an existing folder
    nor of the form of a hub id."""
    modules = aliases()
    if name in modules or Path(name).expanduser().is_dir():
        return
    if _is_file_path(name):
        raise BadModel(f"there is no model folder {name}; check the path")
    if name.count("/") != 1:
        raise UnknownName("backbone", name, modules)


def backbone_module(name: str, *, download: bool = True) -> ModuleType:
    """The backbone module that loads the model of a name. Without `download`, a hub id is looked up
    only in the local cache. Raises the errors of `load`."""
    check_name(name)
    modules, folder = aliases(), Path(name).expanduser()
    if name in modules:
        return _module(modules[name])
    if folder.is_dir():
        return _module_for_folder(folder)
    if download:
        return _module_for_index(_download_index(name), name)
    return _module_for_folder(hub_cache.cached_folder(name))


def _check_control_net(module: ModuleType, name: str, settings: Settings) -> None:
    """Raise `BadCall` for a ControlNet beside a model that reads none."""
    if settings.control_net is not None and not getattr(module, "TAKES_CONTROL_NET", False):
        takers = [
            n for n in registry.names("backbones") if hasattr(_module(n), "TAKES_CONTROL_NET")
        ]
        raise BadCall(
            f"`control_net`: {name} reads no ControlNet; backbones that do: {', '.join(takers)}"
        )


def _with_published_configs(name: str, scratch: Path) -> str:
    """The name itself; or, for an alias whose configs are not all downloaded, a folder in `scratch`
    with its published configs."""
    files = published(name)
    if not files:
        return name
    source = _module(aliases()[name]).ALIASES[name]
    if _is_cached(source, files):
        return name
    folder = scratch / source.split("/")[-1]
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(dict(content)))
    return str(folder)


def _is_cached(source: str, files: Iterable[str]) -> bool:
    """Whether the files of a hub id are in the local cache. If several ids are joined by " + ", the
    files belong to the first."""
    try:
        first, *_ = [hub_cache.cached_folder(one) for one in source.split(" + ")]
    except BadModel:
        return False
    return all((first / path).is_file() for path in files)


def _module(name: str) -> ModuleType:
    return registry.load("backbones", name)


def _modules_by_pipeline() -> dict[str, ModuleType]:
    modules = map(_module, registry.names("backbones"))
    return {kind: module for module in modules for kind in module.PIPELINES}


def _supported() -> str:
    return ", ".join(sorted(_modules_by_pipeline()))


def _is_file_path(name: str) -> bool:
    return name.startswith((".", "~", "/")) or name.count("/") > 1 or Path(name).exists()


def _module_for_folder(folder: Path) -> ModuleType:
    index = folder / _INDEX
    if not index.is_file():
        raise BadModel(f"{folder} is not a diffusers model folder: it has no {_INDEX}")
    return _module_for_index(index, str(folder))


def _module_for_index(index: Path, name: str) -> ModuleType:
    try:
        kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(f"the {_INDEX} of {name} has no _class_name; it is damaged") from error
    module = _modules_by_pipeline().get(str(kind))
    if module is None:
        raise BadModel(f"{name} is a {kind}, which Recast cannot load; it can load {_supported()}")
    return module


def _download_index(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, _INDEX))
    except Exception as error:  # the exception classes of the hub's client change with its version
        reason = type(error).__name__
        raise BadModel(
            f"{name} is not a local folder and cannot be downloaded ({reason}); check the id, or, "
            "without a network, copy the model here and pass its folder"
        ) from error
