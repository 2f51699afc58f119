"""Plug-ins are found by file and by entry point, and an unknown name is answered with similar
ones."""

import gc
import logging
import sys
import weakref
from pathlib import Path

import pytest

from recast import registry
from recast.errors import BadCall, UnknownName


def test_a_file_is_found_by_its_name() -> None:
    assert "gaussian" in registry.names("backbones")
    module = registry.load("backbones", "gaussian")
    assert module.__name__ == "recast.backbones.gaussian"
    assert module.tiny().name == "gaussian"


@pytest.mark.parametrize("kind", ["backbones", "methods", "metrics"])
def test_every_file_but_the_interface_is_a_plug_in(kind: str) -> None:
    folder = Path(registry.__file__).parent / kind
    files = {path.stem for path in folder.glob("*.py")} | {
        path.parent.name for path in folder.glob("*/__init__.py")
    }
    names = registry.names(kind)
    assert names == sorted(set(names))
    assert set(names) == files - {"__init__", "base"}
    assert all(registry.load(kind, name) for name in names)


def test_an_unknown_name_is_answered_with_similar_ones() -> None:
    with pytest.raises(UnknownName, match="unknown backbone 'gausian'; did you mean gaussian"):
        registry.load("backbones", "gausian")
    with pytest.raises(BadCall, match=r"unknown backbone 'qqqq'; choose from .*gaussian"):
        registry.load("backbones", "qqqq")


def test_the_interface_cannot_be_loaded_by_name() -> None:
    with pytest.raises(UnknownName):
        registry.load("backbones", "base")


def test_a_plug_in_of_an_installed_package_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package as pip installs it: a module, and metadata with an entry point."""
    (tmp_path / "outside_recast_method.py").write_text("ANSWER = 42\n")
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[recast.methods]\nwaltz = outside_recast_method\n"
        "[recast.metrics]\nbroken = a_module_that_is_not_there\n"
    )
    assert "waltz" not in registry.names("methods")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert "waltz" in registry.names("methods")
        assert "waltz" not in registry.names("backbones")
        # Names are listed without importing what stands behind them.
        assert "broken" in registry.names("metrics")
        assert "outside_recast_method" not in sys.modules
        assert registry.load("methods", "waltz").ANSWER == 42
        with pytest.raises(UnknownName, match="did you mean waltz"):
            registry.load("methods", "walz")
    finally:
        sys.modules.pop("outside_recast_method", None)


def test_quiet_imports_leave_logging_and_the_collection_of_garbage_as_they_were() -> None:
    level = logging.root.manager.disable
    with registry.quiet_imports():
        assert not gc.isenabled()
        assert logging.root.manager.disable == logging.WARNING
    assert gc.isenabled()
    assert (gc.get_freeze_count(), logging.root.manager.disable) == (0, level)
    with pytest.raises(ImportError, match="broken"), registry.quiet_imports():
        raise ImportError("broken")
    assert gc.isenabled()
    gc.disable()
    try:
        with registry.quiet_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_garbage_that_exists_during_an_import_is_collected_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Node:
        pass

    node = Node()
    node.itself = node  # type: ignore[attr-defined]
    reference = weakref.ref(node)
    with registry.quiet_imports():
        monkeypatch.setitem(sys.modules, "a_module_that_is_new", sys)
        del node
    assert reference() is not None
    gc.collect()
    assert reference() is None
