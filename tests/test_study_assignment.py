"""What raters see: random, balanced and the same again."""

from collections import Counter
from pathlib import Path

import pytest

from recast.study.assignment import Shown, assign
from recast.study.design import Design
from recast.study.forms import Form

from .studies import clipless

SYSTEMS = ["ours", "a", "b", "c"]


def panel(design: Design, raters: int) -> list[list[Shown]]:
    """The assignments of raters who join one after the other."""
    counts: Counter[int] = Counter()
    assigned = []
    for number in range(raters):
        assigned.append(assign(design, counts, number))
        counts.update(shown.item for shown in assigned[-1])
    return assigned


def test_each_rater_sees_each_side_of_each_comparison_equally_often(tmp_path: Path) -> None:
    design = clipless(tmp_path, "2afc", SYSTEMS, 54, items_per_rater=48)
    for own in panel(design, 20):
        judged = [shown for shown in own if not design.items[shown.item].check]
        assert len(judged) == len({shown.item for shown in judged}) == 48
        assert Counter(set(shown.options) == {"ours", "a"} for shown in judged)[True] == 16
        left = Counter(shown.options for shown in judged)
        assert left == {pair: 8 for other in "abc" for pair in (("ours", other), (other, "ours"))}


def test_sides_are_even_up_to_one_for_odd_numbers(tmp_path: Path) -> None:
    design = clipless(tmp_path, "2afc", SYSTEMS, 54, items_per_rater=35)
    for own in panel(design, 20):
        left = Counter(shown.options[0] == "ours" for shown in own if "ours" in shown.options)
        assert abs(left[True] - left[False]) == 1


def test_all_items_are_judged_equally_often_up_to_one(tmp_path: Path) -> None:
    design = clipless(tmp_path, "2afc", SYSTEMS, 54, items_per_rater=48)
    counts = Counter(
        shown.item
        for own in panel(design, 20)
        for shown in own
        if not design.items[shown.item].check
    )
    assert len(counts) == 162
    assert set(counts.values()) == {5, 6}  # 20 x 48 / 162 = 5.9


def test_checks_are_spread_over_the_sequence(tmp_path: Path) -> None:
    design = clipless(tmp_path, "2afc", SYSTEMS, 54, items_per_rater=48)
    for own in panel(design, 20):
        places = [place for place, shown in enumerate(own) if design.items[shown.item].check]
        assert len(places) == len({own[place].item for place in places}) == 3
        assert [place // 17 for place in places] == [0, 1, 2]
    first = {own[0].item in design.checks for own in panel(design, 60)}
    assert first == {True, False}


@pytest.mark.parametrize("form", ["three-questions", "mos"])
def test_each_system_stands_in_each_place_equally_often(tmp_path: Path, form: Form) -> None:
    design = clipless(tmp_path, form, SYSTEMS, 12)
    (own,) = panel(design, 1)
    judged = [shown for shown in own if not design.items[shown.item].check]
    places = Counter((place, name) for shown in judged for place, name in enumerate(shown.options))
    if form == "mos":
        assert places == {(0, name): 12 for name in SYSTEMS}
    else:
        assert places == {(place, name): 3 for place in range(4) for name in SYSTEMS}


def test_raters_differ_and_each_is_the_same_again(tmp_path: Path) -> None:
    design = clipless(tmp_path, "2afc", SYSTEMS, 10)
    one, two = panel(design, 2)
    assert one != two
    assert panel(design, 2) == [one, two]
