"""The tables of the papers: `benchmarks/published_tables.py`."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from recast import evaluation
from recast.bench import suite

from .scripts import load_script

FOLDER = Path(__file__).parent.parent / "benchmarks"
TABLES = tomllib.loads((FOLDER / "published_tables.toml").read_text())


SCRIPT = load_script(FOLDER / "published_tables.py")


def _row(variant: str, clip: str, backbone: str = "shapes", **metrics: float) -> dict[str, Any]:
    return {
        **{"variant": variant, "backbone": backbone, "clip": clip, "prompt": "a dog", "seed": 0},
        **{"error": None, "learn_seconds": 1.0, "seconds": 20.0, "learn_calls": 26, "calls": 200},
        **{"learn_peak_memory_mb": 700.0, "peak_memory_mb": 800.0},
        **{f"metric.{name}": value for name, value in metrics.items()},
    }


@pytest.mark.parametrize("name", TABLES)
def test_each_system_of_a_table_is_a_variant_of_a_suite_and_each_metric_exists(name: str) -> None:
    suites = [suite.read(str(FOLDER / "suites" / f"{it}.toml")) for it in ("published", "frames")]
    variants = {(it.backbone, method) for it in suites for method in it.methods}
    table, known = TABLES[name], evaluation.metrics()
    systems = {it["name"] for it in table["system"]}
    for system in table["system"]:
        if "variant" in system:
            assert (system["backbone"], system["variant"]) in variants
    for claim in table["claim"]:
        assert {claim["first"], claim["second"]} <= systems
        assert claim["metric"] in known
        assert claim["sign"] in ("+", "-")
    assert set(table["metrics"]) <= known.keys()


def test_the_pairs_of_both_suites_are_the_same() -> None:
    one, other = (suite.read(str(FOLDER / "suites" / f"{n}.toml")) for n in ("published", "frames"))
    assert [(it.clip, it.prompt) for it in one.cases] == [
        (it.clip, it.prompt) for it in other.cases
    ]


def test_reported_numbers_stand_apart_from_those_that_were_measured() -> None:
    measured = [
        *(_row("dmt:shapes", f"c{i}", motion_fidelity_plain=0.5 + i / 10) for i in range(3)),
        _row("dmt:shapes", "c0", "shapes-dit", motion_fidelity_plain=0.0),  # another model
        _row("unguided", "c0", motion_fidelity_plain=0.0),  # no system of this table
    ]
    table = TABLES["dreammotion-table-1"]
    text = "\n".join(SCRIPT.lines(table, SCRIPT.with_systems(measured, table["system"])))
    (line,) = (line for line in text.splitlines() if line.startswith("| DMT |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:4] == ["DMT", "`shapes`", "0.8697", "0.3078"]
    assert cells[4] == "0.60 [0.50, 0.70]"
    assert cells[-5:] == ["1", "20", "26 + 200", "800", "3"]
    (line,) = (line for line in text.splitlines() if line.startswith("| Video-P2P |"))
    assert "0.7384" in line
    assert line.endswith("| – | – | – | – | – |")


@pytest.mark.parametrize(
    ("first", "verdict"), [(0.9, "confirmed"), (0.1, "contradicted"), (None, "open")]
)
def test_a_claim_is_confirmed_by_the_sign_of_a_paired_difference(
    first: float | None, verdict: str
) -> None:
    metric = "motion_fidelity_plain"
    # Without a given value, the first system is better on one clip and worse on another.
    values = [(0.9, 0.1)[i % 2] if first is None else first + i / 50 for i in range(4)]
    measured = [
        *(_row("DreamMotion", f"c{i}", **{metric: value}) for i, value in enumerate(values)),
        *(_row("DMT", f"c{i}", **{metric: 0.5}) for i in range(4)),
    ]
    claim = TABLES["dreammotion-table-1"]["claim"][0]
    line = SCRIPT.verdict(claim, measured, "motion fidelity")
    assert line.endswith(f"| {verdict} |")
    assert SCRIPT.verdict(claim, measured[:4], "x").endswith("| – | not measured |")
