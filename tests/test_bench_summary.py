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
    assert mean.interval is not None
    assert (mean.interval[1] - mean.interval[0]) / 2 == pytest.approx(half, rel=0.1)


def test_paired_differences_use_what_both_have() -> None:
    found = [row(str(i), "a", i + 0.5) for i in range(10)] + [row(str(i), "b", i) for i in range(8)]
    difference = summary.paired(found, "a", "b", "m")
    assert difference is not None
    assert (difference.value, difference.interval) == (0.5, (0.5, 0.5))
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


def test_one_clip_says_nothing_of_others() -> None:
    mean = summary.mean([row("a", "v", 0.25, seed=seed) for seed in (0, 1)], "metric.m")
    assert mean is not None
    assert (mean.interval, mean.bars(), mean.text()) == (None, None, "0.25")


@pytest.mark.parametrize("value", [0.0931, 0.3256])
def test_a_mean_lies_within_its_interval(value: float) -> None:
    """Equal values, whose sums in other orders are all rounded up from the mean of these counts."""
    counts = {
        0.0931: [1, 4, 2, 1, 2, 2, 4, 3, 5, 3, 5, 1, 2, 1, 2, 5, 1, 1, 3, 5],
        0.3256: [4, 1, 1, 2, 4, 1, 5, 1, 5, 1, 2, 2, 5, 2, 4, 1, 2, 1, 2, 5],
    }[value]
    found = [row(str(i), "v", value, seed=s) for i, n in enumerate(counts) for s in range(n)]
    found = [one | {"metric.n": value} for one in found]
    assert chart.scatter(found, ["v"], ("m", "m"), ("n", "n")) is not None
    mean = summary.mean(found, "metric.m")
    assert mean is not None
    assert mean.interval is not None
    assert mean.interval[0] <= mean.value <= mean.interval[1]
