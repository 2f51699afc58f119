"""Reading a model folder in diffusers' format, with errors that name a remedy.

Owns how a folder is found or downloaded, and how one network or tokenizer of it is loaded and
checked. Safetensors are preferred. Pickled weights are read by torch's weights-only loader, which
runs no code. It refuses to know which parts make up a model (`pipeline_parts`).
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn

from recast.errors import BadModel
from recast.networks import empty_networks, hub_cache, meta_model, quantization
from recast.networks.devices import is_out_of_memory
from recast.networks.library_logging import quiet

INDEX = "model_index.json"
N = TypeVar("N", bound="nn.Module")
T = TypeVar("T")


def find_folder(source: str, parts: Sequence[str] = ()) -> Path:
    """The local folder of a model. `source` is a path, or a hub id whose files are in the local
    cache or are downloaded.

    `parts` are the subfolders and files to download. They are needed for a repository that is no
    pipeline of diffusers, or that holds more than one model. Raises `BadModel` if there is no such
    folder or the download fails.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise BadModel(f"{source} is a file; a model is a folder with {INDEX}")
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise BadModel(f"there is no model folder {source}")
    if meta_model.current() is not None:
        return hub_cache.cached_folder(source)
    from diffusers import DiffusionPipeline

    try:
        with quiet(bars=True):
            return _downloaded(source, parts) if parts else Path(DiffusionPipeline.download(source))
    except Exception as error:  # the exception classes of the hub's client change with its version
        reason = str(error).strip().split("\n")[0]
        raise BadModel(
            f"{source} is neither a folder nor in the local cache, and cannot be downloaded "
            f"({type(error).__name__}: {reason[:160]}); if this machine is offline, copy the "
            "model's folder here and pass its path"
        ) from error


def _downloaded(source: str, parts: Sequence[str]) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    excluded = ["*.fp16.*", "*.msgpack", "*.h5"]
    try:
        if any(name.endswith(".safetensors") for name in HfApi().list_repo_files(source)):
            excluded.append("*.bin")
    except Exception:  # offline; snapshot_download raises if a file is not in the cache
        pass
    included = [INDEX, *(part if "." in part else f"{part}/*" for part in parts)]
    return Path(snapshot_download(source, allow_patterns=included, ignore_patterns=excluded))


def check_index(path: Path, pipelines: frozenset[str]) -> str:
    """The pipeline that the index of a model folder names. Raises `BadModel` if `path` is no model
    folder, or if it is none of these pipelines."""
    if not (path / INDEX).is_file():
        raise BadModel(f"{path} is not a model folder of diffusers: it has no {INDEX}")
    pipeline = read_json(path / INDEX).get("_class_name")
    if pipeline not in pipelines:
        supported = ", ".join(sorted(pipelines))
        raise BadModel(f"{path} holds a {pipeline}, but this backbone needs {supported}")
    return str(pipeline)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder. Raises `BadModel` for another content or an
    unreadable file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadModel(f"the model has no readable {path.parent.name}/{path.name}") from error
    except ValueError as error:
        raise BadModel(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise BadModel(f"{path} holds no JSON object")
    return content


def network(kind: type[N], path: Path, dtype: torch.dtype) -> N:
    """Load a network of diffusers from its folder. Raises `BadModel` for weights that are missing,
    superfluous or of another shape."""
    config = read_json(path / "config.json")
    if config.get("_class_name") != kind.__name__:
        name = config.get("_class_name")
        raise BadModel(f"{path} holds a {name}, but a {kind.__name__} is needed")
    if meta_model.current() is not None:
        loader: Any = kind
        with quiet():
            return empty_networks.init_empty(lambda: loader.from_config(config), dtype)
    problems = ("missing_keys", "mismatched_keys", "unexpected_keys")
    return _load(kind, path, {"torch_dtype": dtype}, problems)


def text_network(kind: type[N], path: Path, dtype: torch.dtype) -> N:
    """Load a network of transformers from its folder. Raises `BadModel` for weights that are
    missing or of another shape.

    A checkpoint may hold further weights, such as those of CLIP's image encoder.
    """
    config = read_json(path / "config.json")
    if meta_model.current() is not None:
        loader: Any = kind
        with quiet():
            return empty_networks.init_empty(
                lambda: loader(loader.config_class.from_dict(config)), dtype
            )
    # `_load` reports mismatched shapes. The error of transformers would only refer to its log.
    options = {"dtype": dtype, "ignore_mismatched_sizes": True}
    return _load(kind, path, options, ("missing_keys", "mismatched_keys"))


def _load(kind: type[N], path: Path, options: Mapping[str, Any], problems: tuple[str, ...]) -> N:
    loader: Any = kind
    try:
        with quiet():
            model, info = loader.from_pretrained(
                path, output_loading_info=True, local_files_only=True, **options
            )
    except Exception as error:  # for a damaged file the libraries raise many kinds of exceptions
        if is_out_of_memory(error):
            raise
        raise _load_error(kind.__name__, path, error) from error
    for problem in problems:
        keys = sorted(_key_name(k) for k in info[problem] if "position_ids" not in _key_name(k))
        if keys:
            raise BadModel(
                f"{path} holds weights of another architecture than its config: "
                f"{len(keys)} {problem.replace('_', ' ')}, such as {keys[0]}"
            )
    return model


def _key_name(key: Any) -> str:
    """The name of a weight; transformers reports a mismatched key as (name, shape, shape)."""
    return str(key[0] if isinstance(key, tuple) else key)


def _load_error(kind: str, path: Path, error: BaseException) -> BadModel:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, pickle.UnpicklingError):
            return BadModel(
                f"the pickled weights in {path} are damaged or contain more than plain tensors, so "
                "that loading them would run code; get the model as .safetensors"
            )
        cause = cause.__cause__ or cause.__context__
    reason = " ".join(str(error).split()).split(". If you want to instead")[0][:200]
    if isinstance(error, SafetensorError) or "Unable to load weights" in reason:
        return BadModel(f"the weights in {path} are damaged or cut short ({reason})")
    if "expected shape" in reason:
        reason = f"its weights have another architecture than its config ({reason})"
    return BadModel(f"{path} cannot be loaded as a {kind}: {reason}")


def tokenizer(kind: type[T], path: Path) -> T:
    """Load a tokenizer from its folder. Raises `BadModel` if the files of its vocabulary are
    missing, for which transformers would silently use a vocabulary of its own."""
    if meta_model.current() is not None:
        return empty_networks.tokenizer(kind)
    loader: Any = kind
    files = dict(loader.vocab_files_names)
    single = files.pop("tokenizer_file", "tokenizer.json")
    if not (path / single).is_file() and not all((path / f).is_file() for f in files.values()):
        vocabulary = " and ".join(files.values())
        raise BadModel(f"{path} holds no {kind.__name__}: it has neither {single} nor {vocabulary}")
    try:
        with quiet():
            return loader.from_pretrained(path, local_files_only=True)
    except Exception as error:  # for the same reason as in _load
        reason = " ".join(str(error).split())[:120]
        raise BadModel(f"{path} holds no {kind.__name__} that can be read: {reason}") from error


def fingerprint(network: nn.Module) -> str:
    """A short hash of the names, the shapes and up to 64 values of every weight. It does not depend
    on the device, nor on the dtype if the dtype represents the values exactly. On the meta device
    it is empty."""
    if next(network.parameters()).is_meta:
        return ""
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        flat = quantization.dequantized(weight).detach().flatten()
        values = flat[:: max(1, len(flat) // 64)][:64].float().cpu().to(torch.float16)
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
