"""Parts of libraries are imported when they are used, and then they are what they always are."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch._dynamo  # so that it is not deferred in the process of the tests

from recast import cli, deferred_imports, registry

PARTS = ("torch._dynamo", "torchao", "peft", "scipy.stats", "scipy.optimize", "scipy.integrate")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The log of a package `large`, whose modules write in it when they are executed."""
    (tmp_path / "large").mkdir()
    log = "import sys; sys.modules['tests_log'].append(__name__)\n"
    (tmp_path / "large" / "__init__.py").write_text(
        f"{log}from large import part\nOTHER = 'other'\ndef double(x): return 2 * x\n"
    )
    (tmp_path / "large" / "part.py").write_text(log)
    (tmp_path / "large" / "rest.py").write_text(log)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert torch.__file__  # without torch nothing is deferred
    monkeypatch.setattr(deferred_imports, "MODULES", {"large": ("double",)})
    executed: list[str] = []
    monkeypatch.setitem(sys.modules, "tests_log", executed)
    for name in ("large", "large.part", "large.rest"):  # restored after the test
        monkeypatch.setitem(sys.modules, name, sys)
        del sys.modules[name]
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    deferred_imports.install()
    return executed


def test_a_function_imports_its_module_when_it_is_called(package: list[str]) -> None:
    from large import double  # type: ignore[import-not-found]

    assert not package
    assert double(4) == 8
    assert package == ["large", "large.part"]
    assert double(5) == 10
    assert package == ["large", "large.part"]


def test_nothing_is_an_instance_of_a_class_that_is_not_imported(
    package: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("large", "large.part"):
        monkeypatch.setitem(sys.modules, name, sys)
        del sys.modules[name]
    (tmp_path / "large" / "part.py").write_text("class Layer: pass\nclass Wide(Layer): pass\n")
    monkeypatch.setattr(deferred_imports, "MODULES", {"large": (), "large.part": ("Layer",)})
    deferred_imports.install()
    from large.part import Layer  # type: ignore[import-not-found]

    assert not isinstance(4, Layer)
    assert not package
    import large

    wide = large.part.Wide()  # the parent imports its own part, and not what stood in for it
    assert isinstance(wide, Layer)
    assert not isinstance(4, Layer)
    assert isinstance(Layer(), sys.modules["large.part"].Layer)
    assert package == ["large"]


def test_another_name_imports_the_module_at_once(package: list[str]) -> None:
    import large

    assert not hasattr(large, "__file__")  # as `inspect` asks every module
    assert not package
    from large import OTHER

    assert (OTHER, package) == ("other", ["large", "large.part"])
    assert sys.modules["large"].__file__
    with pytest.raises(ImportError, match="NOTHING"):
        from large import NOTHING  # noqa: F401


@pytest.mark.parametrize("name", ["part", "rest"])
def test_a_submodule_is_executed_once_and_after_its_parent(package: list[str], name: str) -> None:
    module = __import__(f"large.{name}", fromlist=["x"])
    expected = ["large", "large.part", *(["large.rest"] if name == "rest" else [])]
    assert package == expected
    assert module is sys.modules[f"large.{name}"] is getattr(sys.modules["large"], name)
    assert module.__spec__.origin == module.__file__


def test_a_module_that_is_imported_already_is_not_replaced(package: list[str]) -> None:
    import large

    assert large.OTHER == "other"
    deferred_imports.install()
    assert sys.modules["large"].__file__
    deferred_imports.MODULES["sys"] = ("exit",)
    deferred_imports.install()
    assert sys.modules["sys"] is sys


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_model_runs_without_the_deferred_parts_and_they_work_afterwards() -> None:
    code = f"""
import sys, torch, recast
from recast import registry
from recast.backbones.base import Settings
registry.deferring = True
backbone = recast.load("shapes")
backbone.denoiser(backbone.encode_text(["a red circle"]))(
    torch.zeros(backbone.latent_shape(4, 64, 64)), backbone.schedule.grid(1)[0])
print([name for name in {PARTS} if getattr(sys.modules.get(name), "__file__", None)])

import scipy.stats
from scipy.optimize import linear_sum_assignment
print(round(scipy.stats.norm.cdf(0.0), 3), *linear_sum_assignment([[2, 1], [1, 2]])[1])
recast.load("shapes", Settings(weights="int8"))
from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING, TorchAoConfig
from torchao.quantization import Int8WeightOnlyConfig
config = TorchAoConfig(Int8WeightOnlyConfig())
print(type(AUTO_QUANTIZER_MAPPING["torchao"](config)).__name__)

from diffusers.hooks.layerwise_casting import BaseTunerLayer
linear = torch.nn.Sequential(torch.nn.Linear(2, 2))
print([isinstance(layer, BaseTunerLayer) for layer in linear])
from peft import LoraConfig, inject_adapter_in_model
inject_adapter_in_model(LoraConfig(target_modules=["0"]), linear)
print([isinstance(layer, BaseTunerLayer) for layer in linear])
"""
    expected = ["[]", "0.5 1 0", "TorchAoHfQuantizer", "[False]", "[True]"]
    assert run(code).splitlines() == expected


@pytest.mark.slow
def test_marks_for_the_compiler_take_effect_when_it_is_imported() -> None:
    code = """
import sys, torch
from recast import deferred_imports
deferred_imports.install()

@torch.compiler.disable
def broken(x): return x + 1
@torch.compiler.disable(recursive=False)
def also_broken(x): return x + 2
@torch._dynamo.allow_in_graph
def hidden(x): print(end=""); return x + 3
def shown(x): print(end=""); return x + 3
def free(x): return x + 4

x = torch.ones(2)
assert broken(x).tolist() == [2, 2] and also_broken(x).tolist() == [3, 3]
assert hidden(x).tolist() == [4, 4]
optimizer = torch.optim.Adam([torch.nn.Parameter(x)])
optimizer.zero_grad()
optimizer.step()
assert not hasattr(sys.modules["torch._dynamo"], "__file__")
for function in (broken, also_broken, hidden, shown, free):
    try:
        compiled = torch.compile(lambda x: 2 * function(x), backend="eager", fullgraph=True)
        print(function.__name__, compiled(x).tolist())
    except torch._dynamo.exc.Unsupported:
        print(function.__name__, "is not compiled")
"""
    assert run(code).splitlines() == [
        "broken is not compiled",
        "also_broken is not compiled",
        "hidden [8.0, 8.0]",
        "shown is not compiled",
        "free [10.0, 10.0]",
    ]


def test_modules_are_deferred_in_the_process_of_a_command_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "deferring", False)
    with mock.patch.object(deferred_imports, "install") as install:
        cli.main(["--version"])
        with registry.quiet_imports():
            assert not install.called
        monkeypatch.setattr(sys, "argv", ["recast", "--version"])
        cli.main()
        with registry.quiet_imports():
            assert install.called


def test_the_map_of_packages_is_made_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    true = mock.Mock(return_value={"cv2": ["opencv-python-headless"]})
    monkeypatch.setattr(importlib.metadata, "packages_distributions", true)
    with deferred_imports.late_package_map():
        found = importlib.metadata.packages_distributions()
    assert importlib.metadata.packages_distributions is true
    assert not true.called
    assert "cv2" in found
    assert (found["cv2"], found.get("torch"), dict(found)) == (
        ["opencv-python-headless"],
        None,
        true.return_value,
    )
    assert true.call_count == 1


SCANS = """
import sys
from recast import registry
scanned = []
def note(frame, event, argument):
    if event == "call" and frame.f_code.co_name == "create_import_structure_from_path":
        scanned.append(str(frame.f_locals["module_path"]))
import torch
registry.deferring = {deferring}
sys.setprofile(note)
with registry.quiet_imports():
    from transformers import CLIPTextModel
    import transformers.models
sys.setprofile(None)
from transformers.utils import import_utils
scan = import_utils.create_import_structure_from_path
true = getattr(scan, "__wrapped__", scan)
folder = transformers.models.__path__[0]
assert scan(folder + "/__init__.py") == true(folder)
assert import_utils.__loader__ is import_utils.__spec__.loader
assert "import_utils" in type(import_utils.__loader__).get_filename(import_utils.__loader__)
print(len(scanned), len(set(scanned)))
"""


@pytest.mark.slow
def test_transformers_scans_its_models_once_in_a_command() -> None:
    counts = {}
    for deferring in (False, True):
        code = SCANS.format(deferring=deferring)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        counts[deferring] = [int(word) for word in done.stdout.split()]
    assert counts[False][0] > 500
    # Every folder of a model is scanned twice without it.
    assert counts[True][0] < 0.6 * counts[False][0]
    assert counts[True][0] == counts[True][1]
