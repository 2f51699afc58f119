"""`recast methods`, `backbones`, `doctor` and `store`: answers that need no run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from recast import doctor as doctors
from recast import models, registry
from recast.cli import flags
from recast.cli.console import say
from recast.errors import BadMotion
from recast.store import Entry, Store, parse_size, sizes


@dataclass(frozen=True)
class _NoFlags:
    pass


@dataclass(frozen=True, kw_only=True)
class _Prune:
    keep: str = ""
    """How much may stay, such as 500MB; 0 removes all; without it what RECAST_STORE_CAP allows."""


def methods(argv: list[str], command: str, about: str) -> None:
    """Every method with its presets."""
    flags.parse(_NoFlags, _NoFlags(), argv, command, about)
    rows = []
    for name in registry.names("methods"):
        first, *others = models.presets(name)
        rows.append((name, _first_line(models.method_module(name).__doc__)))
        rows.append(("", f"presets: {', '.join([f'{first} (default)', *others])}"))
    _table(rows)


def backbones(argv: list[str], command: str, about: str) -> None:
    """Every alias with where it leads."""
    flags.parse(_NoFlags, _NoFlags(), argv, command, about)
    rows = []
    for alias, name in models.aliases().items():
        module = registry.load("backbones", name)
        rows.append((alias, _first_line(module.__doc__)))
        rows.append(("", f"from {module.ALIASES[alias]}"))
    _table([*rows, ("FOLDER, ID", "any folder or hub id of such a model in diffusers' format")])


def doctor(argv: list[str], command: str, about: str) -> None:
    """What this machine offers."""
    flags.parse(_NoFlags, _NoFlags(), argv, command, about)
    _table(list(doctors.report()))


def store_ls(argv: list[str], command: str, about: str) -> None:
    """The entries, the most recently used first."""
    flags.parse(_NoFlags, _NoFlags(), argv, command, about)
    store = Store.default()
    entries = store.entries()
    _table([(entry.key[:12], _described(entry)) for entry in reversed(entries)])
    total = f"{len(entries)} motions, {_megabytes(sizes(entries))} of {_megabytes(store.cap)}"
    say(f"{total} in {store.folder}")


def store_prune(argv: list[str], command: str, about: str) -> None:
    """Remove entries down to a size."""
    parsed = flags.parse(_Prune, _Prune(), argv, command, about)
    store = Store.default()
    removed = store.prune(parse_size(parsed.keep) if parsed.keep else None)
    say(f"removed {len(removed)} motions, {_megabytes(sizes(removed))}, from {store.folder}")


def _described(entry: Entry) -> str:
    size, used = _megabytes(entry.size), time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry.used))
    try:
        header = entry.header()
    except (BadMotion, OSError):
        return f"{size}, damaged"
    model = header.get("backbone_name", header["backbone"])
    return f"{size}, {header['method']} on {model}, last used {used} UTC"


def _table(rows: Sequence[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        say(f"{name:<{width}}  {text}")


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
