"""The motion cache: entries are read back unchanged, damage is noticed, the oldest entry is removed
first."""

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from recast.backbones import gaussian
from recast.errors import BadCall, BadMotion
from recast.methods import dmt, unguided
from recast.motions.motion import Motion
from recast.pipeline.motion_cache import MotionCache, motion_key, parse_size


def motion(value: float = 1.0, size: int = 4) -> Motion:
    return Motion(
        method="dmt",
        backbone="abc",
        tensors={"x": torch.full((size,), value)},
        metadata={"steps": 3},
    )


def test_a_motion_is_read_back_unchanged(store: MotionCache) -> None:
    assert store.get("k") is None
    assert store.put("k", motion(2.5))
    back = store.get("k")
    assert back is not None
    assert back.tensors["x"].tolist() == [2.5] * 4
    assert (back.method, back.backbone, back.metadata) == ("dmt", "abc", {"steps": 3})


def test_the_newest_motion_of_a_key_is_read(store: MotionCache) -> None:
    store.put("k", motion(1))
    (old,) = store.entries()
    os.utime(old.path, (1000, 1000))
    store.put("k", motion(2))
    back = store.get("k")
    assert back is not None
    assert back.tensors["x"][0] == 2


def test_a_sole_motion_replaces_the_entries_of_its_key_only(tmp_path: Path) -> None:
    """Also if both entries would fill the cache."""
    store = MotionCache(tmp_path, 10**9)
    store.put("other", motion(size=1000))
    (other,) = store.entries()
    os.utime(other.path, (1000, 1000))
    room = MotionCache(tmp_path, int(2.5 * other.size))
    for value in (1.0, 2.0, 3.0):
        assert room.put("k", motion(value, size=1000), sole=True)
    assert [entry.key for entry in room.entries()] == ["other", "k"]
    back = room.get("k")
    assert back is not None
    assert back.tensors["x"][0] == 3


@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_an_entry_with_a_flipped_bit_is_noticed_and_removed(
    store: MotionCache, place: float
) -> None:
    store.put("k", motion())
    (entry,) = store.entries()
    content = bytearray(entry.path.read_bytes())
    content[int(place * len(content))] ^= 1
    entry.path.write_bytes(content)
    with pytest.raises(BadMotion, match="damaged"):
        store.get("k")
    assert store.entries() == []
    assert store.get("k") is None


def test_a_truncated_entry_is_noticed(store: MotionCache) -> None:
    store.put("k", motion())
    (entry,) = store.entries()
    entry.path.write_bytes(entry.path.read_bytes()[:-1])
    with pytest.raises(BadMotion):
        store.get("k")


def test_the_least_recently_used_entry_is_removed_first(tmp_path: Path) -> None:
    store = MotionCache(tmp_path, 10**9)
    for age, key in enumerate("abc"):
        store.put(key, motion(size=1000))
        (entry,) = (entry for entry in store.entries() if entry.key == key)
        os.utime(entry.path, (1000 + age, 1000 + age))
    assert [entry.key for entry in store.entries()] == ["a", "b", "c"]
    assert store.get("a") is not None  # used just now
    room = MotionCache(tmp_path, int(3.5 * entry.size))
    room.put("d", motion(size=1000))
    assert {entry.key for entry in room.entries()} == {"a", "c", "d"}


def test_a_motion_larger_than_the_cap_is_not_cached_and_removes_nothing(tmp_path: Path) -> None:
    store = MotionCache(tmp_path, 2000)
    assert store.put("small", motion())
    assert not store.put("large", motion(size=10_000))
    assert [entry.key for entry in store.entries()] == ["small"]
    assert len(list(tmp_path.iterdir())) == 1


def test_prune_removes_entries_down_to_the_given_size(store: MotionCache) -> None:
    store.put("a", motion())
    store.put("b", motion())
    assert store.prune() == []
    assert len(store.prune(0)) == 2
    assert store.entries() == []


def test_prune_removes_files_of_crashed_writers_only(store: MotionCache) -> None:
    store.folder.mkdir()
    old, new = store.folder / ".recast-old", store.folder / ".recast-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "motion.safetensors").touch()
    os.utime(old, (0, 0))
    store.prune()
    assert new.exists()
    assert not old.exists()


def test_a_failed_write_leaves_nothing(store: MotionCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Motion, path: Path) -> Path:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Motion, "save", full)
    with pytest.raises(OSError, match="No space"):
        store.put("k", motion())
    assert list(store.folder.iterdir()) == []


def write_often(folder: Path, value: float) -> None:
    store = MotionCache(folder, 10**9)
    for _ in range(25):
        store.put("k", motion(value, 2000))


def test_simultaneous_writers_leave_a_whole_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(tmp_path, v)) for v in (1.0, 2.0)]
    for writer in writers:
        writer.start()
    store, seen, end = MotionCache(tmp_path, 10**9), set(), time.monotonic() + 30
    while any(writer.is_alive() for writer in writers) and time.monotonic() < end:
        found = store.get("k")  # raises if it were a mixture
        if found is not None:
            seen |= set(found.tensors["x"].tolist())
            assert len(set(found.tensors["x"].tolist())) == 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    last = store.get("k")
    assert last is not None
    assert seen | set(last.tensors["x"].tolist()) <= {1.0, 2.0}


def test_the_key_depends_on_everything_that_changes_learning() -> None:
    backbone, frames = gaussian.tiny(), np.zeros((2, 4, 4, 3), np.uint8)
    method = dmt.Method(dmt.PRESETS["shapes"])
    key = motion_key(frames, backbone, method, "a ball", 20)
    other = frames.copy()
    other[1, 2, 3, 0] = 1
    more = dmt.Method(dmt.PRESETS["paper"])
    clean = gaussian.tiny()
    clean.inversion = "ddim"
    keys = {
        key,
        motion_key(other, backbone, method, "a ball", 20),
        motion_key(frames.reshape(4, 2, 4, 3), backbone, method, "a ball", 20),
        motion_key(frames, backbone, more, "a ball", 20),
        motion_key(frames, backbone, unguided.Method(unguided.Config()), "a ball", 20),
        motion_key(frames, backbone, method, "a cube", 20),
        motion_key(frames, backbone, method, "a ball", 21),
        motion_key(frames, clean, method, "a ball", 20),
    }
    assert len(keys) == 8
    assert motion_key(frames.copy(), gaussian.tiny(), method, "a ball", 20) == key


def test_the_key_does_not_depend_on_settings_of_the_transfer() -> None:
    backbone, frames = gaussian.tiny(), np.zeros((2, 4, 4, 3), np.uint8)
    keys = {
        motion_key(frames, backbone, dmt.Method(dmt.Config(lr=lr)), "", 20) for lr in (0.01, 0.02)
    }
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("12", 12), ("4GB", 4 * 10**9), ("1.5 mb", 1_500_000)]
)
def test_sizes_are_parsed(text: str, size: int) -> None:
    assert parse_size(text, "`keep`") == size


@pytest.mark.parametrize("text", ["", "much", "-1", "4 gigs"])
def test_invalid_sizes_are_refused(text: str) -> None:
    with pytest.raises(BadCall, match="RECAST_STORE_CAP must be a size like 4GB"):
        parse_size(text, "RECAST_STORE_CAP")


def test_the_environment_sets_the_folder_and_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECAST_STORE", str(tmp_path))
    monkeypatch.setenv("RECAST_STORE_CAP", "3MB")
    store = MotionCache.default()
    assert (store.folder, store.cap) == (tmp_path, 3_000_000)
