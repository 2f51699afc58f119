"""The messages of the libraries that load models.

Owns the log levels, warnings and progress bars of diffusers, transformers and huggingface_hub while
Recast loads a model, and the messages of what they import then. It refuses to know what is loaded.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers.utils import logging as transformers_logging

from recast.shared_context import SharedContext

_LOGGERS = ("diffusers", "transformers", "huggingface_hub", "torchao", "torch.utils._pytree")
"""When torchao is imported, it and torch warn about kernels for other devices and about enums."""


def quiet(*, bars: bool = False) -> AbstractContextManager[None]:
    """Inside this context these libraries do not log or warn, and they show progress bars only with
    `bars`. The caller turns every problem into an exception of Recast."""
    return _WITHOUT_MESSAGES if bars else _WITHOUT_MESSAGES_AND_BARS


@contextmanager
def _without_messages() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _without_messages_and_bars() -> Iterator[None]:
    hub_bars = not are_progress_bars_disabled()
    transformers_bars = transformers_logging.is_progress_bar_enabled()
    diffusers_bars = diffusers_logging.is_progress_bar_enabled()
    with _WITHOUT_MESSAGES:
        try:
            transformers_logging.disable_progress_bar()  # also disables the hub's bars
            diffusers_logging.disable_progress_bar()
            yield
        finally:
            if transformers_bars:
                transformers_logging.enable_progress_bar()
            if diffusers_bars:
                diffusers_logging.enable_progress_bar()
            (enable_progress_bars if hub_bars else disable_progress_bars)()


_WITHOUT_MESSAGES = SharedContext(_without_messages)
_WITHOUT_MESSAGES_AND_BARS = SharedContext(_without_messages_and_bars)
