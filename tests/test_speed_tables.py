"""The tables and the plot of `benchmarks/speed.py`."""

import json
from pathlib import Path

import pytest

from .scripts import load_script

SCRIPT = load_script(Path(__file__).parents[1] / "benchmarks" / "speed_tables.py")


def _row(model: str, system: str, clip: str, cost: float, fidelity: float) -> dict[str, object]:
    costs = ("seconds", "cpu_seconds", "calls", "forwards", "tflop")
    return {
        **{"model": model, "system": system, "clip": clip, "prompt": "a star", "seed": 0},
        **{"group": "object"},
        **{f"stored_{name}": cost for name in costs},
        **{f"cold_{name}": 3 * cost for name in costs},
        **{"learn_peak_memory_mb": 700.0, "transfer_peak_memory_mb": cost},
        "metric.moving_fidelity": fidelity,
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    table = [
        _row("shapes", "dmt:quick", "a", 20, 0.7),
        _row("shapes", "published", "a", 200, 0.6),
        _row("shapes", "dmt:quick", "b", 20, 0.8),
        _row("shapes", "published", "b", 400, 0.7),
        _row("shapes-dit", "dmt:quick", "a", 10, 0.9),
    ]
    path = tmp_path / "speed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return path


def test_costs_are_means_and_ratios_are_paired(results: Path) -> None:
    tables = {table.title: table for table in SCRIPT.read(results)}
    time = {line[0]: line for line in tables["shapes: time"].body}
    assert list(time) == ["published", "dmt:quick"]  # what the others are compared with is first
    assert time["dmt:quick"][1:6] == ["2", "60", "20", "15", "15"]  # (200 + 400) / (20 + 20)
    assert [line[0] for line in tables["shapes: work"].body] == ["published", "dmt:quick"]
    quality = {line[0]: line for line in tables["shapes: quality"].body}
    assert quality["dmt:quick"][2].startswith("0.75")
    assert quality["dmt:quick"][-1].startswith("0.10")  # the paired difference
    assert tables["shapes-dit: time"].body[0][4] == "–"  # nothing to compare with


def test_tables_and_plot_of_one_model(results: Path) -> None:
    assert {table.title.split(":")[0] for table in SCRIPT.read(results, "shapes")} == {"shapes"}
    both, one = SCRIPT.plot(results), SCRIPT.plot(results, "shapes-dit")
    assert both[:4] == one[:4] == b"\x89PNG"
    assert both != one
    assert SCRIPT.plot(results, "zeroscope") is None
