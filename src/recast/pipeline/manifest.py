"""The manifest: the record beside every result, from which it can be explained and repeated.

This module owns its format: versions, hashes and the JSON form of configs. It refuses to know any
method and any model; `sample_writer.py` collects the content.
"""

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from recast.media.video import Video

FORMAT = "recast-run-1"
_PACKAGES = ("recast", "torch", "diffusers", "transformers", "numpy")


def installed_version(package: str) -> str:
    """The version of a package; "not installed" for one that is missing or runs from its sources
    without installation."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """The versions of Python and of the packages on which results depend."""
    return {"python": platform.python_version()} | {
        name: installed_version(name) for name in _PACKAGES
    }


def plain(value: Any) -> Any:
    """A value as JSON types: dataclasses and mappings become dicts, sequences and sets become
    lists, and paths become strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, or of the names and contents of a folder's files, sorted by name."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for part in sorted(p for p in path.iterdir() if p.is_file()):
        digest.update(f"{part.name}\0{file_hash(part)}\n".encode())
    return digest.hexdigest()


def frames_hash(clip: Video) -> str:
    """The SHA-256 of a clip's shape and pixels."""
    return hashlib.sha256(repr(clip.frames.shape).encode() + clip.frames.tobytes()).hexdigest()


def text(manifest: Mapping[str, Any]) -> str:
    """A manifest as JSON text, without a line break at its end."""
    return json.dumps(manifest, indent=2, ensure_ascii=False)
