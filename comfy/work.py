"""Work inside ComfyUI: progress, previews, interrupts, and gradients.

ComfyUI executes nodes in torch's inference mode. There no gradient can be computed, and the weights
of a model that is loaded there cannot be used by a method that needs gradients. So every node that
computes does its work in `recast_mode`.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import comfy.model_management
import torch
from comfy_api.latest import ComfyAPISync
from PIL import Image

from recast import RecastError
from recast.events import Event, Note, Preview, Step

T = TypeVar("T")
Decode = Callable[[Any], Image.Image]
"""Makes a picture of the latents of a preview."""
_LOG = logging.getLogger(__name__)


@contextmanager
def recast_mode() -> Iterator[None]:
    """Outside inference mode; and a call that was interrupted before does not begin."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    with torch.inference_mode(False):
        yield


class Progress:
    """Shows the events of a job in ComfyUI, to be called with each of them. It raises ComfyUI's
    exception when the user interrupts the workflow, which stops the job."""

    def __init__(self, decode: Decode | None = None, every: int = 0) -> None:
        """A preview is decoded at the first estimate after each `every` steps; 0 means none."""
        self._api = ComfyAPISync()
        self._decode, self._every, self._due = decode, every, every
        self._picture: Image.Image | None = None
        self.notes: list[str] = []
        """The notes of the job so far."""

    def __call__(self, event: Event) -> None:
        """Show one event."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        match event:
            case Step():
                picture, self._picture = self._picture, None
                self._api.execution.set_progress(event.index, event.total, preview_image=picture)
            case Preview() if self._decode and self._every and event.index >= self._due:
                self._due = (event.index // self._every + 1) * self._every
                self._picture = self._decode(event.latents)
            case Note():
                self.notes.append(event.text)
                _LOG.info("Recast: %s", event.text)


def problem_of(check: Callable[[], object]) -> bool | str:
    """The answer of a node's `validate_inputs`: True, or the message of the check's error."""
    try:
        check()
    except RecastError as error:
        return str(error)
    return True


def one_line(text: str) -> str:
    """A text of a text box as one line: line breaks become blanks."""
    return " ".join(text.split())
