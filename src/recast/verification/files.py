"""Check 1: the files of a model are complete and readable, with their sizes and SHA-256.

This module owns what is wrong with a folder of weights. It reads the headers of the files and
hashes them, and refuses to load a network. In the hub's cache a large file is named by its SHA-256,
so that a damaged file is found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from recast.errors import BadModel
from recast.events import Event, Step
from recast.pipeline import manifest, model_files, model_loading
from recast.pipeline.memory_estimate import gib
from recast.verification.check import Finding, Session

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_QUICK_LIMIT = 256 * 10**6
"""The largest file in bytes that a quick verification hashes."""


def check(session: Session) -> Generator[Event, None, Finding]:
    """Look at every file of weights, without loading it."""
    if session.config.random_weights:
        return Finding(status="skipped", text="The weights are random; no file is read.")
    try:
        folders = model_files.folders_of(session.source)
    except BadModel as error:
        return Finding(status="failed", text=f"{error}.", advice=_download_advice(session.source))
    if not folders:
        return Finding(status="skipped", text="This model has no files.")
    published = model_loading.published(session.config.backbone)
    problems = [problem for folder in folders for problem in _problems(folder)]
    problems += [f"{path} is missing" for path in published if not (folders[0] / path).is_file()]
    paths = [(folder, path) for folder in folders for path in _weights(folder)]
    files = []
    for index, (folder, path) in enumerate(paths, start=1):
        entry = _entry(folder, path, quick=session.config.quick)
        expected = _hash_in_cache(path)
        if entry["sha256"] and expected and entry["sha256"] != expected:
            problems.append(f"{entry['file']} is damaged: its SHA-256 is not {expected}")
        files.append(entry)
        yield Step(stage="files", index=index, total=len(paths))
    numbers = {"files": files, "bytes": sum(entry["bytes"] for entry in files)}
    tables = {"Files of weights": _table(files)}
    if problems:
        return Finding(
            status="failed",
            text=f"{len(problems)} problems: {'; '.join(problems[:5])}.",
            advice=_download_advice(session.source),
            numbers=numbers,
            tables=tables,
        )
    text = f"{len(files)} files of weights with {gib(numbers['bytes'])} are complete and readable."
    return Finding(status="passed", text=text, numbers=numbers, tables=tables)


def _weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in _WEIGHTS)


def _problems(folder: Path) -> Iterator[str]:
    """What is wrong with the files of a folder, one sentence each."""
    weights = _weights(folder)
    for config in folder.rglob("config.json"):
        if not any(path.parent == config.parent for path in weights):
            yield f"{config.parent.relative_to(folder)} has a config and no weights"
    for index in folder.rglob("*.safetensors.index.json"):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            yield f"{index.relative_to(folder)} cannot be read"
            continue
        missing = [name for name in sorted(names) if not (index.parent / name).is_file()]
        yield from (f"{(index.parent / name).relative_to(folder)} is missing" for name in missing)
    for path in weights:
        if path.suffix == ".safetensors" and (reason := _damage(path)):
            yield f"{path.relative_to(folder)} {reason}"


def _damage(path: Path) -> str:
    """What is wrong with a safetensors file, by its header and its size; empty if nothing is."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        expected, size = 8 + length + max(ends, default=0), path.stat().st_size
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        return "has no readable header"
    return "" if size == expected else f"has {size} bytes, and its header says {expected}"


def _entry(folder: Path, path: Path, *, quick: bool) -> dict[str, Any]:
    size = path.stat().st_size
    digest = None if quick and size > _QUICK_LIMIT else manifest.file_hash(path)
    return {"file": path.relative_to(folder).as_posix(), "bytes": size, "sha256": digest}


def _hash_in_cache(path: Path) -> str | None:
    """The SHA-256 of a large file in the hub's cache, which is the name of what it links to."""
    name = path.resolve().name
    return name if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name) else None


def _table(files: list[dict[str, Any]]) -> list[list[str]]:
    rows = [
        [entry["file"], gib(entry["bytes"]), entry["sha256"] or "not computed"] for entry in files
    ]
    return [["file", "size", "SHA-256"], *rows]


def _download_advice(source: str) -> str:
    ids = [part for part in source.split(" + ") if part.count("/") == 1]
    ids = [part for part in ids if not Path(part).expanduser().exists()]
    if not ids:
        return "Copy the model's folder again, with all files."
    return f"Download it again, with: {' && '.join(f'hf download {part}' for part in ids)}"
