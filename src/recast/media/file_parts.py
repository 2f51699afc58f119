"""Files on their way to a folder on another machine.

A file travels in parts, each with the name of the file inside its folder. The two folders have the
same structure, so a name means the same file on both sides. This module owns the parts, and the
check that a name stays inside the folder. It refuses to know how the parts travel.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recast.errors import BadCall

_BYTES = 8 * 2**20
"""Largest size of a part."""
_NAME = re.compile(r"[\w-][\w.-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class FilePart:
    """The next bytes of a file; a file without bytes has one empty part."""

    name: str
    """The path of the file inside its folder, with slashes."""
    data: bytes


def parts_of(root: Path, path: Path) -> Iterator[FilePart]:
    """The parts of a file inside `root`, or of all files of a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        name = file.relative_to(root).as_posix()
        with file.open("rb") as opened:
            data = opened.read(_BYTES)
            yield FilePart(name=name, data=data)
            while data := opened.read(_BYTES):
                yield FilePart(name=name, data=data)


def checked_name(name: str) -> str:
    """The name of a part. Raises `BadCall` if it is no path inside a folder, such as one with
    ".."."""
    if not all(_NAME.fullmatch(word) for word in name.split("/")):
        raise BadCall(f"a worker sent a file called {name!r}, which is no name inside its folder")
    return name


def append(path: Path, data: bytes) -> None:
    """Append bytes to a file. The file and its folder are created if they are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(data)
