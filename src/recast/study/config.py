"""What a user chooses for a new study, and the text to which raters agree by default."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from recast.errors import BadCall
from recast.study.forms import Form

CONSENT = """You will watch short videos and answer the same questions about each of them. This
takes about {time}. You can stop at any time, and go on later from the same browser.

What is stored: your answers, the time that each took, and a random name such as rater-7f3a9c12. No
name, address, account or other data about you is asked for or stored.

By starting you agree that your answers are analysed and that the results may be published."""
"""The text to which raters agree by default; {time} becomes the time that they need,
such as 12 minutes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """A new study. Raises `BadCall` for a value out of range."""

    folder: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """The folder of a benchmark, whose clips and scores are used; or a folder with `prompts.csv`,
    a folder `source` and one more folder of clips for each system."""
    form: Form = "2afc"
    """2afc: two results side by side, one choice. three-questions: the results of all systems, each
    rated from 1 to 5 for edit accuracy, frame consistency, and structure and motion. mos: one
    result at a time with one opinion score from 1 to 5."""
    out: Path | None = None
    """Folder of the study; by default out/study-FOLDER."""
    title: str = "Which video is better?"
    """Title of the page that raters see."""
    ours: str | None = None
    """The system that is compared with each other one, for 2afc; by default all pairs of systems
    are compared."""
    systems: tuple[str, ...] = ()
    """The systems to judge; by default all but the source itself."""
    limit: int | None = None
    """Use only this many clips and prompts, spread evenly."""
    seeds: int = 1
    """Number of results of a benchmark to use for each clip and prompt."""
    items: int = 48
    """Number of items that each rater judges, or all if there are fewer."""
    checks: int = 3
    """Number of attention checks for each rater: the source against its frames in another order."""
    min_play: float | None = None
    """Seconds that the clips must have played before an answer is accepted; by default once to
    their end, but at most 10."""
    raters: int = 1000
    """The largest number of raters."""
    consent: Path | None = None
    """Text file that replaces the text to which raters agree. In it {time} becomes the time that
    they need, such as 12 minutes."""
    seed: int = 0
    """Seed of the order of items and of the sides."""

    def __post_init__(self) -> None:
        for name, lowest in (("limit", 1), ("seeds", 1), ("items", 1), ("checks", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise BadCall(f"`{name}` must be at least {lowest}, got {value}")
        if self.raters < 1:
            raise BadCall(f"`raters` must be at least 1, got {self.raters}")
        if self.min_play is not None and not (
            math.isfinite(self.min_play) and 0 <= self.min_play <= 600
        ):
            raise BadCall(f"`min_play` must be from 0 to 600 seconds, got {self.min_play}")
        if self.ours is not None and self.form != "2afc":
            raise BadCall(f"`ours` has no meaning with `form={self.form}`; leave it out")
        if not self.title.strip():
            raise BadCall("`title` must not be empty")
