"""The forms of a study: which answers they take."""

from typing import Any

import pytest

from recast.errors import BadCall
from recast.study.forms import FORMS, read_answer


def test_a_choice_is_one_for_the_chosen_option() -> None:
    assert read_answer("2afc", ("b", "a"), {"choice": 0}) == {"b": [1], "a": [0]}
    assert read_answer("2afc", ("b", "a"), {"choice": 1}) == {"b": [0], "a": [1]}


def test_ratings_belong_to_the_options_in_the_order_in_which_they_were_shown() -> None:
    answer = {"ratings": [[1, 2, 3], [4, 5, 1]]}
    assert read_answer("three-questions", ("b", "a"), answer) == {"b": [1, 2, 3], "a": [4, 5, 1]}
    assert read_answer("mos", ("a",), {"ratings": [[5]]}) == {"a": [5]}


@pytest.mark.parametrize("choice", [None, -1, 2, "0", 0.0, True, [0]])
def test_another_choice_is_refused(choice: Any) -> None:
    with pytest.raises(BadCall, match="the choice must be 0 or 1, got"):
        read_answer("2afc", ("a", "b"), {"choice": choice})


@pytest.mark.parametrize(
    "ratings",
    [None, [], [[3]], [[3], [6]], [[3], [0]], [[3], [3.5]], [[3], [True]], [[3], 3], "33"],
)
def test_other_ratings_are_refused(ratings: Any) -> None:
    with pytest.raises(BadCall, match="2 lists of 1 whole numbers from 1 to 5"):
        read_answer("mos", ("a", "b"), {"ratings": ratings})


def test_the_three_questions_are_those_of_dreammotion() -> None:
    names = [question.name for question in FORMS["three-questions"].questions]
    assert names == ["edit accuracy", "frame consistency", "structure and motion"]
