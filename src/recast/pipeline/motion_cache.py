"""The motion store: what was learned from a clip is kept, so that the next run samples at once.

An entry is one motion file, `<key>.<checksum>.safetensors`: the key says what it was learned from
and how, the checksum what its bytes must be. One rename makes it, so two writers cannot mix, and
whoever reads it notices damage. The least recently used go first when the store is full. Knows no
video format and no method.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recast.backbones.base import Backbone
from recast.errors import BadCall, BadMotion
from recast.motions.method import MotionMethod, Sampling
from recast.motions.motion import FORMAT, Motion

DEFAULT_CAP = "4GB"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SUFFIX = ".safetensors"
_CHECKED = 32
"""Hexadecimal digits of the checksum: 128 bits."""
_STALE = 24 * 3600
"""Seconds after which an unfinished entry belongs to no living writer."""


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
    """A folder of motions that takes at most `cap` bytes."""

    def __init__(self, folder: Path, cap: int) -> None:
        self.folder, self.cap = folder, cap

    @classmethod
    def default(cls) -> "MotionCache":
        """Where RECAST_STORE says, else in the user's cache; RECAST_STORE_CAP limits its size."""
        cap = parse_size(os.environ.get("RECAST_STORE_CAP") or DEFAULT_CAP)
        place = os.environ.get("RECAST_STORE")
        if place:
            return cls(Path(place).expanduser(), cap)
        import platformdirs  # only where nothing says where the store is

        return cls(Path(platformdirs.user_cache_dir("recast")) / "motions", cap)

    def get(self, key: str) -> Motion | None:
        """The motion of that key, or None.

        An entry that is damaged is removed; if no sound one is left, `BadMotion` is raised, once:
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
            with contextlib.suppress(OSError):  # a store that may only be read
                os.utime(entry.path)
            return motion
        if damage is not None:
            raise BadMotion(f"the stored motion {key} was damaged") from damage
        return None

    def put(self, key: str, motion: Motion, *, sole: bool = False) -> bool:
        """Keep a motion, which is then the one of that key; False if it alone exceeds the cap.

        An older one of the key is left to age, so that who is about to read it finds it; a `sole`
        one takes its place, before others have to make room for both.
        Raises `NoSpace`, `BadCall` or `OSError` if it cannot be written; nothing is left behind.
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
            # The newest stays, be it another writer's, so that two writers never remove both.
            for entry in self._entries(key)[:-1]:
                entry.path.unlink(missing_ok=True)
        self.prune()
        return True

    def drop(self, key: str) -> None:
        """Forget what is kept under a key, as far as the disk lets."""
        for entry in self._entries(key):
            with contextlib.suppress(OSError):
                entry.path.unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """All entries, the least recently used first."""
        return self._entries("*")

    def prune(self, keep: int | None = None) -> list[Entry]:
        """Remove the least recently used until at most `keep` bytes (the cap) are taken, and what
        crashed writers left behind. Returns the removed entries."""
        limit = self.cap if keep is None else keep
        entries = self.entries()
        taken, removed = sum(entry.size for entry in entries), []
        for entry in entries:
            if limit and taken <= limit:  # a limit of 0 means all, be they damaged to 0 bytes
                break
            entry.path.unlink(missing_ok=True)
            taken -= entry.size
            removed.append(entry)
        self._sweep()
        return removed

    def _entries(self, key: str) -> list[Entry]:
        found = []
        for path in self.folder.glob(f"{key}.*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                state = path.stat()
                name = path.name.split(".")[0]
                found.append(
                    Entry(key=name, path=path, size=state.st_size, used=state.st_mtime_ns / 1e9)
                )
        return sorted((e for e in found if e.key), key=lambda entry: (entry.used, entry.key))

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
    """What a motion depends on, as one hash: the fitted frames (F, H, W, 3), the weights and how
    they are computed, the method with the settings that change what it learns, the source prompt
    and the number of sampling steps; of a method that samples to learn also how that is guided. A
    new version of Recast learns anew."""
    told = {
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
        told["guidance"] = [backbone.defaults.guidance_scale, backbone.dynamic_guidance]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()


def transfer_key(
    motion: Motion, backbone: Backbone, method: MotionMethod[Any], prompt: str, sampling: Sampling
) -> str:
    """What the result of a transfer depends on, as one hash."""
    told = {
        "transfer": [FORMAT, installed_version("recast")],
        "backbone": [*_computed_on(backbone), f"dynamic guidance: {backbone.dynamic_guidance}"],
        "method": [method.name, repr(method.config)],
        "source_prompt": motion.source_prompt,
        "prompt": prompt,
        "sampling": repr(sampling),
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, tensor in sorted(motion.tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _computed_on(backbone: Backbone) -> list[str]:
    """The weights, and what decides how their results are rounded."""
    precision = next((str(weight.dtype) for weight in backbone.network.parameters()), "float32")
    return [backbone.fingerprint, backbone.device.type, precision]


def installed_version(package: str) -> str:
    """The version of an installed package; "not installed" for one that runs from its sources."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def parse_size(text: str) -> int:
    """Bytes of a size such as 4GB, 500MB or 0. Raises `BadCall`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", text.strip().upper())
    if match is None:
        raise BadCall(f"{text!r} is no size; write one like 4GB, 500MB or 0")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def size_of(motion: Motion) -> int:
    """How many bytes a motion's tensors take: a little less than its file."""
    return sum(tensor.nbytes for tensor in motion.tensors.values())


def sizes(entries: Iterable[Entry]) -> int:
    """How many bytes these entries take."""
    return sum(entry.size for entry in entries)


def _check_whole(path: Path) -> None:
    if path.name.split(".")[1] != _checksum(path):
        raise BadMotion(f"{path} is damaged: its bytes do not have the checksum in its name")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_CHECKED]
