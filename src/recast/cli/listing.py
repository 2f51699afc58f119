"""`recast methods`, `backbones`, `doctor` and `store`: answers that need no run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from recast import registry
from recast.backbones.base import Settings
from recast.cli import flags
from recast.cli.console import say, waiting, with_flags
from recast.errors import BadCall, BadMotion
from recast.pipeline import doctor as doctors
from recast.pipeline import method_presets, model_loading
from recast.pipeline.default_method import default_method
from recast.pipeline.motion_cache import Entry, MotionCache, parse_size, sizes


@dataclass(frozen=True)
class _NoFlags:
    pass


@dataclass(frozen=True, kw_only=True)
class _Prune:
    keep: str = ""
    """How much to keep, such as 500MB; 0 removes all; without it what RECAST_STORE_CAP allows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Doctor:
    backbone: str | None = None
    """Predict the memory that a run of this model takes, before it is downloaded or loaded: a name
    that `recast backbones` lists, a folder, or a hub id. The prediction counts weights and
    activations, with fused attention. It does not count the workspaces of kernels, what an
    allocator reserves, the activations of text encoders or a method's own loss. It covers runs with
    and without --gradient-checkpointing, and every --offload."""
    method: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A method whose guided steps are predicted, with its default preset; may be given several
    times. Without it the method of a run without --method."""
    frames: int | None = None
    """Frames of the clip; without it the model's own."""
    height: int | None = None
    """Height of the clip in pixels; without it the model's own."""
    width: int | None = None
    """Width of the clip in pixels; without it the model's own."""
    memory: str = ""
    """Memory of the device, such as 24GB, in place of this machine's. With --device cuda, this
    machine needs no GPU."""
    settings: Settings = field(default_factory=Settings)
    """How the model is loaded and run."""


def methods(argv: list[str], command: str, about: str) -> None:
    """Print every method with its presets."""
    flags.parse(_NoFlags, _NoFlags(), argv, command, about)
    rows = []
    for name in registry.names("methods"):
        first, *others = method_presets.presets(name)
        rows.append((name, _first_line(method_presets.method_module(name).__doc__)))
        rows.append(("", f"presets: {', '.join([f'{first} (default)', *others])}"))
    _table(rows)


def backbones(argv: list[str], command: str, about: str) -> None:
    """Print every alias with the folder or hub id that it stands for."""
    flags.parse(_NoFlags, _NoFlags(), argv, command, about)
    rows = []
    for alias, name in model_loading.aliases().items():
        module = registry.load("backbones", name)
        rows.append((alias, _first_line(module.__doc__)))
        rows.append(("", f"from {module.ALIASES[alias]}"))
    _table([*rows, ("FOLDER, ID", "any folder or hub id of such a model in diffusers' format")])


def doctor(argv: list[str], command: str, about: str) -> None:
    """Print what this machine offers, or the memory that a run of a model would take."""
    call = flags.parse(_Doctor, _Doctor(), argv, command, about)
    if call.backbone is None:
        if argv:
            raise BadCall(f"{argv[0]} needs a model; name it by `backbone`")
        with waiting("examining this machine"):
            rows = list(doctors.machine_report())
        _table(rows)
        return
    with waiting(f"predicting the memory of {call.backbone}"):
        told = doctors.memory_report(
            call.backbone,
            call.settings,
            call.method or (default_method(call.backbone),),
            size=(call.frames, call.height, call.width),
            memory=parse_size(call.memory, "`memory`") if call.memory else None,
        )
        rows = list(told)
    _table(rows)


def store_ls(argv: list[str], command: str, about: str) -> None:
    """Print the entries, the most recently used first."""
    flags.parse(_NoFlags, _NoFlags(), argv, command, about)
    store = MotionCache.default()
    entries = store.entries()
    _table([(entry.key[:12], _described(entry)) for entry in reversed(entries)])
    total = f"{len(entries)} motions, {_megabytes(sizes(entries))} of {_megabytes(store.cap)}"
    say(f"{total} in {store.folder}")


def store_prune(argv: list[str], command: str, about: str) -> None:
    """Remove entries until the store has a given size."""
    parsed = flags.parse(_Prune, _Prune(), argv, command, about)
    store = MotionCache.default()
    removed = store.prune(parse_size(parsed.keep, "`keep`") if parsed.keep else None)
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
    rows = [(with_flags(name), with_flags(text)) for name, text in rows]
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        say(f"{name:<{width}}  {text}")


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
