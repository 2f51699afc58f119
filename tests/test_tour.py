"""The page of the five-minute tour: its commands run in their order, with fewer sampling steps."""

import re
import shlex
from pathlib import Path

import pytest

from recast import cli

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "tour.md"
TEXT = PAGE.read_text(encoding="utf-8")
CALLS = [
    shlex.split(line)
    for block in re.findall(r"^```sh\n(.*?)^```$", TEXT, re.M | re.S)
    for line in block.splitlines()
]
(PYTHON,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
SHORT = ["--steps", "2"]


def shortened(call: list[str]) -> list[str]:
    """The arguments of a call, with two steps if it learns or samples."""
    learned = call[2].endswith(".safetensors") if len(call) > 2 else False
    return call[1:] + (SHORT if call[1] in ("transfer", "learn") and not learned else [])


@pytest.mark.slow
def test_the_commands_of_the_tour_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert all(call[0] == "recast" for call in CALLS)
    for call in CALLS:
        if call[1] != "doctor":  # a long estimate, which `test_cli.py` tests
            assert cli.main(shortened(call)) == 0, call
    made = {"ball.mp4", "square", "ball.safetensors", "star", "clone"}
    assert made <= {path.name for path in tmp_path.iterdir()}
    for file in re.findall(r"`(square/[\w.]+)`", TEXT):
        assert (tmp_path / file).is_file()


@pytest.mark.slow
def test_the_python_of_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(shortened(CALLS[0])) == 0
    short = PYTHON.replace('recast.read("ball.mp4")', 'recast.read("ball.mp4"), steps=2')
    assert short != PYTHON
    exec(compile(short, str(PAGE), "exec"), {})
    assert (tmp_path / "red.mp4").is_file()
