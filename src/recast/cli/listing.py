"""`recast methods`, `backbones`, `doctor` and `store`: commands that print tables."""

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
from recast.pipeline.defaults import default_method
from recast.pipeline.motion_cache import Entry, MotionCache, parse_size, sizes


@dataclass(frozen=True)
class _NoFlags:
    pass


@dataclass(frozen=True, kw_only=True)
class _Methods:
    backbone: str | None = None
    """The model for which the default preset of each method is shown: a name that `recast
    backbones` lists, a folder, or a hub id. It is neither downloaded nor loaded."""


@dataclass(frozen=True, kw_only=True)
class _Prune:
    keep: str = ""
    """Size that the motion store may keep, such as 500MB; 0 removes all motions. By default it is
    the size in the environment variable RECAST_STORE_CAP, or else 4GB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Doctor:
    backbone: str | None = None
    """The model whose memory is estimated: a name that `recast backbones` lists, a folder, or a hub
    id. It is neither downloaded nor loaded. The estimate counts weights, and activations with fused
    attention. It leaves out the workspaces of kernels, memory that an allocator reserves, the
    activations of text encoders, and a method's own loss. It shows runs with and without
    --gradient-checkpointing, and with each value of --offload. Without this flag, the command shows
    this machine."""
    method: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A method whose guided steps are estimated, with its default preset. The flag may be given
    several times. By default it is the default method of the model."""
    frames: int | None = None
    """Number of frames of the clip. By default it is the model's own number."""
    height: int | None = None
    """Height of the clip in pixels. By default it is the model's own height."""
    width: int | None = None
    """Width of the clip in pixels. By default it is the model's own width."""
    memory: str = ""
    """Memory of another device, such as 24GB, to compare the estimate with. With --device cuda,
    this works on a machine without a GPU."""
    settings: Settings = field(default_factory=Settings)
    """How the model is loaded and run."""


def methods(argv: list[str], command: str, about: str) -> None:
    """Print all methods with their presets, and with the default preset on a model."""
    backbone = flags.parse(_Methods, _Methods(), argv, command, about).backbone
    if backbone is not None:
        model_loading.check_name(backbone)
    rows = []
    for name in registry.names("methods"):
        rows.append((name, _first_line(method_presets.method_module(name).__doc__)))
        rows.append(("", f"presets: {', '.join(method_presets.presets(name))}"))
        if backbone is not None:
            rows.append(("", f"default: {method_presets.describe_default(name, backbone)}"))
    _table(rows)
    if backbone is None:
        say("The default preset depends on the model: recast methods --backbone NAME shows it.")


def backbones(argv: list[str], command: str, about: str) -> None:
    """Print all aliases of models, each with its folder or hub id."""
    flags.parse(_NoFlags, _NoFlags(), argv, command, about)
    rows = []
    for alias, name in model_loading.aliases().items():
        module = registry.load("backbones", name)
        rows.append((alias, model_loading.describe_alias(alias)))
        rows.append(("", f"from {module.ALIASES[alias]}"))
    _table([*rows, ("FOLDER, ID", "any folder or hub id of such a model in diffusers' format")])


def doctor(argv: list[str], command: str, about: str) -> None:
    """Print what this machine has, or the memory that a run of a model would need."""
    call = flags.parse(_Doctor, _Doctor(), argv, command, about)
    if call.backbone is None:
        if argv:
            raise BadCall(f"{argv[0]} is about a model; name the model with `backbone`")
        with waiting("examining this machine"):
            rows = list(doctors.machine_report())
        _table(rows)
        return
    with waiting(f"estimating the memory of {call.backbone}"):
        report = doctors.memory_report(
            call.backbone,
            call.settings,
            call.method or (default_method(call.backbone),),
            size=(call.frames, call.height, call.width),
            memory=parse_size(call.memory, "`memory`") if call.memory else None,
        )
        rows = list(report)
    _table(rows)


def store_ls(argv: list[str], command: str, about: str) -> None:
    """Print the entries of the motion store, the most recently used first."""
    flags.parse(_NoFlags, _NoFlags(), argv, command, about)
    store = MotionCache.default()
    entries = store.entries()
    _table([(entry.key[:12], _description(entry)) for entry in reversed(entries)])
    total = f"{len(entries)} motions, {_megabytes(sizes(entries))} of {_megabytes(store.cap)}"
    say(f"{total} in {store.folder}")


def store_prune(argv: list[str], command: str, about: str) -> None:
    """Remove the least recently used entries until the motion store has a given size."""
    parsed = flags.parse(_Prune, _Prune(), argv, command, about)
    store = MotionCache.default()
    removed = store.prune(parse_size(parsed.keep, "`keep`") if parsed.keep else None)
    say(f"removed {len(removed)} motions, {_megabytes(sizes(removed))}, from {store.folder}")


def _description(entry: Entry) -> str:
    size, used = _megabytes(entry.size), time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry.used))
    try:
        header = entry.header()
    except (BadMotion, OSError):
        return f"{size}, damaged"
    model = header.metadata.get("backbone_name", header.backbone)
    return f"{size}, {header.method} on {model}, last used {used} UTC"


def _table(rows: Sequence[tuple[str, str]]) -> None:
    rows = [(with_flags(name), with_flags(text)) for name, text in rows]
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        say(f"{name:<{width}}  {text}")


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
