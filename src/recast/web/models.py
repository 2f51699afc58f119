"""The models that the page offers, and what is known of each before it is loaded.

This module owns the list, the size of the clips that a model takes, and the texts about memory and
time. The numbers come from `recast doctor` and from the jobs that have run. It refuses to know
models by name.
"""

import threading
from collections.abc import Sequence
from functools import lru_cache
from statistics import median

from recast import registry
from recast.backbones.base import Defaults, Settings
from recast.errors import RecastError, UnknownName
from recast.networks import devices
from recast.pipeline import model_loading
from recast.pipeline.doctor import memory_report
from recast.pipeline.model_files import model_status
from recast.web.job_store import JobStore
from recast.web.wording import duration, sentence

_RECENT = 20
_META = threading.Lock()
"""A model on the meta device changes global state of torch, so one thread at a time builds one."""


class Models:
    """The models that a visitor may choose: those with a short name, and those of the server."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        self._more = tuple(more)

    def names(self) -> list[str]:
        """All names, those that ship with Recast first."""
        aliases = model_loading.aliases()
        shipped = [name for name in aliases if name.startswith("shapes")]
        return [*shipped, *self._more, *sorted(set(aliases) - set(shipped))]

    def check(self, name: str) -> None:
        """Raise `UnknownName` for another model: a visitor never names a folder or a hub id."""
        if name not in self.names():
            raise UnknownName("model", name, self.names())

    def choices(self) -> list[tuple[str, str]]:
        """Label and name of each model. The label says what is not on this machine yet."""
        return [(f"{name}{_remark(name)}", name) for name in self.names()]


@lru_cache(maxsize=64)
def _remark(name: str) -> str:
    aliases = model_loading.aliases()
    if name not in aliases:
        return ""
    source = registry.load("backbones", aliases[name]).ALIASES[name]
    status = model_status(source, model_loading.published(name))
    here = "weights; " in status or "needs no weights" in status
    return "" if here else " (not downloaded)"


@lru_cache(maxsize=32)
def defaults_of(name: str) -> Defaults | None:
    """Length, size and rate of the clips of a model, without loading it; None if they are not
    known before it is downloaded."""
    try:
        device = devices.device_of("auto")
        with _META, model_loading.load_on_meta(name, Settings(), device) as (model, _):
            return model.defaults
    except RecastError:
        return None


@lru_cache(maxsize=64)
def memory_lines(name: str, method: str, frames: int | None) -> tuple[str, ...]:
    """What `recast doctor` says about the memory of a run, the important lines only."""
    try:
        with _META:
            rows = list(memory_report(name, Settings(), [method], size=(frames, None, None)))
    except RecastError as error:
        return (sentence(str(error)),)
    wanted = ("setting", "all weights", "memory", f"a run of {method}", "sampling alone", method)
    found = {topic: text for topic, text in rows if topic in wanted}
    if f"a run of {method}" in found:
        found.pop("sampling alone", None)
    return tuple(f"{label}: {sentence(text)}" for label, text in found.items())


def time_line(store: JobStore, name: str, method: str) -> str:
    """How long jobs like this one took on this server."""
    seconds = [
        job.finished - job.started
        for job in store.jobs(states=("done",), limit=200)
        if job.started and job.finished and job.request.get("backbone") == name
        if job.result.get("method") == method
    ][:_RECENT]
    if not seconds:
        return "Time: no run of this method and model has finished here yet."
    return (
        f"Time: the last {len(seconds)} runs took {duration(median(seconds))} each (median)."
        if len(seconds) > 1
        else f"Time: the last run took {duration(seconds[0])}."
    )
