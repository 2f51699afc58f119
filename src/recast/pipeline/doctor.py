"""What this machine offers: devices, memory, codecs, the motion store, models and what fits.

Everything is tried rather than looked up where that is cheap: the codec writes a clip and reads it
back. Nothing is downloaded. `predicted` tells what one run would need (`forecast`).
"""

import json
import math
import os
import platform
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from recast import registry
from recast.backbones.base import Settings
from recast.errors import BadModel, RecastError
from recast.media import video
from recast.networks.devices import (
    MainMemory,
    best_device,
    device_of,
    installed_ram,
    main_memory,
)
from recast.networks.hub_cache import cached_folder
from recast.pipeline import manifest, model_loading
from recast.pipeline.memory_estimate import (
    Forecast,
    Stage,
    forecast,
    gib,
    offloads,
)
from recast.pipeline.motion_cache import MotionCache, sizes

_PICKLES = {".bin", ".pt", ".pth"}
_SAVINGS = {
    (again, how): " ".join(
        flag
        for flag, used in (
            ("--gradient-checkpointing", again),
            (f"--offload {how}", how != "none"),
        )
        if used
    )
    for how in ("none", "networks", "blocks")
    for again in (False, True)
}
"""Whether layers run again on the way back, whether networks take turns -> the flags for it."""
_ROOMY, _TIGHT = 2.5, 1.2
"""Memory over weights from which guided steps fit, and, with all that saves memory, single ones: a
rule of thumb, unmeasured, that knows nothing of a clip's size."""


def report() -> Iterator[tuple[str, str]]:
    """Pairs of a topic and what was found."""
    yield from manifest.versions().items()
    yield "system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    yield from _devices()
    yield "video files", _codec()
    yield "motion store", _store()
    yield from _models()


def predicted(
    backbone: str,
    settings: Settings,
    methods: Sequence[str],
    *,
    size: tuple[int | None, int | None, int | None] = (None, None, None),
    memory: int | None = None,
) -> Iterator[tuple[str, str]]:
    """Pairs of a topic and what a run of a model takes, at its own frames, height or width where
    `size` has None, on a device of so many bytes, or this machine's. Raises as `forecast` does."""
    device = device_of(settings.device)
    told = forecast(backbone, settings, device, methods, size)
    frames, height, width = told.size
    yield "setting", f"{backbone}, {frames} frames of {width}x{height}, --device {device.type}"
    yield from _stages(told)
    there = memory if memory is not None else _whole(device)
    yield "memory", "not known here; tell it by --memory" if there is None else gib(there)
    # Told how much a device has, this is about another machine.
    main = main_memory() if memory is None else None
    if device.type != "cpu":
        yield "main memory", _main(told, main)
    for method in methods:
        if method in told.notes:
            yield method, told.notes[method]
    guided = [method for method in methods if method in told.guided]
    waits = main is None or told.weights <= sum(main)
    for name in (None, *guided):
        yield _run(told, name, there, offloads(settings, device) if waits else ["none"])


def _stages(told: Forecast) -> Iterator[tuple[str, str]]:
    for name, size in told.networks:
        yield "weights", f"{gib(size)} {name}"
    yield "weights in all", gib(told.weights)
    yield "two prompts at once", f"{gib(told.plain.most)}, without gradients"
    yield "encoding a clip", gib(told.encode.most)
    yield "decoding it", gib(told.decode.most)
    for method, steps in told.guided.items():
        for step, flag in zip(steps, ("", " with --gradient-checkpointing"), strict=True):
            yield f"guided by {method}", f"{_step(step)}{flag}"


def _main(told: Forecast, main: MainMemory | None) -> str:
    """What waits in main memory for a device, and whether this machine's holds it."""
    text = (
        f"{gib(told.loading)} while weights are loaded, less where files have this precision; "
        f"{gib(told.weights)} stay with --offload"
    )
    if main is None:
        return text
    fit = "fits" if told.weights <= main.ram else "fits with swap"
    text += f"; here are {gib(main.ram)} and {gib(main.swap)} of swap: "
    return text + (fit if told.weights <= sum(main) else "too little for --offload")


def _step(step: Stage) -> str:
    return f"{gib(step.most)}, of which {gib(step.kept)} are kept for the way back"


def _run(
    told: Forecast, method: str | None, there: int | None, offloads: Collection[str]
) -> tuple[str, str]:
    """What a run takes with each saving, and with which of them it fits."""
    needs = {
        flags: told.need(method, checkpointing=flags[0], offloaded=flags[1])
        for flags in _SAVINGS
        if flags[1] in offloads and (method or not flags[0])
    }
    parts = [f"{gib(need)} {_SAVINGS[flags]}".strip() for flags, need in needs.items()]
    text = "; ".join(parts)
    if there is not None:
        fit = [_SAVINGS[flags] for flags, need in needs.items() if need <= there]
        text += f": {f'fits with {fit[0]}' if fit and fit[0] else 'fits' if fit else 'too much'}"
    return f"a run of {method}" if method else "sampling alone", text


def _whole(device: torch.device) -> int | None:
    """All the memory of a device; None for one that is not here."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(0)[1] if torch.cuda.is_available() else None
    return installed_ram() or None


def _devices() -> Iterator[tuple[str, str]]:
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield f"cuda:{index}", f"{name}, {gib(free)} of {gib(total)} free"
    if torch.backends.mps.is_available():
        yield "mps", f"Apple GPU, shares {gib(installed_ram())}"
    threads = torch.get_num_threads()
    yield "cpu", f"{gib(installed_ram())} memory, {threads} threads for torch"
    yield "--device auto", best_device()


def _codec() -> str:
    clip = video.Video(np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3), 8.0)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            back = video.read(clip.save(Path(scratch) / "clip.mp4"))
    except (RecastError, OSError, ImportError) as error:
        return f"H.264 does not work: {error}"
    whole = back.frames.shape == clip.frames.shape
    return "H.264 in mp4 writes and reads" if whole else "H.264 in mp4 loses frames"


def _store() -> str:
    try:
        store = MotionCache.default()
    except (RecastError, ImportError) as error:
        return str(error)
    entries = store.entries()
    taken = sizes(entries)
    return f"{store.folder}: {len(entries)} motions, {gib(taken)} of {gib(store.cap)}"


def _models() -> Iterator[tuple[str, str]]:
    for alias, module in model_loading.aliases().items():
        source = registry.load("backbones", module).ALIASES[alias]
        yield f"model {alias}", _model(source, model_loading.published(alias))


def _model(source: str, listed: Iterable[str] = ()) -> str:
    """Of a folder or hub id, or of several that make up one model, with " + " between them; the
    first of them has the `listed` files, if all is there."""
    folders = []
    for one in source.split(" + "):
        if Path(one).is_absolute() or one.count("/") != 1:
            folder = Path(one) if Path(one).is_dir() else None
            if folder is None:
                return f"{one} is not there" if "/" in one else "needs no weights; fits"
        else:
            try:
                folder = cached_folder(one)
            except BadModel as error:
                return str(error)
        folders.append(folder)
    cuda = torch.cuda.is_available()
    memory = torch.cuda.mem_get_info(0)[0] if cuda else installed_ram()
    # As --dtype auto loads them, whatever they are on disk.
    try:
        parts = [n * (2 if cuda else 4) for folder in folders for n in counts(folder)]
        whole = all(map(complete, folders)) and all((folders[0] / it).is_file() for it in listed)
    except (OSError, ValueError) as error:
        return f"{source} holds weights that cannot be read ({error})"
    if not (parts and whole):
        return f"{source} is not downloaded whole"
    main = main_memory()
    offload = cuda and (main is None or sum(parts) <= sum(main))
    return f"{gib(sum(parts))} of weights; {fits(parts, memory, offload=offload)}"


def counts(folder: Path) -> list[int]:
    """How many numbers each network of a model's folder was trained to, by its files' headers. A
    pickled one is not opened, and taken for float32."""
    found: dict[Path, int] = {}
    for path in folder.rglob("*"):
        # A hub's folder may hold the same weights in half precision, and pickled, beside them.
        beside = any(path.parent.glob("*.safetensors"))
        if path.suffix == ".safetensors" and ".fp16" not in path.name:
            found[path.parent] = found.get(path.parent, 0) + _numbers(path)
        elif path.suffix in _PICKLES and not beside:
            found[path.parent] = found.get(path.parent, 0) + path.stat().st_size // 4
    return list(found.values())


def complete(folder: Path) -> bool:
    """Whether every network of a model's folder has weights, and all shards of them."""
    networks = {path.parent for path in folder.rglob("config.json")}
    kinds = {".safetensors", *_PICKLES}
    weighted = {path.parent for path in folder.rglob("*") if path.suffix in kinds}
    shards = (
        path.parent / name
        for path in folder.rglob("*.safetensors.index.json")
        for name in json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
    )
    return networks <= weighted and all(shard.is_file() for shard in shards)


def _numbers(path: Path) -> int:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name[:2] != "__")


def fits(parts: Sequence[int], memory: int, *, offload: bool) -> str:
    """Whether networks of so many bytes each fit into so many; with `offload` one at a time can."""
    if memory >= _ROOMY * sum(parts):
        return "fits"
    least, ways = sum(parts), "--vae-slicing, --vae-tiling and --gradient-checkpointing"
    if offload:
        least, ways = max(parts), f"--offload networks, {ways}"
    return f"fits with {ways}" if memory >= _TIGHT * least else f"more than {gib(memory)} can hold"
