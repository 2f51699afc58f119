"""Names that are found, not listed: one file per backbone, method and metric, plus entry points.

A file `recast/methods/dmt.py` is the method `dmt`. An outside package joins with an entry point in
the group `recast.backbones`, `recast.methods` or `recast.metrics` that points at a module of the
same shape. Modules are imported only when asked for.
"""

import importlib
import logging
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from recast.errors import UnknownName

_NOT_A_NAME = {"base"}


@contextmanager
def unheard() -> Iterator[None]:
    """Within the block nothing below an error is logged: libraries tell of what they do not find
    when they are imported, and torchao, where it is installed, of kernels for other devices."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def names(kind: str) -> list[str]:
    """The sorted names of one kind: "backbones", "methods" or "metrics"."""
    return sorted({*_files(kind), *_entry_points(kind)})


def load(kind: str, name: str) -> ModuleType:
    """The module behind a name. Raises `UnknownName`, which offers the nearest names."""
    if name in _files(kind):
        with unheard():
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
