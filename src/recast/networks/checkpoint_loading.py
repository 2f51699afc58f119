"""Loading the parts of a diffusers-format model, with errors that a person can act on.

Shared by every backbone that lives in diffusers' folder layout. Safetensors come first; pickled
weights go through torch's weights-only loader, which runs no code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as transformers_logging

from recast.backbones.base import Defaults, Settings
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadCall, BadModel
from recast.networks import meta_model, placement, quantization

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

INDEX = "model_index.json"
N = TypeVar("N", bound=nn.Module)
T = TypeVar("T")


@contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """Within the block the loading libraries neither log nor warn, nor, without `bars`, draw
    progress bars: every problem becomes an error of ours, and the command line draws its own.
    """
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    hub, ours = not are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()
    theirs = diffusers_logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            if not bars:
                transformers_logging.disable_progress_bar()  # and the hub's with it
                diffusers_logging.disable_progress_bar()
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if ours:
                transformers_logging.enable_progress_bar()
            if theirs:
                diffusers_logging.enable_progress_bar()
            (enable_progress_bars if hub else disable_progress_bars)()


def folder(source: str, parts: Sequence[str] = ()) -> Path:
    """The local folder of a model: itself, or the hub's, downloaded or cached.

    What diffusers itself knows as no pipeline is downloaded by its `parts`: subfolders, or files.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise BadModel(f"{source} is a file; a model is a folder with {INDEX}")
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise BadModel(f"there is no model folder {source}")
    if meta_model.current() is not None:
        return meta_model.cached(source)
    from diffusers import DiffusionPipeline

    try:
        with quiet(bars=True):
            return _downloaded(source, parts) if parts else Path(DiffusionPipeline.download(source))
    except Exception as error:  # which classes the hub's client raises changes with its version
        reason = str(error).strip().split("\n")[0]
        raise BadModel(
            f"{source} is neither a folder nor in the local cache, and cannot be downloaded "
            f"({type(error).__name__}: {reason[:160]}); if this machine is offline, copy the "
            "model's folder here and pass its path"
        ) from error


def _downloaded(source: str, parts: Sequence[str]) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    left_out = ["*.fp16.*", "*.msgpack", "*.h5"]
    try:
        if any(name.endswith(".safetensors") for name in HfApi().list_repo_files(source)):
            left_out.append("*.bin")
    except Exception:  # offline, which the next call says, unless all is cached
        pass
    wanted = [INDEX, *(part if "." in part else f"{part}/*" for part in parts)]
    return Path(snapshot_download(source, allow_patterns=wanted, ignore_patterns=left_out))


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a folder says of itself in `recast.json`."""

    defaults: Defaults | None = None
    words: frozenset[str] = frozenset()
    """All that the model was trained on; empty where nobody counted them."""


def card(path: Path) -> Card:
    """The card at a path, empty if there is none."""
    if not path.exists():
        return Card()
    content = json_of(path)
    told = content.get("defaults")
    try:
        defaults = None if told is None else Defaults(**told)
        return Card(defaults=defaults, words=frozenset(content.get("words", ())))
    except TypeError as error:
        raise BadModel(f"{path} does not say defaults and words as it should ({error})") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A model's folder, of which only what is small has been read: whoever waits for gigabytes
    should not wait for an error."""

    name: str
    folder: Path
    card: Card
    device: torch.device
    dtype: torch.dtype

    def scheduler(self) -> dict[str, Any]:
        """The scheduler's config, of a kind that is known."""
        config = json_of(self.folder / "scheduler" / "scheduler_config.json")
        from_diffusers(config)
        return config

    def tokenizer(self, kind: type[T], part: str = "tokenizer") -> T:
        """As the function."""
        return tokenizer(kind, self.folder / part)

    def network(self, kind: type[N], part: str, dtype: torch.dtype | None = None) -> N:
        """As the function, in the model's precision unless another is given."""
        return network(kind, self.folder / part, dtype or self.dtype)

    def text_network(self, kind: type[N], part: str = "text_encoder") -> N:
        """As the function."""
        return text_network(kind, self.folder / part, self.dtype)


def opened(
    source: str,
    settings: Settings,
    aliases: Mapping[str, str],
    pipelines: frozenset[str],
    best: torch.dtype = torch.float16,
    parts: Sequence[str] = (),
) -> Opened:
    """The folder of an alias, a hub id or a path; `best` is the precision on a GPU, `parts` as for
    `folder`. Raises `BadModel`, `BadCall`."""
    on = device(settings.device)
    precision = dtype(settings.dtype, on, best)
    placement.check(settings, on)
    path = folder(aliases.get(source, source), parts)
    check_index(path, pipelines)
    return Opened(
        name=given_name(source, aliases),
        folder=path,
        card=card(path / "recast.json"),
        device=on,
        dtype=precision,
    )


def check_index(path: Path, pipelines: frozenset[str]) -> None:
    """Raise `BadModel` unless the folder says that it is one of these pipelines."""
    if not (path / INDEX).is_file():
        raise BadModel(f"{path} is not a model folder of diffusers: it has no {INDEX}")
    made_for = json_of(path / INDEX).get("_class_name")
    if made_for not in pipelines:
        wanted = ", ".join(sorted(pipelines))
        raise BadModel(f"{path} holds a {made_for}, and this backbone reads {wanted}")


def given_name(source: str, aliases: Mapping[str, str]) -> str:
    """What a model that was loaded is called: its alias, else the last part of its id or folder."""
    path = Path(source).expanduser()
    name = source if source in aliases or not path.is_dir() else path.resolve().name
    return name.split("/")[-1]


def wrapped_name(pipeline: DiffusionPipeline) -> str:
    """What the model of a loaded pipeline is called: the last part of where it came from."""
    return Path(str(pipeline.config.get("_name_or_path") or "wrapped")).name


def json_of(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder."""
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
    """Load one of diffusers' models, refusing weights that do not fit it exactly."""
    named = json_of(path / "config.json").get("_class_name")
    if named != kind.__name__:
        raise BadModel(f"{path} holds a {named}, and a {kind.__name__} is needed")
    if meta_model.current() is not None:
        made: Any = kind
        with quiet():
            return meta_model.init_empty(
                lambda: made.from_config(json_of(path / "config.json")), dtype
            )
    strange = ("missing_keys", "mismatched_keys", "unexpected_keys")
    return _load(kind, path, {"torch_dtype": dtype}, strange)


def text_network(kind: type[N], path: Path, dtype: torch.dtype) -> N:
    """Load one of transformers' models, refusing weights that do not fill it exactly.

    A checkpoint may hold more than the part that is wanted: CLIP's image half, a projection.
    """
    config = json_of(path / "config.json")
    if meta_model.current() is not None:
        made: Any = kind
        with quiet():
            return meta_model.init_empty(lambda: made(made.config_class.from_dict(config)), dtype)
    # Mismatches are told by us; transformers' own error only points at a report that it logs.
    options = {"dtype": dtype, "ignore_mismatched_sizes": True}
    return _load(kind, path, options, ("missing_keys", "mismatched_keys"))


def _load(kind: type[N], path: Path, options: Mapping[str, Any], problems: tuple[str, ...]) -> N:
    loader: Any = kind
    try:
        with quiet():
            model, info = loader.from_pretrained(
                path, output_loading_info=True, local_files_only=True, **options
            )
    except Exception as error:  # a damaged config or file can make the libraries raise anything
        if _is_memory(error):
            raise
        raise _unloadable(kind.__name__, path, error) from error
    for problem in problems:
        keys = sorted(_name(key) for key in info[problem] if "position_ids" not in _name(key))
        if keys:
            raise BadModel(
                f"{path} holds weights of another architecture than its config: "
                f"{len(keys)} {problem.replace('_', ' ')}, such as {keys[0]}"
            )
    return model


def _name(key: Any) -> str:
    """The weight's name; a mismatched key comes as (name, shape, shape)."""
    return str(key[0] if isinstance(key, tuple) else key)


def _unloadable(kind: str, path: Path, error: BaseException) -> BadModel:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, pickle.UnpicklingError):
            return BadModel(
                f"{path} holds pickled weights that are damaged or more than plain tensors, and "
                "loading such would run code; get the model as .safetensors"
            )
        cause = cause.__cause__ or cause.__context__
    reason = " ".join(str(error).split()).split(". If you want to instead")[0][:200]
    if isinstance(error, SafetensorError) or "Unable to load weights" in reason:
        return BadModel(f"{path} holds weights that are damaged or cut short ({reason})")
    if "expected shape" in reason:
        reason = f"its weights are of another architecture than its config ({reason})"
    return BadModel(f"{path} cannot be loaded as a {kind}: {reason}")


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "DefaultCPUAllocator" in str(error)
    )


def tokenizer(kind: type[T], path: Path) -> T:
    """Load a tokenizer. One without its vocabulary is refused: transformers would make it up."""
    if meta_model.current() is not None:
        return meta_model.tokenizer(kind)
    loader: Any = kind
    files = dict(loader.vocab_files_names)
    whole = files.pop("tokenizer_file", "tokenizer.json")
    if not (path / whole).is_file() and not all((path / file).is_file() for file in files.values()):
        wanted = " and ".join(files.values())
        raise BadModel(f"{path} holds no {kind.__name__}: it has neither {whole} nor {wanted}")
    try:
        with quiet():
            return loader.from_pretrained(path, local_files_only=True)
    except Exception as error:  # as in _load
        reason = " ".join(str(error).split())[:120]
        raise BadModel(f"{path} holds no {kind.__name__} that can be read: {reason}") from error


def device(name: str) -> torch.device:
    """The device of that name; "auto" takes cuda, then mps, then cpu."""
    if meta_model.on_meta():
        return meta_model.META
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there["cpu"] = True
    if name == "auto":
        name = next(kind for kind, usable in there.items() if usable)
    if not there[name]:
        usable = ", ".join(kind for kind, yes in there.items() if yes)
        raise BadCall(f"device {name!r} is not there; this machine has {usable}")
    return torch.device(name)


def dtype(name: str, on: torch.device, elsewhere: torch.dtype = torch.float16) -> torch.dtype:
    """The networks' precision; "auto" is float32 on the CPU and that of the model elsewhere."""
    on = meta_model.computes_on(on)
    if name == "auto":
        return torch.float32 if on.type == "cpu" else elsewhere
    kinds = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name == "float16" and on.type == "cpu":
        raise BadCall("dtype float16 is too slow on the CPU; use float32 or bfloat16")
    return kinds[name]


def check_vocabulary(tokenizer: Any, text_encoder: Any) -> None:
    """Raise `BadModel` for a tokenizer that says more than the text encoder knows."""
    known, said = text_encoder.config.vocab_size, len(tokenizer)
    if said > known:
        raise BadModel(
            f"the tokenizer has {said} tokens and the text encoder knows {known}; they are of two "
            "different models"
        )


def check_length(tokenizer: Any, prompt: str, most: int, name: str) -> None:
    """Raise `BadCall` for a prompt of more tokens than the model called `name` takes."""
    # Quietly: what the tokenizer would say of the length, the error says better.
    count = len(tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids)
    if count > most:
        raise BadCall(
            f"the prompt has {count} tokens, and the text encoder of {name} takes {most}; "
            f"shorten {prompt[:40]!r}…"
        )


def token_spans(tokenizer: Any, words: Sequence[str], start: int) -> list[slice]:
    """Which tokens of a text belong to each of its words, if the first begins at `start`."""
    places = []
    for word in words:
        end = start + len(tokenizer(word, add_special_tokens=False).input_ids)
        places.append(slice(start, end))
        start = end
    return places


def fingerprint(network: nn.Module) -> str:
    """A short hash of names, shapes and 64 values of every weight, the same in any dtype that
    holds the values and on any device; empty for an outline."""
    if next(network.parameters()).is_meta:
        return ""
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        flat = quantization.widened(weight).detach().flatten()
        values = flat[:: max(1, len(flat) // 64)][:64].float().cpu().to(torch.float16)
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
