"""The statistics of the report, against closed forms."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recast.bench import chart, report, rows, summary
from recast.errors import UnknownName

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def row(clip: str, variant: str, value: float | None, **more: object) -> dict[str, object]:
    columns = {"clip": clip, "prompt": "p", "seed": 0, "variant": variant, "error": None}
    return columns | {"metric.m": value} | more


def test_the_interval_is_over_clips_and_not_over_rows() -> None:
    """100 clips of two rows each: the standard error is that of 100 values, not of 200."""
    values = np.random.default_rng(1).normal(size=100)
    results = [row(str(i), "a", v, seed=seed) for i, v in enumerate(values) for seed in (0, 1)]
    mean = summary.mean(results, "metric.m")
    assert mean is not None
    assert (mean.clips, mean.rows) == (100, 200)
    assert mean.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 10
    assert mean.interval is not None
    assert (mean.interval[1] - mean.interval[0]) / 2 == pytest.approx(half, rel=0.1)


def test_paired_differences_use_what_both_have() -> None:
    results = [row(str(i), "a", i + 0.5) for i in range(10)] + [
        row(str(i), "b", i) for i in range(8)
    ]
    difference = summary.paired(results, "a", "b", "m")
    assert difference is not None
    assert (difference.value, difference.interval) == (0.5, (0.5, 0.5))
    assert (difference.clips, difference.rows) == (8, 8)
    assert difference.text(1) == "0.5 [0.5, 0.5]"


def test_rows_without_a_value_do_not_count() -> None:
    assert summary.mean([row("a", "v", None)], "metric.m") is None
    results = [row("a", "v", None), row("b", "v", 1.0), row("c", "w", 1.0, error="broken")]
    mean = summary.mean(results[:2], "metric.m")
    assert mean is not None
    assert mean.rows == 1
    assert summary.paired(results, "v", "w", "m") is None
    assert summary.variants(results) == ["v"]


def test_bounds_come_first() -> None:
    results = [row("a", name, 1.0) for name in ("dmt", "unguided", "sdedit", "source")]
    assert summary.variants(results) == ["source", "unguided", "dmt", "sdedit"]
    order = ("sdedit", "unguided", "dmt", "source", "dmt:paper")
    assert summary.variants(results, order) == ["source", "unguided", "sdedit", "dmt"]


def test_every_variant_has_its_own_marker_and_colour() -> None:
    names = ["source", "truth", "unguided", *(f"method {index}" for index in range(40))]
    results = chart.styles(names)
    assert list(results) == names
    assert len(set(results.values())) == len(names)
    assert len({colour for name, (_, colour) in results.items() if name in summary.BOUNDS}) == 1


def test_one_clip_has_no_interval() -> None:
    mean = summary.mean([row("a", "v", 0.25, seed=seed) for seed in (0, 1)], "metric.m")
    assert mean is not None
    assert (mean.interval, mean.bars(), mean.text()) == (None, None, "0.25")


@pytest.mark.parametrize("value", [0.0931, 0.3256])
def test_a_mean_lies_within_its_interval(value: float) -> None:
    """Equal values with counts for which sums in another order round up from the mean."""
    counts = {
        0.0931: [1, 4, 2, 1, 2, 2, 4, 3, 5, 3, 5, 1, 2, 1, 2, 5, 1, 1, 3, 5],
        0.3256: [4, 1, 1, 2, 4, 1, 5, 1, 5, 1, 2, 2, 5, 2, 4, 1, 2, 1, 2, 5],
    }[value]
    results = [row(str(i), "v", value, seed=s) for i, n in enumerate(counts) for s in range(n)]
    results = [one | {"metric.n": value} for one in results]
    assert chart.scatter(results, ["v"], ("m", "m"), ("n", "n")) is not None
    mean = summary.mean(results, "metric.m")
    assert mean is not None
    assert mean.interval is not None
    assert mean.interval[0] <= mean.value <= mean.interval[1]


def test_differences_are_those_to_the_baseline() -> None:
    facts = {"fingerprint": None, "group": ""}
    values = {"unguided": 0.25, "v": 0.5, "w": 0.75}
    results = [
        row(clip, name, 0.0) | facts | {"metric.gait_right": value}
        for clip in ("a", "b")
        for name, value in values.items()
    ]

    def differences(baseline: str | None) -> dict[str, str]:
        (table,) = (
            one
            for one in report.tables(results, baseline=baseline)
            if one.title.startswith("Difference to")
        )
        (line,) = table.body
        return dict(zip(table.head[1:], line[1:], strict=True))

    assert differences("unguided") == {
        "v": "0.250 [0.250, 0.250]",
        "w": "0.500 [0.500, 0.500]",
    }
    assert differences(None)["w"] == "0.250 [0.250, 0.250]"
    with pytest.raises(UnknownName, match="unknown variant 'unguide'; did you mean unguided"):
        report.tables(results, baseline="unguide")


def test_costs_show_the_maximum_of_peaks_and_omit_missing_columns() -> None:
    costs = {"fingerprint": "f", "group": "", "seconds": 3.0, "peak_memory_mb": 50.0}
    results = [row("a", "v", 1.0) | costs, row("b", "v", 1.0) | costs | {"peak_memory_mb": 90.0}]
    results[1]["seconds"] = 5.0

    def costs_of_v() -> dict[str, str]:
        (table,) = (one for one in report.tables(results) if one.title.startswith("Cost"))
        return {line[0]: line[1] for line in table.body}

    assert costs_of_v() == {"seconds to transfer": "4", "peak memory to transfer, MB": "90"}
    results[0] |= {"motion_mb": 0.25, "learn_peak_memory_mb": 70.0}
    assert costs_of_v()["size of the motion, MB"] == "0.25"
    assert costs_of_v()["peak memory to learn, MB"] == "70"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.parquet")), ids=lambda path: path.stem)
def test_committed_tables_have_columns_of_this_version(path: Path) -> None:
    results = pq.read_table(path).to_pylist()
    assert rows.as_table(results).num_rows == len(results)


def test_tables_of_earlier_versions_can_be_imported(tmp_path: Path) -> None:
    path = RESULTS / "sensitivity.parquet"
    results = pq.read_table(path).to_pylist()
    assert {"motion_mb", "learn_peak_memory_mb"}.isdisjoint(results[0])
    assert report.tables(results)[-1].title.startswith("Cost")
    theirs = rows.adopt(tmp_path, path, "sensitivity")
    assert rows.done(tmp_path) == theirs.keys()
    again = rows.export(tmp_path, theirs)
    assert sorted(one["key"] for one in again) == sorted(one["key"] for one in results)
    assert all(one["motion_mb"] is None for one in again)
