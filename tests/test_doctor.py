"""The report of `recast doctor` on models: parameters counted from headers, and what would fit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recast.backbones.base import Settings
from recast.networks import devices
from recast.networks.devices import MainMemory
from recast.pipeline import doctor, memory_estimate, model_files
from recast.pipeline.memory_estimate import MemoryEstimate, gib

GIB = 2**30
SAVING = "`vae_slicing`, `vae_tiling` and `gradient_checkpointing`"


def test_every_network_is_counted_once(tmp_path: Path) -> None:
    """Whether it is in shards, in half precision, or pickled beside its safetensors."""
    weights = {"a": torch.zeros(3, 5), "b": torch.zeros(2, dtype=torch.float16)}
    for part in ("transformer", "vae", "text_encoder"):
        (tmp_path / part).mkdir()
    for shard in (1, 2):
        save_file(weights, tmp_path / f"transformer/model-{shard}.safetensors", {"format": "pt"})
    save_file(weights, tmp_path / "vae/model.safetensors")
    save_file(weights, tmp_path / "vae/model.fp16.safetensors")
    (tmp_path / "vae/model.bin").write_bytes(b"0" * 999)
    (tmp_path / "text_encoder/model.bin").write_bytes(b"0" * 400)
    assert sorted(model_files.parameter_counts(tmp_path)) == [17, 34, 100]


def test_damaged_weights_are_reported(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x05" + bytes(7) + b"{,,,}")
    assert "holds weights that cannot be read" in model_files.model_status(str(tmp_path))


def test_an_incomplete_download_is_reported(tmp_path: Path) -> None:
    """From its index alone to its last shard. A listed config that is missing means that a whole
    network is missing."""
    path, listed = str(tmp_path), ["model_index.json", "transformer/config.json"]
    lacks = f"{path} is not completely downloaded"
    (tmp_path / "model_index.json").write_text("{}")
    assert model_files.model_status(path) == lacks
    for part in ("vae", "transformer"):
        (tmp_path / part).mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "vae/model.safetensors")
    assert "fits" in model_files.model_status(path)
    assert model_files.model_status(path, listed) == lacks
    (tmp_path / "transformer/config.json").write_text("{}")
    assert model_files.model_status(path, listed) == lacks
    shards = {"b": "model-1.safetensors", "c": "model-2.safetensors"}
    index = json.dumps({"weight_map": shards})
    (tmp_path / "transformer/model.safetensors.index.json").write_text(index)
    for name, shard in shards.items():
        assert model_files.model_status(path, listed) == lacks
        save_file({name: torch.zeros(2)}, tmp_path / "transformer" / shard)
    assert "fits" in model_files.model_status(path, listed)


@pytest.mark.parametrize(
    ("parts", "memory", "offload", "expected"),
    [
        ([2, 1], 8, False, "fits"),
        ([2, 1], 4, False, f"fits with {SAVING}"),
        ([2, 1], 3, False, "too large for 3.0 GiB"),
        # Wan's 1.3B and its text encoder, by turns on a card that could not hold both.
        ([11, 3], 14, True, f"fits with `offload=networks`, {SAVING}"),
        ([11, 3], 12, True, "too large for 12.0 GiB"),
    ],
)
def test_the_first_saving_with_which_a_model_fits_is_named(
    parts: list[int], memory: int, offload: bool, expected: str
) -> None:
    verdict = model_files.fit([part * GIB for part in parts], memory * GIB, offload=offload)
    assert verdict == expected


@pytest.fixture(scope="module")
def wan() -> MemoryEstimate:
    """The estimate for a short run of Wan on a GPU, which does not depend on this machine."""
    return memory_estimate.estimate_memory(
        "wan", Settings(device="cuda"), torch.device("cuda"), [], (5, 64, 64)
    )


@pytest.mark.parametrize(
    ("ram", "swap", "fit"), [(16, 0, "fits"), (8, 8, "fits with swap"), (8, 2, "too little")]
)
def test_the_report_compares_offloaded_weights_with_main_memory(
    monkeypatch: pytest.MonkeyPatch, wan: MemoryEstimate, ram: int, swap: int, fit: str
) -> None:
    """Wan's weights are 13.7 GiB. Offloading is not proposed where main memory cannot hold them.
    The main memory of another machine is not known."""
    memory = MainMemory(ram * GIB, swap * GIB)
    monkeypatch.setattr(doctor, "estimate_memory", lambda *args: wan)
    monkeypatch.setattr(devices, "main_memory", lambda: memory)
    monkeypatch.setattr(devices, "physical_memory", lambda device: 12 * GIB)

    def report(memory: int | None) -> dict[str, str]:
        return dict(doctor.memory_report("wan", Settings(device="cuda"), [], memory=memory))

    here, there = report(None), report(12 * GIB)
    loading = "13.7 GiB while weights are loaded, less if the files have the same precision"
    need = f"{loading}; 13.7 GiB stay"
    assert here["main memory"].startswith(need)
    assert (
        f"this machine has {ram}.0 GiB and {gib(swap * GIB)} of swap: {fit}" in here["main memory"]
    )
    assert ("`offload=networks`" in here["sampling alone"]) is (fit != "too little")
    assert there["main memory"] == f"{need} there with `offload`"
    assert there["sampling alone"].endswith("fits with `offload=networks`")


def test_offloading_helps_only_what_main_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand numbers in each of two networks, in half precision on a GPU of 3 kB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (3000, 3000))
    for part in ("transformer", "vae"):
        (tmp_path / part).mkdir()
        save_file({"a": torch.zeros(1000)}, tmp_path / part / "model.safetensors")
    monkeypatch.setattr(devices, "main_memory", lambda: MainMemory(4000, 0))
    assert "fits with `offload=networks`" in model_files.model_status(str(tmp_path))
    monkeypatch.setattr(devices, "main_memory", lambda: MainMemory(3000, 999))
    assert "too large for" in model_files.model_status(str(tmp_path))
