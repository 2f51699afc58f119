"""This machine's devices and memory: the meaning of `auto`, and how a lack of memory is
recognised."""

from pathlib import Path

import pytest
import torch

from recast.errors import BadCall, BadModel
from recast.networks import devices
from recast.networks.hub_cache import cached_folder


def test_auto_is_the_fastest_device_of_the_machine() -> None:
    there = devices.available_devices()
    assert there[-1] == "cpu"
    assert devices.best_device() == there[0]
    assert devices.device_of("auto") == devices.usable_device("auto") == torch.device(there[0])


def test_a_missing_device_can_be_named_but_not_used() -> None:
    missing = {"cuda", "mps"} - set(devices.available_devices())
    for name in missing:
        assert devices.device_of(name) == torch.device(name)
        with pytest.raises(BadCall, match=f"`device={name}` is not available; .* has .*cpu"):
            devices.usable_device(name)
    assert missing


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_out_of_memory_errors_of_every_allocator_are_recognised(
    error: Exception, expected: bool
) -> None:
    assert devices.is_out_of_memory(error) is expected


def test_installed_memory_is_that_of_meminfo() -> None:
    memory = devices.main_memory()
    if memory is not None:
        assert devices.installed_ram() == pytest.approx(memory.ram, rel=1e-3)


def test_an_error_names_a_model_that_is_not_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadModel, match="nobody/none-such is not downloaded yet"):
        cached_folder("nobody/none-such")
