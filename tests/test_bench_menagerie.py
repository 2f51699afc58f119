"""The menagerie in a benchmark: its rows, and its keys in the file of a suite."""

from pathlib import Path
from typing import Any

import pytest

from recast.backbones import wan
from recast.bench import rows, suite, work
from recast.bench.work import Task
from recast.errors import BadCall
from recast.evaluation import Tools
from recast.pipeline import memory_estimate
from recast.pipeline.source_clip import Source

from .tiny_models import CPU

SUITE = """
about = "One pair of the menagerie"
methods = ["source", "truth", "unguided", "sdedit:strength-50"]
backbone = "tiny"
[[world]]
name = "menagerie"
group = "far"
pairs = 1
kinds = [["dog", "dolphin"]]
described = true
"""


def read(folder: Path, text: str) -> suite.Suite:
    path = folder / "animals.toml"
    path.write_text(text)
    return suite.read(str(path))


@pytest.mark.slow
def test_rows_of_a_random_transformer_have_the_measures_of_the_menagerie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_estimate, "load", lambda name, settings: wan.tiny_of(stable=True))
    animals = read(tmp_path, SUITE)
    task = Task(
        suite=animals.name,
        cases=animals.cases,
        variants=tuple(map(animals.variant, animals.methods)),
        seeds=(0,),
        backbone="tiny",
        settings=CPU,
        source=Source(),
        tools=Tools(),
        threads=1,
    )
    table: dict[str, Any] = {}
    for result in work.work(task):
        assert result.row is not None
        table[result.row["variant"]] = result.row
    assert set(table) == set(animals.methods)
    for row in table.values():
        assert row["error"] is None, row["error"]
        assert row["source_prompt"].startswith("a")
        for name in ("gait_right", "kind_right", "subject_present", "true_distance", "true_look"):
            assert row[rows.METRIC + name] is not None
        assert rows.METRIC + "shape_right" not in row
    assert table["source"][rows.METRIC + "true_structure"] > 0.4


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (('kinds = [["dog", "dolphin"]]', ""), "world.0: the key kinds is missing"),
        (('"dolphin"', '"unicorn"'), "unicorn"),
        (('["dog", "dolphin"]', '["dog"]'), "world.0.kinds.0: list should have at least 2"),
        (("pairs = 1", 'pairs = 1\npaths = ["line"]'), "world.0: .*paths"),
        (('"menagerie"', '"zoo"'), "world.0: unknown world .zoo"),
        (("pairs = 1", 'pairs = 1\nactions = ["jump"]'), "did you mean jumps"),
    ],
)
def test_mistakes_in_the_keys_of_a_world_are_reported(
    tmp_path: Path, change: tuple[str, str], problem: str
) -> None:
    with pytest.raises(BadCall, match=problem):
        read(tmp_path, SUITE.replace(*change))


def test_a_clip_of_each_world_cannot_have_one_name(tmp_path: Path) -> None:
    scene = read(tmp_path, SUITE).cases[0].scene
    shapes = '[[world]]\npairs = 60\nchanges = ["colour"]\ndescribed = true\n'
    with pytest.raises(BadCall, match=f"two clips have the name 'scene-{scene}'"):
        read(tmp_path, SUITE + shapes)
