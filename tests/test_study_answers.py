"""The file of answers: nothing is lost, and there is one answer for each rater and item."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from recast.errors import BadCall, RunFailed
from recast.study.answers import Answers
from recast.study.assignment import Shown

TWO = [Shown(5, ("b", "a")), Shown(3, ("a", "b"))]


def two(counts: Mapping[int, int], number: int) -> list[Shown]:
    """The same two items for every rater."""
    return TWO


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    return Answers(tmp_path / "answers.sqlite")


def test_a_rater_answers_all_items_in_order(answers: Answers) -> None:
    code = answers.join(two, 10, now=100)
    rater = answers.rater(code)
    assert rater is not None
    assert (rater.number, rater.answered, rater.total) == (0, 0, 2)
    assert answers.open_next(0, now=101) == (0, TWO[0])
    answers.add(0, 0, {"b": [1], "a": [0]}, min_play=2, now=104.5)
    assert answers.open_next(0, now=105) == (1, TWO[1])
    answers.add(0, 1, {"a": [0], "b": [1]}, min_play=2, now=107)
    assert answers.open_next(0, now=108) is None
    one, other = answers.judgments()
    assert (one.rater, one.item, one.shown) == (rater.pseudonym, 5, ("b", "a"))
    assert (one.scores, one.seconds) == ({"b": [1], "a": [0]}, 3.5)
    assert (other.item, other.scores, other.seconds) == (3, {"a": [0], "b": [1]}, 2)
    assert [one.answered for one in answers.raters()] == [2]


def test_no_second_answer_and_no_answer_to_another_item(answers: Answers) -> None:
    answers.join(two, 10, now=0)
    scores = {"b": [1], "a": [0]}
    with pytest.raises(RunFailed, match="is not the one to answer now"):
        answers.add(0, 0, scores, 0, now=1)  # it was not opened
    answers.open_next(0, now=1)
    with pytest.raises(RunFailed, match="is not the one to answer now"):
        answers.add(0, 1, scores, 0, now=2)
    answers.add(0, 0, scores, 0, now=2)
    with pytest.raises(RunFailed, match="has an answer already"):
        answers.add(0, 0, {"b": [0], "a": [1]}, 0, now=3)
    assert [one.scores for one in answers.judgments()] == [scores]


def test_an_answer_before_the_minimum_play_is_refused(answers: Answers) -> None:
    """The time begins when the item was opened last."""
    answers.join(two, 10, now=0)
    answers.open_next(0, now=10)
    answers.open_next(0, now=20)
    with pytest.raises(RunFailed, match=r"must play for 2\.5 seconds"):
        answers.add(0, 0, {"b": [1], "a": [0]}, 2.5, now=22.4)
    answers.add(0, 0, {"b": [1], "a": [0]}, 2.5, now=22.5)


def test_a_code_is_known_to_its_rater_only(answers: Answers, tmp_path: Path) -> None:
    codes = [answers.join(two, 10, now=0) for _ in range(3)]
    assert len(set(codes)) == 3
    numbers = [rater.number for rater in map(answers.rater, codes) if rater]
    assert numbers == [0, 1, 2]
    assert answers.rater("") is None
    assert answers.rater("' OR 1=1 --") is None
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not any(code.encode() in stored for code in codes)


def test_the_study_takes_no_more_raters_than_it_says(answers: Answers) -> None:
    for _ in range(2):
        answers.join(two, 2, now=0)
    with pytest.raises(RunFailed, match="has enough raters"):
        answers.join(two, 2, now=0)
    assert len(answers.raters()) == 2


def test_raters_who_join_at_once_get_numbers_and_counts_of_their_own(answers: Answers) -> None:
    seen: list[tuple[int, int]] = []

    def assign(counts: Mapping[int, int], number: int) -> list[Shown]:
        seen.append((number, counts.get(5, 0)))
        return TWO

    threads = [threading.Thread(target=answers.join, args=(assign, 100, 0.0)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [(number, number) for number in range(12)]


def test_a_join_that_fails_leaves_nothing(answers: Answers) -> None:
    def fail(counts: Mapping[int, int], number: int) -> list[Shown]:
        raise ValueError("no items")

    with pytest.raises(ValueError, match="no items"):
        answers.join(fail, 10, now=0)
    assert answers.raters() == []


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    path.write_text("This is no database, although it has that name. " * 100)
    with pytest.raises(BadCall, match="cannot be used for answers"):
        Answers(path)


@pytest.mark.slow
def test_a_killed_process_loses_no_answer(tmp_path: Path) -> None:
    """The process says when an answer is stored, and is killed in the middle of the next one."""
    program = """
import sys
from pathlib import Path
from recast.study.answers import Answers
from recast.study.assignment import Shown
answers = Answers(Path(sys.argv[1]))
answers.join(lambda counts, number: [Shown(i, ("a", "b")) for i in range(1000)], 10, 0.0)
for position in range(1000):
    answers.open_next(0, 0.0)
    answers.add(0, position, {"a": [1], "b": [0]}, 0, 1.0)
    print(position, flush=True)
"""
    path = tmp_path / "answers.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "20\n":
            os.kill(process.pid, signal.SIGKILL)
            break
    last = max([20, *(int(line) for line in process.stdout.read().split() if line.isdigit())])
    process.wait()
    stored = Answers(path).judgments()
    assert len(stored) >= last + 1
    assert [one.item for one in stored] == list(range(len(stored)))
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
