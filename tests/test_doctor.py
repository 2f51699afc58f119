"""What the doctor says of a model's need: counted from headers, and told with what would help."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recast import doctor

GIB = 2**30
SAVING = "--vae-slicing, --vae-tiling and --gradient-checkpointing"


def test_every_network_is_counted_once(tmp_path: Path) -> None:
    """In shards, in half precision, or pickled beside its safetensors."""
    weights = {"a": torch.zeros(3, 5), "b": torch.zeros(2, dtype=torch.float16)}
    for part in ("transformer", "vae", "text_encoder"):
        (tmp_path / part).mkdir()
    for shard in (1, 2):
        save_file(weights, tmp_path / f"transformer/model-{shard}.safetensors", {"format": "pt"})
    save_file(weights, tmp_path / "vae/model.safetensors")
    save_file(weights, tmp_path / "vae/model.fp16.safetensors")
    (tmp_path / "vae/model.bin").write_bytes(b"0" * 999)
    (tmp_path / "text_encoder/model.bin").write_bytes(b"0" * 400)
    assert sorted(doctor.counts(tmp_path)) == [17, 34, 100]


def test_damaged_weights_are_told(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x05" + bytes(7) + b"{,,,}")
    assert "holds weights that cannot be read" in doctor._model(str(tmp_path))


def test_a_model_that_is_half_downloaded_is_told(tmp_path: Path) -> None:
    """From its index alone to its last shard. That of its listed files a config is missing tells
    that a whole network is."""
    told, listed = str(tmp_path), ["model_index.json", "transformer/config.json"]
    lacks = f"{told} is not downloaded whole"
    (tmp_path / "model_index.json").write_text("{}")
    assert doctor._model(told) == lacks
    for part in ("vae", "transformer"):
        (tmp_path / part).mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "vae/model.safetensors")
    assert "fits" in doctor._model(told)
    assert doctor._model(told, listed) == lacks
    (tmp_path / "transformer/config.json").write_text("{}")
    assert doctor._model(told, listed) == lacks
    shards = {"b": "model-1.safetensors", "c": "model-2.safetensors"}
    index = json.dumps({"weight_map": shards})
    (tmp_path / "transformer/model.safetensors.index.json").write_text(index)
    for name, shard in shards.items():
        assert doctor._model(told, listed) == lacks
        save_file({name: torch.zeros(2)}, tmp_path / "transformer" / shard)
    assert "fits" in doctor._model(told, listed)


@pytest.mark.parametrize(
    ("parts", "memory", "offload", "expected"),
    [
        ([2, 1], 8, False, "fits"),
        ([2, 1], 4, False, f"fits with {SAVING}"),
        ([2, 1], 3, False, "more than 3.0 GiB can hold"),
        # Wan's 1.3B and its text encoder, by turns on a card that could not hold both.
        ([11, 3], 14, True, f"fits with --offload networks, {SAVING}"),
        ([11, 3], 12, True, "more than 12.0 GiB can hold"),
    ],
)
def test_what_fits(parts: list[int], memory: int, offload: bool, expected: str) -> None:
    told = doctor.fits([part * GIB for part in parts], memory * GIB, offload=offload)
    assert told == expected
