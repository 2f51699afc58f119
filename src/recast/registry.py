"""Plug-ins by name: all modules in `backbones/`, `methods/` and `metrics/`, and entry points.

The file `recast/methods/dmt.py` is the method `dmt`; only `base.py` is no plug-in. Another package
adds a plug-in with an entry point in the group `recast.backbones`, `recast.methods` or
`recast.metrics` that names a module with the same contents as such a file. This module refuses to
know what a plug-in does, and imports one only when it is loaded.
"""

import importlib
import logging
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from recast.errors import UnknownName

_INTERFACE = "base"


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Suppress log messages below the level of an error inside the context.

    Libraries warn about optional dependencies when they are imported, and torchao warns about
    kernels for other devices.
    """
    previous_level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous_level)


def names(kind: str) -> list[str]:
    """The sorted names of one kind, which is "backbones", "methods" or "metrics"."""
    return sorted({*_files(kind), *_entry_points(kind)})


def load(kind: str, name: str) -> ModuleType:
    """The imported module of a name. Raises `UnknownName` with the most similar names."""
    if name in _files(kind):
        with quiet_imports():
            return importlib.import_module(f"recast.{kind}.{name}")
    external = _entry_points(kind)
    if name in external:
        module = external[name].load()
        assert isinstance(module, ModuleType)
        return module
    raise UnknownName(kind.removesuffix("s"), name, names(kind))


def _files(kind: str) -> set[str]:
    package = importlib.import_module(f"recast.{kind}")
    return {module.name for module in pkgutil.iter_modules(package.__path__)} - {_INTERFACE}


def _entry_points(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"recast.{kind}")}
