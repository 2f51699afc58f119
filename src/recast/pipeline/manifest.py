"""What is written beside every result so that it can be told, checked and made again.

Owns versions, hashes and the JSON form of configs. Knows no method and no model.
"""

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recast.media.video import Video
from recast.pipeline.motion_cache import installed_version

FORMAT = "recast-run-1"
_PACKAGES = ("recast", "torch", "diffusers", "transformers", "numpy")


def versions() -> dict[str, str]:
    """What made the result: Python and the packages that change numbers."""
    return {"python": platform.python_version()} | {
        name: installed_version(name) for name in _PACKAGES
    }


def plain(value: Any) -> Any:
    """Configs and what they hold as JSON has it: objects, lists, strings, numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def file_hash(path: Path) -> str:
    """sha256 of a file, or of a folder's files with their names, in order."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for part in sorted(p for p in path.iterdir() if p.is_file()):
        digest.update(f"{part.name}\0{file_hash(part)}\n".encode())
    return digest.hexdigest()


def frames_hash(clip: Video) -> str:
    """sha256 of the pixels and their shape."""
    return hashlib.sha256(repr(clip.frames.shape).encode() + clip.frames.tobytes()).hexdigest()


def text(manifest: Mapping[str, Any]) -> str:
    """The manifest as it is written and printed."""
    return json.dumps(manifest, indent=2, ensure_ascii=False)
