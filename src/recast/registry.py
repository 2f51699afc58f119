"""Plug-ins by name: all modules in `backbones/`, `methods/` and `metrics/`, and entry points.

The file `recast/methods/dmt.py` is the method `dmt`; only `base.py` is no plug-in. Another package
adds a plug-in with an entry point in the group `recast.backbones`, `recast.methods` or
`recast.metrics` that names a module with the same contents as such a file. This module refuses to
know what a plug-in does, and imports one only when it is loaded.
"""

import gc
import importlib
import logging
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from recast import deferred_imports
from recast.errors import UnknownName
from recast.shared_context import SharedContext

_INTERFACE = "base"
deferring = False
"""Whether `quiet_imports` defers modules (`deferred_imports`). Commands turn it on. It stays off in
a program of somebody else, whose modules are not ours to replace."""


def quiet_imports() -> AbstractContextManager[None]:
    """Suppress log messages below the level of an error, and stop the search for garbage, inside
    the context. In a command, parts of libraries that a run hardly ever uses are deferred.

    Libraries warn about optional dependencies when they are imported, and torchao warns about
    kernels for other devices. An import creates many objects and hardly any garbage, and Python
    would visit all of the objects several times in a search for it.
    """
    return _QUIET_IMPORTS


@contextmanager
def _quiet_imports() -> Iterator[None]:
    previous_level, collects_garbage = logging.root.manager.disable, gc.isenabled()
    modules = len(sys.modules)
    logging.disable(logging.WARNING)
    gc.disable()
    package_map: AbstractContextManager[None] = nullcontext()
    if deferring:
        deferred_imports.install()
        package_map = deferred_imports.late_package_map()
    try:
        with package_map:
            yield
    finally:
        if len(sys.modules) > modules and not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()  # into the oldest generation, which is searched least often
        if collects_garbage:
            gc.enable()
        logging.disable(previous_level)


_QUIET_IMPORTS = SharedContext(_quiet_imports)


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
