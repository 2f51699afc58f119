"""The statistics of the report, against closed forms."""

import numpy as np
import pytest

from recast.bench import chart, summary


def row(clip: str, variant: str, value: float | None, **more: object) -> dict[str, object]:
    told = {"clip": clip, "prompt": "p", "seed": 0, "variant": variant, "error": None}
    return told | {"metric.m": value} | more


def test_the_interval_is_that_of_the_clips() -> None:
    """100 clips of two rows each: the standard error is that of 100 values, not of 200."""
    values = np.random.default_rng(1).normal(size=100)
    found = [row(str(i), "a", v, seed=seed) for i, v in enumerate(values) for seed in (0, 1)]
    mean = summary.mean(found, "metric.m")
    assert mean is not None
    assert (mean.clips, mean.rows) == (100, 200)
    assert mean.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 10
    assert (mean.high - mean.low) / 2 == pytest.approx(half, rel=0.1)


def test_paired_differences_use_what_both_have() -> None:
    found = [row(str(i), "a", i + 0.5) for i in range(10)] + [row(str(i), "b", i) for i in range(8)]
    difference = summary.paired(found, "a", "b", "m")
    assert difference is not None
    assert (difference.value, difference.low, difference.high) == (0.5, 0.5, 0.5)
    assert (difference.clips, difference.rows) == (8, 8)
    assert difference.text(1) == "0.5 [0.5, 0.5]"


def test_rows_without_a_value_do_not_count() -> None:
    assert summary.mean([row("a", "v", None)], "metric.m") is None
    found = [row("a", "v", None), row("b", "v", 1.0), row("c", "w", 1.0, error="broken")]
    mean = summary.mean(found[:2], "metric.m")
    assert mean is not None
    assert mean.rows == 1
    assert summary.paired(found, "v", "w", "m") is None
    assert summary.variants(found) == ["v"]


def test_bounds_come_first() -> None:
    found = [row("a", name, 1.0) for name in ("dmt", "unguided", "sdedit", "source")]
    assert summary.variants(found) == ["source", "unguided", "dmt", "sdedit"]
    asked = ("sdedit", "unguided", "dmt", "source", "dmt:paper")
    assert summary.variants(found, asked) == ["source", "unguided", "sdedit", "dmt"]


def test_no_two_variants_look_alike_in_the_picture() -> None:
    names = ["source", "truth", "unguided", *(f"method {index}" for index in range(40))]
    found = chart.styles(names)
    assert list(found) == names
    assert len(set(found.values())) == len(names)
    assert len({colour for name, (_, colour) in found.items() if name in summary.BOUNDS}) == 1
