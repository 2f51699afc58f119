"""Models without weights, and models with random weights.

Owns the two contexts in which models are built from their config files alone: on torch's meta
device, to predict the memory of a run, or with random weights, to measure memory and time. Nothing
is downloaded. It refuses to know how a network is built (`empty_networks`), and single models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import nn

META = torch.device("meta")


@dataclass(slots=True)
class MetaModel:
    """The model that is built inside the current context, for a run on `device`."""

    device: torch.device
    """The device of the run."""
    networks: list[nn.Module] = field(default_factory=list)
    """All networks that a `ModelPlacement` manages."""
    activated: list[nn.Module] = field(default_factory=list)
    """The networks that were activated, in order."""
    storage: torch.device = META
    """The device on which the networks are stored: meta, unless they have random weights."""


_CURRENT: ContextVar[MetaModel | None] = ContextVar("meta_model", default=None)


@contextmanager
def use_meta_models(device: torch.device) -> Iterator[MetaModel]:
    """Inside this context models are built on torch's meta device, as for a run on `device`. They
    can be called, but their outputs have shapes and no values."""
    model = MetaModel(device)
    token = _CURRENT.set(model)
    try:
        yield model
    finally:
        _CURRENT.reset(token)


@contextmanager
def random_weights(device: torch.device, storage: torch.device) -> Iterator[None]:
    """Inside this context models are built with random weights, which are drawn on `device` and
    stored on `storage`."""
    token = _CURRENT.set(MetaModel(device, storage=storage))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current() -> MetaModel | None:
    """The model of the current context; None outside of the contexts, where models are loaded with
    their weights."""
    return _CURRENT.get()


def on_meta() -> bool:
    """Whether networks are built on the meta device."""
    model = _CURRENT.get()
    return model is not None and model.storage == META


def target_device(device: torch.device) -> torch.device:
    """The device for which the current model is built; outside of the contexts, `device`."""
    model = _CURRENT.get()
    return device if model is None else model.device


def building() -> AbstractContextManager[object]:
    """A context for the creation of modules: on the meta device if networks are built there,
    otherwise on the default device."""
    return META if on_meta() else nullcontext()
