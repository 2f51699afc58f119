"""Every error that Recast raises on purpose, and the exit code that the command line gives it.

An error message is one sentence that names the value, the rule it broke and what would be right.
Anything that is not a `RecastError` is a defect of Recast.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class RecastError(Exception):
    """Base of all errors that a user can act on. The command line exits with `exit_code`."""

    exit_code = 1


class BadCall(RecastError):
    """The call itself is wrong: an unknown name, an impossible setting, an empty prompt."""

    exit_code = 2


class UnknownName(BadCall):
    """A name that is not in a list of known names; the message offers the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        choices = sorted(known)
        near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(choices)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")
        self._made_of = (kind, name, choices)

    def __reduce__(self) -> tuple[type, tuple[str, str, list[str]]]:
        """For whoever sends it to another process: exceptions are made anew of their message."""
        return UnknownName, self._made_of


class BadClip(BadCall):
    """A source video that cannot be read, or does not suit the model."""


class OneFrame(BadClip):
    """A clip of a single frame, where motion needs two."""


class BadMotion(BadCall):
    """A motion file that is damaged, foreign, or was made for another model."""


class BadModel(BadCall):
    """Weights that cannot be found, read or used."""


class RunFailed(RecastError):
    """The call was right, yet the work could not be finished."""


class OutOfMemory(RunFailed):
    """The device's memory did not suffice; the message names the settings that lower the need."""


class NoSpace(RunFailed):
    """The disk is full; nothing half-written was left behind."""


class NotFinite(RunFailed):
    """NaN or infinity appeared in the latents; the message names the noise level."""


@contextmanager
def missing_extra(name: str) -> Iterator[None]:
    """Turn a failed import within the body into `BadCall`, which says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise BadCall(
            f"this needs {error.name}, which is not installed; in Recast's own folder, "
            f"pip install '.[{name}]' brings it"
        ) from error
