"""The weights of a model on this machine's disk: whether they are complete, and whether they fit.

This module owns the status of a model in `recast doctor`. It reads only the headers of weight files
and refuses to load a model.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from recast.errors import BadModel
from recast.networks import devices
from recast.networks.hub_cache import cached_folder
from recast.pipeline.memory_estimate import gib

_PICKLES = {".bin", ".pt", ".pth"}
_GUIDED, _TIGHT = 2.5, 1.2
"""Rules of thumb, unmeasured, for memory divided by weights: above the first, guided steps fit;
above the second, a run fits with all savings. Both ignore the size of the clip."""


def model_status(source: str, published: Iterable[str] = ()) -> str:
    """A sentence about whether a model is on this machine and fits into its memory.

    `source` is a folder, a hub id, or several of them joined by " + ". The model is complete only
    if the first one has the `published` files.
    """
    try:
        folders = folders_of(source)
    except BadModel as error:
        return str(error)
    if not folders:
        return "needs no weights; fits"
    # Bytes per parameter in the precision of `dtype=auto`, which may differ from that on disk.
    width = 2 if torch.cuda.is_available() else 4
    try:
        sizes = [width * count for folder in folders for count in parameter_counts(folder)]
        complete = all(map(is_complete, folders)) and all(
            (folders[0] / file).is_file() for file in published
        )
    except (OSError, ValueError) as error:
        return f"{source} holds weights that cannot be read ({error})"
    if not (sizes and complete):
        return f"{source} is not completely downloaded"
    return f"{gib(sum(sizes))} of weights; {_fit_on_this_machine(sizes)}"


def folders_of(source: str) -> list[Path]:
    """The local folders of a folder, a hub id, or several of them joined by " + "; no folder for a
    model without weights. Raises `BadModel` if one of them is not on this machine."""
    folders = []
    for part in source.split(" + "):
        path = Path(part).expanduser()
        if path.is_dir():
            folders.append(path)
        elif "/" in part and (path.is_absolute() or part.count("/") != 1):
            raise BadModel(f"{part} does not exist")
        elif "/" in part:
            folders.append(cached_folder(part))
    return folders


def parameter_counts(folder: Path) -> list[int]:
    """The number of parameters of each network in a model's folder, from the headers of its files.
    A pickled file is not opened but assumed to hold float32."""
    counts: dict[Path, int] = {}
    for path in folder.rglob("*"):
        # A folder from the hub may hold the same weights again in half precision and as pickles.
        has_safetensors = any(path.parent.glob("*.safetensors"))
        if path.suffix == ".safetensors" and ".fp16" not in path.name:
            counts[path.parent] = counts.get(path.parent, 0) + _parameters(path)
        elif path.suffix in _PICKLES and not has_safetensors:
            counts[path.parent] = counts.get(path.parent, 0) + path.stat().st_size // 4
    return list(counts.values())


def is_complete(folder: Path) -> bool:
    """Whether every network in a model's folder has its weights, with all shards."""
    networks = {path.parent for path in folder.rglob("config.json")}
    suffixes = {".safetensors", *_PICKLES}
    with_weights = {path.parent for path in folder.rglob("*") if path.suffix in suffixes}
    shards = (
        path.parent / name
        for path in folder.rglob("*.safetensors.index.json")
        for name in json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
    )
    return networks <= with_weights and all(shard.is_file() for shard in shards)


def fit(sizes: Sequence[int], memory: int, *, offload: bool) -> str:
    """A sentence about whether networks of `sizes` bytes fit into `memory` bytes. With `offload`,
    only one network has to fit at a time."""
    if memory >= _GUIDED * sum(sizes):
        return "fits"
    need, savings = sum(sizes), "`vae_slicing`, `vae_tiling` and `gradient_checkpointing`"
    if offload:
        need, savings = max(sizes), f"`offload=networks`, {savings}"
    return f"fits with {savings}" if memory >= _TIGHT * need else f"too large for {gib(memory)}"


def _fit_on_this_machine(sizes: Sequence[int]) -> str:
    cuda, main = torch.cuda.is_available(), devices.main_memory()
    memory = torch.cuda.mem_get_info(0)[0] if cuda else devices.installed_ram()
    offload = cuda and (main is None or sum(sizes) <= sum(main))
    return fit(sizes, memory, offload=offload)


def _parameters(path: Path) -> int:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name[:2] != "__")
