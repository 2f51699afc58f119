"""Parts of large libraries that are imported only when something in them is used.

diffusers and transformers import torch's compiler, torchao, peft and parts of scipy for a few names
that a run of a model hardly ever uses. In place of these modules `install` puts modules that define
the few names alone. A name of such a module imports the true module when it is called. Anything
else that is asked of the module, such as another name or a submodule, imports it at once.

Two functions that read hundreds of files during an import are deferred too: diffusers asks for the
packages of all installed distributions and hardly ever looks at them, and transformers scans its
folder of models twice.

This module owns the list of modules and names, and how they are deferred. It refuses to know what
the libraries do with them.
"""

import functools
import importlib
import importlib.abc
import importlib.metadata
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any, final

MODULES = {
    "diffusers.quantizers.torchao": ("TorchAoHfQuantizer",),
    "peft": (),
    "peft.helpers": ("disable_input_dtype_casting",),
    "peft.tuners.tuners_utils": ("BaseTunerLayer",),
    "scipy.integrate": (),
    "scipy.optimize": ("linear_sum_assignment",),
    "scipy.stats": (),
    "torch._dynamo._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
    "transformers.quantizers.quantizer_torchao": ("TorchAoHfQuantizer",),
}
"""Modules, with the functions and classes of each that are imported by name. A class of which a
subclass is made cannot be one of them."""
_COMPILER = "torch._dynamo"
_SCANNER = "transformers.utils.import_utils"
_SCAN = "create_import_structure_from_path"
"""The module and the function by which transformers scans a folder."""


def install() -> None:
    """Defer the modules that are not imported yet for the rest of the process.

    Nothing happens unless torch is imported. A command that computes nothing has other stand-ins.
    """
    if not hasattr(sys.modules.get("torch"), "__file__"):
        return
    for name, functions in MODULES.items():
        if name not in sys.modules:
            module = _Deferred(name)
            vars(module).update({key: module.late(key) for key in functions})
            sys.modules[name] = module
    if _COMPILER not in sys.modules:
        sys.modules[_COMPILER] = _DeferredCompiler(_COMPILER)
    if not any(isinstance(finder, _SubmoduleFinder) for finder in sys.meta_path):
        sys.meta_path[:0] = [_SubmoduleFinder(), _ScannerFinder()]


@contextmanager
def late_package_map() -> Iterator[None]:
    """Inside this context, `importlib.metadata.packages_distributions` returns at once, and the
    files of the distributions are read when its result is."""
    true = importlib.metadata.packages_distributions
    late: Callable[[], Any] = functools.partial(_LateMap, true)
    importlib.metadata.packages_distributions = late
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = true


class _Deferred(ModuleType):
    """A module that is imported when a name that it does not define is read."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__, self.__path__ = ModuleSpec(name, None), []
        self.waiting: list[Callable[[Any], object]] = []

    def __getattr__(self, name: str) -> Any:
        # Other names of this form are asked of every module, for example by `inspect`.
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        return getattr(self.true_module(), name)

    def true_module(self) -> ModuleType:
        """The true module, which is imported in place of this one."""
        name, waiting = self.__name__, self.waiting
        if sys.modules.get(name) is not self:
            return importlib.import_module(name)
        for part in [part for part in sys.modules if f"{part}.".startswith(f"{name}.")]:
            if isinstance(sys.modules[part], _Deferred):
                del sys.modules[part]
        previous_level = logging.root.manager.disable
        logging.disable(logging.WARNING)  # as in `registry.quiet_imports`
        try:
            true = importlib.import_module(name)
        finally:
            logging.disable(previous_level)
        while waiting:
            waiting.pop(0)(true)
        return true

    def late(self, name: str) -> "_Late":
        """What stands in for the function or class of this name in the true module."""
        return _Late(name, (), {"module": self})


@final
class _Late(type):
    """A class that stands in for a function or class of a deferred module. A call of it calls the
    true one. Nothing is an instance of it until the true module is imported."""

    module: _Deferred

    def __call__(cls, *args: Any, **named: Any) -> Any:
        return getattr(cls.module.true_module(), cls.__name__)(*args, **named)

    def __instancecheck__(cls, instance: Any) -> bool:
        module = sys.modules.get(cls.module.__name__, cls.module)
        return module is not cls.module and isinstance(instance, getattr(module, cls.__name__))


@final
class _DeferredCompiler(_Deferred):
    """torch's compiler with the decorators by which libraries tell it how to treat a function. They
    take effect when the compiler is imported, which is before it compiles anything."""

    def allow_in_graph(self, function: Any) -> Any:
        self.waiting.append(lambda compiler: compiler.allow_in_graph(function))
        return function

    def assume_constant_result(self, function: Any) -> Any:
        self.waiting.append(lambda compiler: compiler.assume_constant_result(function))
        return function

    def graph_break(self, msg: str = "") -> None:
        """Nothing is compiled yet, so there is no graph."""

    def disable(self, fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        if fn is None:
            return functools.partial(self.disable, recursive=recursive, **options)
        if not isinstance(fn, FunctionType):
            return self.true_module().disable(fn, recursive, **options)
        target: Callable[..., Any] = fn

        @functools.wraps(fn)
        def call(*args: Any, **named: Any) -> Any:
            return target(*args, **named)

        def apply(compiler: Any) -> None:
            nonlocal target
            target = compiler.disable(fn, recursive, **options)

        self.waiting.append(apply)
        return call


@final
class _SubmoduleFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the submodules of deferred modules, after it has imported the true module."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        parent = sys.modules.get(fullname.rpartition(".")[0])
        if not isinstance(parent, _Deferred):
            return None
        true = parent.true_module()
        if fullname not in sys.modules:
            return PathFinder.find_spec(fullname, true.__path__)
        # The true module has imported the submodule, which must not be executed twice. Python
        # prefers the spec of a module that was imported in the meantime to the one returned here.
        module = sys.modules[fullname]
        module.__spec__ = ModuleSpec(fullname, self, loader_state=module.__spec__)
        return module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


@final
class _LateMap(Mapping[str, list[str]]):
    """The result of a function that is called when the result is read."""

    def __init__(self, function: Callable[[], Mapping[str, list[str]]]) -> None:
        self._result = functools.cache(function)

    def __getitem__(self, key: str) -> list[str]:
        return self._result()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._result())

    def __len__(self) -> int:
        return len(self._result())


@final
class _ScannerFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the module with the function that scans a folder. The function then scans each folder
    once."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == _SCANNER else None
        if spec is not None:
            spec.loader_state, spec.loader = spec.loader, self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        loader = module.__spec__.loader_state
        module.__spec__.loader = module.__loader__ = loader
        loader.exec_module(module)
        if hasattr(module, _SCAN):
            setattr(module, _SCAN, _once_for_each_folder(getattr(module, _SCAN)))


def _once_for_each_folder(scan: Callable[[str], Any]) -> Callable[[str], Any]:
    """`scan`, which takes a folder or a file in it, with its results kept."""
    scan_folder = functools.cache(scan)

    @functools.wraps(scan)
    def found(path: str | os.PathLike[str]) -> Any:
        folder = os.fspath(path)
        return scan_folder(os.path.dirname(folder) if os.path.isfile(folder) else folder)

    return found
