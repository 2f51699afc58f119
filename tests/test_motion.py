"""Motion files: what is written is read back, and other files are refused."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from recast.backbones.gaussian import Gaussian, tiny
from recast.diffusion.noise_schedule import Flow
from recast.errors import BadMotion
from recast.motions.motion import FORMAT, Motion
from recast.networks.tensor_memory import TensorMemory

from .inputs import noise
from .pickles import Trap


def motion(**changes: Any) -> Motion:
    values: dict[str, Any] = {
        "method": "dmt",
        "backbone": tiny().fingerprint,
        "tensors": {
            "phi/0": noise(1, 4, 8),
            "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
            "strided": torch.arange(6.0).reshape(2, 3).T,
        },
        "metadata": {"backbone_name": "gaussian", "levels": [1.0, 0.5], "prompt": "ein Bär"},
    }
    return Motion(**(values | changes))


def test_a_saved_motion_is_read_back_unchanged(tmp_path: Path) -> None:
    saved = motion()
    path = saved.save(tmp_path / "deep" / "bear.safetensors")
    loaded = Motion.load(str(path))
    assert (loaded.method, loaded.backbone) == (saved.method, saved.backbone)
    assert loaded.metadata == saved.metadata
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)
    assert [file.name for file in path.parent.iterdir()] == ["bear.safetensors"]


def test_a_changed_motion_copies_new_tensors_only() -> None:
    original = motion()
    mask = np.ones((2, 3, 3), bool)
    with TensorMemory() as memory:
        changed = [
            dataclasses.replace(original, metadata={}),
            original.stretched(9),
            original.with_tensors({}, keep=["half"]),
        ]
        assert memory.peak == 0
        changed.append(original.masked(mask))
        assert 0 < memory.peak <= 2 * mask.nbytes
    for one in changed:
        assert all(
            one.tensors[name] is original.tensors[name] for name in one.tensors if name != "mask"
        )
    assert changed[2].tensors.keys() == {"half"}
    assert changed[3].tensors.keys() == {*original.tensors, "mask"}


def test_a_motion_does_not_share_the_tensors_of_others() -> None:
    mine = torch.zeros(3)
    one = motion(tensors={"x": mine})
    two = one.with_tensors({"y": mine})
    mine += 1
    assert not one.tensors["x"].any()
    assert not two.tensors["y"].any()


def test_tensors_that_are_read_by_level_are_not_copied(tmp_path: Path) -> None:
    """Not by a motion, and not by reading a file. `level` copies the level that it reads."""
    levels = noise(3, 4, 5)
    made = motion(tensors={"phi": levels, "noise": noise(2)}, by_level=frozenset({"phi"}))
    assert made.tensors["phi"] is levels
    loaded = Motion.load(made.save(tmp_path / "bear.safetensors"))
    assert loaded.by_level == made.by_level
    cpu = torch.device("cpu")
    with TensorMemory() as memory:
        second = loaded.level("phi", 1, cpu)
    assert memory.peak == second.nbytes
    assert torch.equal(second, levels[1])
    assert second.data_ptr() % 64 == 0
    window = made.with_tensors({"phi": levels[:, 1:3]})
    assert torch.equal(window.level("phi", 2, cpu), levels[2, 1:3])
    assert window.level("phi", 2, cpu).is_contiguous()


def test_any_safetensors_reader_can_read_a_motion_file(tmp_path: Path) -> None:
    path = motion().save(tmp_path / "bear.safetensors")
    with safe_open(path, "np") as file:
        assert set(file.keys()) == {"phi/0", "half", "strided"}
        assert file.metadata()["format"] == FORMAT
        assert json.loads(file.metadata()["metadata"])["prompt"] == "ein Bär"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(BadMotion, match="there is no motion file"):
            Motion.load(path)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = motion().save(tmp_path / "bear.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadMotion, match="damaged or no safetensors file"):
        Motion.load(path)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_renamed_pickle_is_refused_without_running_it(tmp_path: Path, writer: str) -> None:
    path, sprung = tmp_path / "bear.safetensors", tmp_path / "sprung"
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"tensors": Trap(sprung)}))
    else:
        torch.save({"tensors": Trap(sprung)}, path)
    with pytest.raises(BadMotion, match="damaged or no safetensors file"):
        Motion.load(path)
    assert not sprung.exists()


def test_other_safetensors_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(BadMotion, match=f"no motion file of Recast .format {FORMAT}"):
        Motion.load(path)


@pytest.mark.parametrize(
    "header",
    [
        {"format": FORMAT, "method": "dmt", "backbone": "abc"},
        {"format": FORMAT, "method": "dmt", "backbone": "abc", "metadata": "{"},
        {"format": FORMAT, "method": "dmt", "backbone": "abc", "metadata": "[]"},
        {"format": FORMAT, "method": "dmt", "backbone": "abc", "metadata": "null"},
        {"format": FORMAT, "backbone": "abc", "metadata": "{}"},
    ],
)
def test_an_incomplete_header_is_refused(tmp_path: Path, header: dict[str, str]) -> None:
    path = tmp_path / "bear.safetensors"
    save_file({"weight": torch.zeros(2)}, path, header)
    with pytest.raises(BadMotion, match="is damaged"):
        Motion.load(path)


def test_a_motion_is_bound_to_its_method_and_weights() -> None:
    backbone = tiny()
    motion().check_compatible(backbone, "dmt")
    with pytest.raises(BadMotion, match="was learned by dmt, not by dreammotion"):
        motion().check_compatible(backbone, "dreammotion")


def test_an_error_names_the_weights_of_the_motion_and_of_the_model() -> None:
    other = Gaussian(torch.zeros(1, 3), 0.5, Flow())
    message = (
        f"learned on gaussian .{tiny().fingerprint}., but the backbone is gaussian "
        f".{other.fingerprint}.; learn the motion again"
    )
    with pytest.raises(BadMotion, match=message):
        motion().check_compatible(other, "dmt")
    with pytest.raises(BadMotion, match="learned on other weights"):
        motion(metadata={}).check_compatible(other, "dmt")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = motion().save(tmp_path / "bear.safetensors")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        motion(metadata={"clip": {1, 2}}).save(path)
    with pytest.raises(AttributeError):
        motion(tensors={"phi": "no tensor"}).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_tensors_have_the_memory_layout_of_a_file(tmp_path: Path) -> None:
    strided = torch.arange(24.0).reshape(2, 3, 4).transpose(0, 2)
    motion = Motion(method="dmt", backbone="x", tensors={"noise": strided}, metadata={})
    back = Motion.load(motion.save(tmp_path / "m.safetensors"))
    assert motion.tensors["noise"].stride() == back.tensors["noise"].stride()
    assert back.tensors["noise"].data_ptr() % 64 == motion.tensors["noise"].data_ptr() % 64 == 0
    assert torch.equal(back.tensors["noise"], strided)
