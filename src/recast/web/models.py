"""The models that the page offers, and what is known of each before it is loaded.

This module owns the list, the size of the clips that a model takes, the words that it knows, and
the texts about memory and time. The numbers come from `recast doctor` and from the jobs that have
run. It refuses to know models by name.
"""

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import median

import recast
from recast import registry
from recast.backbones.base import Defaults, Settings
from recast.errors import RecastError, UnknownName
from recast.networks import devices
from recast.pipeline import model_loading
from recast.pipeline.config import DEFAULT_BACKBONE
from recast.pipeline.doctor import memory_report
from recast.pipeline.model_files import model_status
from recast.web.job_store import JobStore
from recast.web.wording import duration, sentence

_ASSETS = Path(recast.__file__).parent / "assets"
_RECENT = 20
_META = threading.Lock()
"""A model on the meta device changes global state of torch, so one thread at a time builds one."""
PromptCheck = Callable[[str], list[str]]


class Models:
    """The models that a visitor may choose: those with a short name, and those of the server."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        self._more = tuple(more)

    def names(self) -> list[str]:
        """All names: those that ship with Recast, those of the server, those that are on this
        machine, and the rest."""
        known = model_loading.aliases()
        shipped = sorted(filter(_ships, known), key=lambda name: name != DEFAULT_BACKBONE)
        rest = sorted(set(known) - set(shipped), key=lambda name: (bool(_remark(name)), name))
        return [*shipped, *self._more, *rest]

    def check(self, name: str) -> None:
        """Raise `UnknownName` for another model: a visitor never names a folder or a hub id."""
        if name not in self.names():
            raise UnknownName("model", name, self.names())

    def choices(self) -> list[tuple[str, str]]:
        """Label and name of each model. The label says what is not on this machine yet."""
        return [(f"{name}{_remark(name)}", name) for name in self.names()]


def _source(alias: str) -> str:
    """The folder or the hub id of a model with a short name."""
    module = registry.load("backbones", model_loading.aliases()[alias])
    return str(module.ALIASES[alias])


def _ships(alias: str) -> bool:
    return Path(_source(alias)).is_relative_to(_ASSETS)


@lru_cache(maxsize=64)
def _remark(name: str) -> str:
    if name not in model_loading.aliases():
        return ""
    status = model_status(_source(name), model_loading.published(name))
    here = "weights; " in status or "needs no weights" in status
    return "" if here else " (not downloaded)"


@lru_cache(maxsize=64)
def description(name: str) -> str:
    """One line about a model: what is known of its alias, or the heading of the card in its folder,
    or else what the file says that loads it."""
    if name in model_loading.aliases():
        return model_loading.describe_alias(name)
    try:
        card = Path(model_loading.source_of(name)).expanduser() / "README.md"
        lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
        heading = next((line[2:] for line in lines if line.startswith("# ")), "")
        text = model_loading.backbone_module(name, download=False).__doc__ or ""
    except (RecastError, OSError, ValueError):
        return ""
    return heading or text.strip().partition("\n")[0]


@lru_cache(maxsize=32)
def _without_weights(name: str) -> tuple[Defaults | None, PromptCheck | None]:
    """The defaults of a model and its check of prompts, without its weights; None if they are not
    known before it is downloaded."""
    try:
        device = devices.device_of("auto")
        with _META, model_loading.load_on_meta(name, Settings(), device) as (model, _):
            return model.defaults, model.check_prompt
    except RecastError:
        return None, None


def defaults_of(name: str) -> Defaults | None:
    """Length, size and rate of the clips of a model, without loading it; None if they are not
    known before it is downloaded."""
    return _without_weights(name)[0]


def prompt_notes(name: str, prompts: Sequence[str]) -> list[str]:
    """What a model has to say about prompts before it is loaded: the words that it does not know,
    or that a prompt is too long."""
    check = _without_weights(name)[1]
    if check is None:
        return []
    notes = []
    for prompt in filter(str.strip, prompts):
        try:
            notes += check(prompt)
        except RecastError as error:
            notes.append(str(error))
    return [sentence(note) for note in dict.fromkeys(notes)]


@lru_cache(maxsize=64)
def forecast_lines(name: str, method: str) -> tuple[str, ...]:
    """What `recast doctor` says about the memory and the time of a run: the important lines."""
    try:
        with _META:
            rows = dict(memory_report(name, Settings(), [method]))
    except RecastError as error:
        return (sentence(str(error)),)
    if "not run" in rows.get(method, ""):
        return (f"{method} {rows[method]}. Choose another method or another model.",)
    setting = rows["setting"].partition(", ")[2].replace("x", "×", 1)
    weights = "" if not _remark(name) else "; they are downloaded when the first job starts"
    lines = [
        f"Clip: {sentence(setting)}",
        f"Weights: {rows['all weights']}{weights}.",
        f"Memory: {_memory_text(rows, method)}",
    ]
    if f"time of {method}" in rows:
        lines.append(f"Forecast of the time: {rows[f'time of {method}']}.")
    return tuple(lines)


def _memory_text(rows: dict[str, str], method: str) -> str:
    """The memory of a run, what this machine has, and whether that is enough."""
    text = rows.get(f"a run of {method}", rows["sampling alone"])
    needs, separator, verdict = text.rpartition(": ")
    if not separator:
        return sentence(text)
    plain = needs.partition("; ")[0] if verdict == "fits" else needs
    return sentence(f"{plain}; this machine has {rows['memory']}: {verdict}")


def time_line(store: JobStore, name: str, method: str) -> str:
    """How long jobs like this one took on this server."""
    seconds = [
        job.finished - job.started
        for job in store.jobs(states=("done",), limit=200)
        if job.started and job.finished and job.request.get("backbone") == name
        if job.result.get("method") == method
    ][:_RECENT]
    if not seconds:
        return "On this server: no run of this method and model has finished yet."
    return (
        f"On this server: the last {len(seconds)} such runs took {duration(median(seconds))} each "
        "(median)."
        if len(seconds) > 1
        else f"On this server: the last such run took {duration(seconds[0])}."
    )
