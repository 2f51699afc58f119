"""The motion store (`recast store`): learned motions on disk, so that no motion is learned twice.

An entry is one motion file, `KEY.CHECKSUM.safetensors`. The key is a hash of everything on which
the motion depends, and the checksum is that of the file's bytes. An entry appears by one rename, so
that two processes cannot mix their bytes, and every read detects damage. When the store is full,
the least recently used entries are removed. The store also holds checkpoints of interrupted runs.
This module owns the folder, its keys and its limit, and refuses to know video formats and methods.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recast.backbones.base import Backbone
from recast.errors import BadCall, BadMotion
from recast.media.atomic_files import scratch_folder
from recast.motions.method import MotionMethod, Sampling
from recast.motions.motion import FORMAT, Header, Motion
from recast.pipeline.manifest import installed_version

DEFAULT_CAP = "4GB"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SUFFIX = ".safetensors"
_CHECKSUM_DIGITS = 32
"""Hexadecimal digits of the checksum: 128 bits."""
_STALE_SECONDS = 24 * 3600
"""Age at which an unfinished entry counts as abandoned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One stored motion."""

    key: str
    path: Path
    size: int
    """In bytes."""
    used: float
    """Time of the last read or write, in seconds since the epoch."""

    def header(self) -> Header:
        """The motion without its tensors. Raises `BadMotion` if its file is damaged."""
        _check_whole(self.path)
        return Header.load(self.path)


class MotionCache:
    """A folder of motions that takes at most `cap` bytes.

    Interrupted work resumes from checkpoints here, which it saves every `autosave_seconds`.
    """

    def __init__(self, folder: Path, cap: int, autosave_seconds: float = 60.0) -> None:
        self.folder, self.cap, self.autosave_seconds = folder, cap, autosave_seconds

    @classmethod
    def default(cls) -> "MotionCache":
        """The store in the folder that the environment variable RECAST_STORE names, by default in
        the user's cache folder. RECAST_STORE_CAP limits its size, by default to 4 GB. Raises
        `BadCall` if that is not a size."""
        cap = parse_size(os.environ.get("RECAST_STORE_CAP") or DEFAULT_CAP, "RECAST_STORE_CAP")
        folder = os.environ.get("RECAST_STORE")
        if folder:
            return cls(Path(folder).expanduser(), cap)
        import platformdirs  # here, because RECAST_STORE makes it unnecessary

        return cls(Path(platformdirs.user_cache_dir("recast")) / "motions", cap)

    def get(self, key: str) -> Motion | None:
        """The motion of a key, or None.

        A damaged entry is removed. If no undamaged entry is left, this call raises `BadMotion`, and
        the next call returns None.
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
        """Save a motion under a key; returns False if it alone exceeds the cap.

        An older motion of the key stays until it is pruned, because another process may be about to
        open it. A `sole` motion replaces it at once, so that no other entry is removed to make room
        for both. Raises `NoSpace`, `BadCall` or `OSError` if the motion cannot be written; then no
        file is left behind.
        """
        if size_of(motion) > self.cap:  # before gigabytes are written
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(self.folder) as work:
            written = motion.save(work / f"motion{_SUFFIX}")
            if written.stat().st_size > self.cap:
                return False
            written.replace(self.folder / f"{key}.{_checksum(written)}{_SUFFIX}")
        if sole:
            # The newest entry stays, even if another process wrote it: so two processes that write
            # at once never remove both entries.
            for entry in self._entries(key)[:-1]:
                entry.path.unlink(missing_ok=True)
        self.prune()
        return True

    def drop(self, key: str) -> None:
        """Remove the entries of a key. An entry that cannot be removed stays."""
        for entry in self._entries(key):
            with contextlib.suppress(OSError):
                entry.path.unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """All entries, the least recently used first."""
        return self._entries("*")

    def prune(self, keep: int | None = None) -> list[Entry]:
        """Remove the least recently used entries until at most `keep` bytes are left, by default
        the cap; also remove the files of crashed processes. Returns the removed entries."""
        limit = self.cap if keep is None else keep
        entries = self.entries()
        total, removed = sum(entry.size for entry in entries), []
        for entry in entries:
            if limit and total <= limit:  # 0 removes all entries, even damaged ones of 0 bytes
                break
            entry.path.unlink(missing_ok=True)
            total -= entry.size
            removed.append(entry)
        self._sweep()
        return removed

    def _entries(self, key: str) -> list[Entry]:
        entries = []
        for path in self.folder.glob(f"{key}.*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                status = path.stat()
                entries.append(
                    Entry(
                        key=path.name.split(".")[0],
                        path=path,
                        size=status.st_size,
                        used=status.st_mtime_ns / 1e9,
                    )
                )
        return sorted((e for e in entries if e.key), key=lambda entry: (entry.used, entry.key))

    def _sweep(self) -> None:
        for path in self.folder.glob(".recast-*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
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
    """A hash of everything on which a motion depends.

    These are the fitted frames (F, H, W, 3), or (N, F, H, W, 3) for several clips; the weights,
    device and precision; the method with the settings that change what it learns; the source
    prompt; the number of sampling steps; the window; the kind of inversion; and, for a method that
    samples in order to learn, the guidance. The version of Recast is also part of the key.
    """
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
        "inversion": backbone.inversion,
    }
    if method.learns_by_sampling:
        facts["guidance"] = [method.learning_scale(backbone), backbone.dynamic_guidance]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()


def transfer_key(
    motion: Motion, backbone: Backbone, method: MotionMethod[Any], prompt: str, sampling: Sampling
) -> str:
    """A hash of everything on which the result of a transfer depends."""
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
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _computed_on(backbone: Backbone) -> list[str]:
    """The weights, the device and the precision, which decide how results are rounded."""
    precision = next((str(weight.dtype) for weight in backbone.network.parameters()), "float32")
    return [backbone.fingerprint, backbone.device.type, precision]


def parse_size(text: str, name: str) -> int:
    """The bytes of a size such as 4GB, 500MB or 0.

    `name` is what holds the size, for the message of the `BadCall` that another text raises.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", text.strip().upper())
    if match is None:
        raise BadCall(f"{name} must be a size like 4GB, 500MB or 0, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def size_of(motion: Motion) -> int:
    """The bytes of a motion's tensors; its file is a little larger."""
    return sum(tensor.nbytes for tensor in motion.tensors.values())


def sizes(entries: Iterable[Entry]) -> int:
    """The total size of entries in bytes."""
    return sum(entry.size for entry in entries)


def _check_whole(path: Path) -> None:
    if path.name.split(".")[1] != _checksum(path):
        raise BadMotion(f"{path} is damaged: its bytes do not have the checksum in its name")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_CHECKSUM_DIGITS]
