"""Stand-ins for large libraries, so that commands which compute nothing answer at once.

Importing torch, transformers and diffusers takes seconds, but a help text or a list of models needs
only the definitions in Recast's own files. In such a command, the import of a large library gives a
module whose names can be called, subclassed and used as decorators, but not computed with. Sphinx
imports code for its documentation in the same way (`autodoc_mock_imports`).

This module owns the stand-ins. It refuses to know which commands run with them.
"""

import importlib.abc
import sys
from collections.abc import Collection, Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from types import FunctionType, ModuleType
from typing import Any, final

_LIBRARIES = frozenset(
    {
        "accelerate",
        "diffusers",
        "huggingface_hub",
        "matplotlib",
        "peft",
        "safetensors.torch",
        "scipy",
        "skimage",
        "torch",
        "torchmetrics",
        "torchvision",
        "transformers",
    }
)
_PLUG_INS = ("recast.backbones", "recast.methods", "recast.metrics")


def install(*, but: Collection[str] = ()) -> None:
    """Let stand-ins take the place of large libraries for the rest of the process, except for the
    libraries that `but` names.

    Nothing happens if torch is imported already, or if another package adds plug-ins to Recast,
    because their modules may compute something when they are imported.
    """
    added = any(entry_points(group=group) for group in _PLUG_INS)
    if "torch" not in sys.modules and not added:
        sys.meta_path.insert(0, _Finder(_LIBRARIES - {*but}))


@final
class _StandIn:
    """Anything in a library: a class, a function, a decorator or a constant."""

    def __getattr__(self, name: str) -> "_StandIn":
        if name.startswith("__"):  # so that Python finds no protocol that is not defined here
            raise AttributeError(name)
        return _StandIn()

    def __call__(self, *args: Any, **_: Any) -> Any:
        """As a decorator, it returns what it decorates."""
        return args[0] if args and isinstance(args[0], FunctionType | type) else _StandIn()

    def __mro_entries__(self, bases: Sequence[Any]) -> tuple[type, ...]:
        """As a base class, it adds nothing."""
        return ()

    def __getitem__(self, key: Any) -> "_StandIn":
        return _StandIn()

    def __or__(self, other: Any) -> "_StandIn":
        return _StandIn()

    __ror__ = __or__

    def __bool__(self) -> bool:
        raise RuntimeError("this command was declared to compute nothing, but it uses a library")

    __iter__ = __len__ = __index__ = __float__ = __bool__


class _Module(ModuleType):
    def __getattr__(self, name: str) -> _StandIn:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, libraries: Collection[str]) -> None:
        self._libraries = libraries

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname in self._libraries or fullname.split(".")[0] in self._libraries:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """A stand-in has no code."""
