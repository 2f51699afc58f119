"""The forms of a study: what a rater sees and is asked, and what an answer to it may be.

- `2afc`: two-alternative forced choice. The source, then two results side by side, and one
  question (DMT, arXiv 2311.17009, section 5.1).
- `three-questions`: the source, then the results of all systems, each rated from 1 to 5 for edit
  accuracy, frame consistency, and structure and motion preservation (DreamMotion, arXiv 2403.12002,
  supplementary material, section C; the paper does not print its scale).
- `mos`: the source, then one result with an opinion score from 1 to 5, with the words of ITU-T
  P.910 (absolute category rating).

This module refuses to know clips, raters and statistics. An answer is a `Scores`: for each option
one number for each question. A choice is the number 1 for the chosen option and 0 for the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from recast.errors import BadCall

Form = Literal["2afc", "three-questions", "mos"]
Scores = Mapping[str, Sequence[int]]
CHOICE: Form = "2afc"
LOWEST, HIGHEST = 1, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question, with its short name for the columns of a table."""

    name: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FormText:
    """What the page of a form says."""

    questions: tuple[Question, ...]
    labels: tuple[str, ...]
    """The words for the numbers 1 to 5; empty for a choice."""
    per_item: int | None
    """The number of systems that a rater sees at once; None for all of them."""


_QUALITY = ("bad", "poor", "fair", "good", "excellent")
FORMS: Mapping[Form, FormText] = {
    "2afc": FormText(
        questions=(
            Question(
                name="preference",
                text="Which video matches the text better while keeping the motion of the "
                "original?",
            ),
        ),
        labels=(),
        per_item=2,
    ),
    "three-questions": FormText(
        questions=(
            Question(
                name="edit accuracy",
                text="Edit accuracy: how well does the video show what the text says?",
            ),
            Question(
                name="frame consistency",
                text="Frame consistency: how smooth and steady is the video from frame to frame?",
            ),
            Question(
                name="structure and motion",
                text="Structure and motion: how well does the video keep the layout and the "
                "motion of the original?",
            ),
        ),
        labels=_QUALITY,
        per_item=None,
    ),
    "mos": FormText(
        questions=(
            Question(
                name="opinion",
                text="How good is this video, as one that shows the text and keeps the motion of "
                "the original?",
            ),
        ),
        labels=_QUALITY,
        per_item=1,
    ),
}


def read_answer(form: Form, shown: Sequence[str], content: Mapping[str, Any]) -> Scores:
    """The scores in what a page sent, for the options in the order in which they were `shown`.

    A choice is `{"choice": 0}`, the index of the option. Ratings are `{"ratings": [[4, 5, 3]]}`,
    one list for each option with one number for each question. Raises `BadCall` for everything
    else.
    """
    if form == CHOICE:
        choice = content.get("choice")
        if not is_whole(choice) or not 0 <= choice < len(shown):
            raise BadCall(f"the choice must be 0 or {len(shown) - 1}, got {choice!r}")
        return {option: [int(index == choice)] for index, option in enumerate(shown)}
    ratings, questions = content.get("ratings"), len(FORMS[form].questions)
    if (
        not isinstance(ratings, list)
        or len(ratings) != len(shown)
        or not all(_is_ratings(line, questions) for line in ratings)
    ):
        raise BadCall(
            f"the ratings must be {len(shown)} lists of {questions} whole numbers from {LOWEST} "
            f"to {HIGHEST}, got {str(ratings)[:80]}"
        )
    return dict(zip(shown, ratings, strict=True))


def _is_ratings(line: Any, questions: int) -> bool:
    is_list = isinstance(line, list) and len(line) == questions
    return is_list and all(is_whole(value) and LOWEST <= value <= HIGHEST for value in line)


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value from JSON is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)
