"""Commands that compute nothing print the same with stand-ins for large libraries as with them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recast import cli
from recast.motions.motion import Motion

LARGE = ("torch", "diffusers", "transformers", "huggingface_hub", "gradio")
RUN = f"""
import sys
import pytest

from recast import cli
if sys.argv[1] == "with libraries":
    import torch
for line in sys.argv[2:]:
    cli.main(line.split())
loaded = [name for name in {LARGE} if getattr(sys.modules.get(name), "__file__", None)]
assert bool(loaded) == (sys.argv[1] == "with libraries"), loaded
"""
LISTS = ("backbones", "methods", "methods --backbone shapes", "store ls", "store prune")


def outputs(*lines: str) -> list[str]:
    """What two new processes print for the same command lines: one that may load no large library,
    and one that has loaded them."""
    kinds = ("with stand-ins", "with libraries")
    calls = [[sys.executable, "-c", RUN, kind, *lines] for kind in kinds]
    done = [subprocess.run(call, capture_output=True, text=True, timeout=300) for call in calls]
    assert [one.returncode for one in done] == [0, 0], [one.stderr for one in done]
    return [one.stdout for one in done]


@pytest.mark.slow
def test_lists_and_motion_files_are_read_without_large_libraries(tmp_path: Path) -> None:
    motion = Motion(
        method="dmt",
        backbone="abc",
        tensors={"noise": torch.zeros(4, 2, 3, 3), "trace": torch.zeros(5)},
        metadata={"source_prompt": "a cat", "steps": 3, "losses": [3.0, 2.0]},
    )
    lines = (*LISTS, f"inspect {motion.save(tmp_path / 'cat.safetensors')}")
    short, whole = outputs(*lines)
    assert "77 numbers in 2 tensors" in short
    assert short == whole


@pytest.mark.slow
def test_every_help_text_is_written_without_large_libraries() -> None:
    lines = [f"{name} --help" for name in cli.commands()]
    lines += ["transfer --method ditflow --help", "learn --method vmc --preset paper --help"]
    short, whole = outputs(*lines)
    assert short.count("usage: recast ") == len(lines)
    assert short == whole


@pytest.mark.slow
def test_doctor_loads_torch_and_knows_the_models_that_are_downloaded(tmp_path: Path) -> None:
    model = tmp_path / "models--cerspense--zeroscope_v2_576w"
    (model / "snapshots" / "0123").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123")
    (model / "snapshots" / "0123" / "model_index.json").write_text("{}")

    def doctor(code: str) -> list[str]:
        environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    *short, loaded = doctor(
        "import sys; from recast import cli; cli.main(['doctor']); "
        "print([bool(getattr(sys.modules[name], '__file__', None))"
        " for name in ('torch', 'diffusers', 'transformers')])"
    )
    assert loaded == "[True, False, False]"
    whole = doctor("import diffusers, torch; from recast import cli; cli.main(['doctor'])")
    assert short == whole
    (zeroscope,) = [line for line in short if line.startswith("model zeroscope")]
    assert "not downloaded" not in zeroscope


def test_a_damaged_motion_file_is_reported_without_large_libraries(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(b"\x10")
    done = subprocess.run(
        [sys.executable, "-m", "recast", "inspect", str(path)], capture_output=True, text=True
    )
    assert (done.returncode, "is damaged" in done.stderr) == (2, True)


def test_nothing_can_be_computed_with_a_stand_in() -> None:
    code = (
        "from recast.cli import stand_ins; stand_ins.install(); import torch\n"
        "try:\n    if torch.zeros(1) + 1: pass\n"
        "except TypeError: print('no sum')\n"
        "try:\n    if torch.cuda.is_available(): pass\n"
        "except RuntimeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "no sum",
        "this command was declared to compute nothing, but it uses a library",
    ]


def test_stand_ins_do_not_replace_a_library_that_is_loaded() -> None:
    code = (
        "import torch; from recast.cli import stand_ins; stand_ins.install()\n"
        "import transformers; print(transformers.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().count(".") == 2, done.stderr
