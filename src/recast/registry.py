"""Names that are found, not listed: one file per backbone, method and metric, plus entry points.

A file `recast/methods/dmt.py` is the method `dmt`. An outside package joins with an entry point in
the group `recast.backbones`, `recast.methods` or `recast.metrics` that points at a module of the
same shape. Modules are imported only when asked for.
"""

import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from recast.errors import UnknownName

_NOT_A_NAME = {"base"}


def names(kind: str) -> list[str]:
    """The sorted names of one kind: "backbones", "methods" or "metrics"."""
    return sorted({*_files(kind), *_entry_points(kind)})


def load(kind: str, name: str) -> ModuleType:
    """The module behind a name. Raises `UnknownName`, which offers the nearest names."""
    if name in _files(kind):
        return importlib.import_module(f"recast.{kind}.{name}")
    outside = _entry_points(kind)
    if name in outside:
        module = outside[name].load()
        assert isinstance(module, ModuleType)
        return module
    raise UnknownName(kind.removesuffix("s"), name, names(kind))


def _files(kind: str) -> set[str]:
    package = importlib.import_module(f"recast.{kind}")
    found = {module.name for module in pkgutil.iter_modules(package.__path__)}
    return {name for name in found - _NOT_A_NAME if not name.startswith("_")}


def _entry_points(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"recast.{kind}")}
