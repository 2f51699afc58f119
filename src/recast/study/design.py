"""The design of a study: one JSON file that says what is shown, what is asked, and how often.

This module owns the file `design.json` in the folder of a study, and where the other files of the
folder are. It refuses to know raters and answers. Clips have names that say nothing about the
system; only this file, which is never served, knows which clip is whose.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from recast.errors import BadCall, UnknownName, reason_of
from recast.media.atomic_files import atomic
from recast.study.forms import FORMS, Form, Question

FORMAT = "recast-study-1"
DESIGN, CLIPS, ANSWERS, REPORT = "design.json", "clips", "answers.sqlite", "report"
SOURCE, SHUFFLED = "source", "shuffled"
"""The options of an attention check: the source itself, and its frames in another order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A source clip and a prompt, with what metrics say about the result of each system."""

    clip: str
    """Name of the source clip."""
    prompt: str
    seed: int = 0
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """For each system, the values of the metrics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """What a rater judges at once: a source, a text, and one option or more."""

    case: int
    """Index of the case."""
    text: str
    """The text that the options should match."""
    source: str
    """File name of the source clip."""
    options: Mapping[str, str]
    """For each option its file name. An option is a system, or SOURCE and SHUFFLED in a check."""
    min_play: float
    """Seconds that the clips must have played before an answer is accepted."""
    check: bool = False
    """Whether this is an attention check."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """A study. `read` and `write` are the only ways to and from its file."""

    title: str
    form: Form
    seed: int
    """Of the order of items and of the sides."""
    consent: str
    """What a rater agrees to, as plain text with empty lines between paragraphs."""
    questions: tuple[Question, ...]
    labels: tuple[str, ...]
    systems: tuple[str, ...]
    ours: str | None
    """The system that is compared with each other one; None if all pairs are compared."""
    items_per_rater: int
    checks_per_rater: int
    max_raters: int
    metrics: Mapping[str, str]
    """For each metric which values are better: "higher", "lower" or "nearer to 1"."""
    cases: tuple[Case, ...]
    items: tuple[Item, ...]
    simulated: bool = False
    """Whether the answers come from a simulated panel; the report then says so."""

    @property
    def judged(self) -> list[int]:
        """The indices of the items that are no checks."""
        return [index for index, item in enumerate(self.items) if not item.check]

    @property
    def checks(self) -> list[int]:
        """The indices of the attention checks."""
        return [index for index, item in enumerate(self.items) if item.check]

    @property
    def clips(self) -> set[str]:
        """The file names of all clips."""
        return {name for item in self.items for name in (item.source, *item.options.values())}


def write(folder: Path, design: Design) -> Path:
    """Write the design into the folder of a study."""
    content = {"format": FORMAT, **asdict(design)}
    with atomic(folder / DESIGN) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    return folder / DESIGN


def read(folder: Path) -> Design:
    """Read the design of a study. Raises `BadCall` for a folder or file that is not one."""
    path = folder / DESIGN
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadCall(
            f"{folder} is not the folder of a study, because it has no {DESIGN}; make one with "
            "recast study new"
        ) from error
    except (OSError, ValueError) as error:
        raise BadCall(f"{path} cannot be read as JSON ({reason_of(error)})") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise BadCall(f"{path} has not the format {FORMAT} that this version of Recast reads")
    try:
        design = _record(Design, content, "")
    except (TypeError, AttributeError) as error:
        raise BadCall(f"{path} is not a valid design ({reason_of(error)})") from error
    _check(design, path)
    return design


_NESTED: Mapping[str, Any] = {"questions": Question, "cases": Case, "items": Item}


def _record(kind: Any, content: Mapping[str, Any], place: str) -> Any:
    """An instance of a dataclass from its JSON. Raises `BadCall`, `TypeError`."""
    known = {one.name for one in fields(kind)}
    for key in content:
        if key not in known:
            raise BadCall(f"{DESIGN}{place}: {UnknownName('key', key, known)}")
    values = dict(content)
    for key, value in content.items():
        if kind is Design and key in _NESTED:
            values[key] = tuple(_record(_NESTED[key], one, f", {key}") for one in value)
        elif isinstance(value, list):
            values[key] = tuple(value)
    return kind(**values)


def _check(design: Design, path: Path) -> None:
    """Raise `BadCall` for a design that was changed by hand into one that cannot be served."""
    if design.form not in FORMS:
        raise BadCall(f"{path}: {UnknownName('form', design.form, FORMS)}")
    if not design.judged:
        raise BadCall(f"{path} has no items, so there is nothing to judge")
    for item in design.items:
        if not 0 <= item.case < len(design.cases):
            raise BadCall(f"{path}: an item names the case {item.case}, which does not exist")
    for name in design.clips:
        if Path(name).name != name or name.startswith("."):
            raise BadCall(f"{path}: {name!r} is not the name of a file in the folder {CLIPS}")
        if not (path.parent / CLIPS / name).is_file():
            raise BadCall(f"{path} names the clip {name}, which is not in the folder {CLIPS}")
