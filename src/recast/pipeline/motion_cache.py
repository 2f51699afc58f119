"""The motion cache (`recast store`): motions on disk, so that the next run samples at once.

An entry is one motion file, `<key>.<checksum>.safetensors`. The key is a hash of what the motion
was learned from and how; the checksum is that of the file's bytes. An entry appears by one rename,
so that two writers cannot mix, and every reader notices damage. When the cache is full, the least
recently used entries are removed. Knows no video format and no method.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recast.backbones.base import Backbone
from recast.errors import BadCall, BadMotion
from recast.motions.method import MotionMethod, Sampling
from recast.motions.motion import FORMAT, Motion
from recast.pipeline.manifest import installed_version

DEFAULT_CAP = "4GB"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SUFFIX = ".safetensors"
_CHECKED = 32
"""Hexadecimal digits of the checksum: 128 bits."""
_STALE = 24 * 3600
"""Seconds after which an unfinished entry is taken to be abandoned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One stored motion."""

    key: str
    path: Path
    size: int
    """In bytes."""
    used: float
    """When it was last read or written, in seconds since the epoch."""

    def header(self) -> Mapping[str, Any]:
        """The motion's method, backbone and metadata. Raises `BadMotion` if it is damaged."""
        _check_whole(self.path)
        motion = Motion.load(self.path)
        return {"method": motion.method, "backbone": motion.backbone, **motion.metadata}


class MotionCache:
    """A folder of motions that takes at most `cap` bytes.

    Long work saves its state here every `autosave_seconds`.
    """

    def __init__(self, folder: Path, cap: int, autosave_seconds: float = 60.0) -> None:
        self.folder, self.cap, self.autosave_seconds = folder, cap, autosave_seconds

    @classmethod
    def default(cls) -> "MotionCache":
        """The cache in the folder RECAST_STORE, else in the user's cache folder. RECAST_STORE_CAP
        limits its size."""
        cap = parse_size(os.environ.get("RECAST_STORE_CAP") or DEFAULT_CAP)
        place = os.environ.get("RECAST_STORE")
        if place:
            return cls(Path(place).expanduser(), cap)
        import platformdirs  # not needed where RECAST_STORE is set

        return cls(Path(platformdirs.user_cache_dir("recast")) / "motions", cap)

    def get(self, key: str) -> Motion | None:
        """The motion of that key, or None.

        A damaged entry is removed. If no sound entry is left, `BadMotion` is raised once; the next
        call returns None.
        """
        damage: Exception | None = None
        for entry in reversed(self._entries(key)):
            try:
                _check_whole(entry.path)
                motion = Motion.load(entry.path)
            except FileNotFoundError:
                continue
            except (BadMotion, RuntimeError) as error:
                if entry.path.exists():  # else another process has just removed it
                    entry.path.unlink(missing_ok=True)
                    damage = error
                continue
            with contextlib.suppress(OSError):  # a read-only cache
                os.utime(entry.path)
            return motion
        if damage is not None:
            raise BadMotion(f"the stored motion {key} was damaged") from damage
        return None

    def put(self, key: str, motion: Motion, *, sole: bool = False) -> bool:
        """Keep a motion under a key; False if it alone exceeds the cap.

        An older motion of the key is left to age, so that a reader who is about to open it finds
        it; a `sole` motion replaces it at once, so that other entries need not make room for both.
        Raises `NoSpace`, `BadCall` or `OSError` if it cannot be written; then nothing is left
        behind.
        """
        if size_of(motion) > self.cap:  # known before gigabytes are written
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".recast-", dir=self.folder) as work:
            written = motion.save(Path(work) / f"motion{_SUFFIX}")
            if written.stat().st_size > self.cap:
                return False
            written.replace(self.folder / f"{key}.{_checksum(written)}{_SUFFIX}")
        if sole:
            # The newest stays, even another writer's, so that two writers never remove both.
            for entry in self._entries(key)[:-1]:
                entry.path.unlink(missing_ok=True)
        self.prune()
        return True

    def drop(self, key: str) -> None:
        """Remove the entries of a key, as far as the disk allows."""
        for entry in self._entries(key):
            with contextlib.suppress(OSError):
                entry.path.unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """All entries, the least recently used first."""
        return self._entries("*")

    def prune(self, keep: int | None = None) -> list[Entry]:
        """Remove the least recently used entries until at most `keep` bytes (by default the cap)
        are left, and the files of crashed writers. Returns the removed entries."""
        limit = self.cap if keep is None else keep
        entries = self.entries()
        total, removed = sum(entry.size for entry in entries), []
        for entry in entries:
            if limit and total <= limit:  # a limit of 0 means all, also entries damaged to 0 bytes
                break
            entry.path.unlink(missing_ok=True)
            total -= entry.size
            removed.append(entry)
        self._sweep()
        return removed

    def _entries(self, key: str) -> list[Entry]:
        entries = []
        for path in self.folder.glob(f"{key}.*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # removed after it was listed
                state = path.stat()
                name = path.name.split(".")[0]
                entries.append(
                    Entry(key=name, path=path, size=state.st_size, used=state.st_mtime_ns / 1e9)
                )
        return sorted((e for e in entries if e.key), key=lambda entry: (entry.used, entry.key))

    def _sweep(self) -> None:
        for path in self.folder.glob(".recast-*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE:
                    for part in path.iterdir():
                        part.unlink(missing_ok=True)
                    path.rmdir()


def motion_key(
    frames: NDArray[np.uint8],
    backbone: Backbone,
    method: MotionMethod[Any],
    prompt: str,
    steps: int,
) -> str:
    """A hash of everything that a motion depends on: the fitted frames (F, H, W, 3), the weights,
    the arithmetic, the method with the settings that change what it learns, the source prompt, the
    number of sampling steps and, for a method that samples in order to learn, the guidance. A new
    version of Recast learns anew."""
    facts = {
        "format": FORMAT,
        "recast": installed_version("recast"),
        "shape": frames.shape,
        "backbone": _computed_on(backbone),
        "method": method.name,
        "settings": dict(method.cache_key_settings()),
        "prompt": prompt,
        "steps": steps,
        "window": backbone.window,
    }
    if method.learns_by_sampling:
        facts["guidance"] = [backbone.defaults.guidance_scale, backbone.dynamic_guidance]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()


def transfer_key(
    motion: Motion, backbone: Backbone, method: MotionMethod[Any], prompt: str, sampling: Sampling
) -> str:
    """A hash of everything that the result of a transfer depends on."""
    facts = {
        "transfer": [FORMAT, installed_version("recast")],
        "backbone": [*_computed_on(backbone), f"dynamic guidance: {backbone.dynamic_guidance}"],
        "method": [method.name, repr(method.config)],
        "source_prompt": motion.source_prompt,
        "prompt": prompt,
        "sampling": repr(sampling),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(motion.tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _computed_on(backbone: Backbone) -> list[str]:
    """The weights, the device and the precision, which decide how results are rounded."""
    precision = next((str(weight.dtype) for weight in backbone.network.parameters()), "float32")
    return [backbone.fingerprint, backbone.device.type, precision]


def parse_size(text: str) -> int:
    """Bytes of a size such as 4GB, 500MB or 0. Raises `BadCall`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", text.strip().upper())
    if match is None:
        raise BadCall(f"{text!r} is not a size; write a size like 4GB, 500MB or 0")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def size_of(motion: Motion) -> int:
    """The bytes of a motion's tensors: a little less than its file takes."""
    return sum(tensor.nbytes for tensor in motion.tensors.values())


def sizes(entries: Iterable[Entry]) -> int:
    """The bytes that these entries take."""
    return sum(entry.size for entry in entries)


def _check_whole(path: Path) -> None:
    if path.name.split(".")[1] != _checksum(path):
        raise BadMotion(f"{path} is damaged: its bytes do not have the checksum in its name")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_CHECKED]
