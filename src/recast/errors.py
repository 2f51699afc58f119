"""All errors that Recast raises on purpose, each with the exit code of the command line.

An error message is one sentence that names the value, the rule that it breaks, and what would be
right. A field of a call stands in backticks, as in "`frames` must be at least 1, got 0", and the
command line prints it as a flag. Any exception that is not a `RecastError` is a defect of Recast.
"""

import dataclasses
import difflib
import math
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class RecastError(Exception):
    """Base of all errors that a user can act on. The command line exits with `exit_code`."""

    exit_code = 1


class BadCall(RecastError):
    """The call itself is wrong: an unknown name, an impossible setting, an empty prompt."""

    exit_code = 2


class UnknownName(BadCall):
    """A name that is not in a list of known names; the message offers the most similar ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        choices = sorted(known)
        near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
        if near:
            first = ", ".join(near[:-1])
            hint = f"did you mean {first} or {near[-1]}?" if first else f"did you mean {near[0]}?"
        else:
            hint = f"choose from {', '.join(choices)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")
        self._arguments = (kind, name, choices)

    def __reduce__(self) -> tuple[type, tuple[str, str, list[str]]]:
        """Pickle the arguments; by default, only the message of an exception is pickled."""
        return UnknownName, self._arguments


class BadClip(BadCall):
    """A clip or mask that cannot be read, or that does not fit the call."""


class OneFrame(BadClip):
    """A clip of a single frame; a motion needs at least two."""


class BadMotion(BadCall):
    """A motion file that is damaged, or that belongs to another program, model or method."""


class BadModel(BadCall):
    """A model whose weights or code cannot be found, read or used."""


class RunFailed(RecastError):
    """The call was right, but the work could not be finished."""


class OutOfMemory(RunFailed):
    """The device has too little memory; the message names the settings that lower the need."""


class WorkerLost(RunFailed):
    """The process that did the work was lost with its machine or alone; the work can be resumed."""


class NoSpace(RunFailed):
    """The disk is full; no partial file was left behind."""


class NotFinite(RunFailed):
    """NaN or infinity appeared in the latents; the message names the noise level."""


def check_finite(config: Any) -> None:
    """Raise `BadCall` if a field of a dataclass is a number that is not finite, or a tuple that
    has one."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise BadCall(f"`{field.name}` must be a finite number, got {number}")


@contextmanager
def missing_extra(name: str) -> Iterator[None]:
    """Turn a failed import in the body into `BadCall`, which says how to install the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise BadCall(
            f"this needs {error.name}, which is not installed; install it with "
            f"pip install '.[{name}]' in Recast's own folder"
        ) from error


def reason_of(error: BaseException) -> str:
    """The message of another library's exception as one line of at most 160 characters, to be
    quoted in a message."""
    return textwrap.shorten(str(error), 160, placeholder=" …")
