"""The tables of `speed.py`: what each system costs and gives, side by side."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recast.bench import chart, rows, summary
from recast.bench.report import Table

BASE = "published"
"""The system with which the others are compared."""
METRICS = {
    "motion_fidelity_plain": "motion fidelity, plain",
    "moving_fidelity": "moving fidelity",
    "true_motion": "path correlation",
    "true_look": "look right",
    "text_similarity": "text similarity",
}
Row = Mapping[str, Any]


def forecast_file(results: Path) -> Path:
    """The file of the forecasts that belong to a file of rows."""
    return results.with_name(f"{results.stem}-forecast.json")


def plot(results: Path, model: str | None = None) -> bytes | None:
    """A PNG of the moving fidelity against the cost of a transfer whose motion is stored, with one
    point for each system. None if no row has both."""
    cost = "stored_forwards"
    own = [row | {rows.METRIC + cost: row[cost]} for row in _rows(results, model)]
    return chart.scatter(
        own,
        list(dict.fromkeys(row["variant"] for row in own)),
        (cost, "cost of a transfer with a stored motion, in forward passes"),
        ("moving_fidelity", "moving fidelity"),
        logarithmic=True,
    )


def _rows(results: Path, model: str | None) -> list[dict[str, Any]]:
    """The rows of a file and model, as rows of a benchmark, which `summary` takes."""
    found = (json.loads(line) for line in results.open(encoding="utf-8"))
    return [
        row | {"variant": row["system"], "error": None}
        for row in found
        if model in (None, row["model"])
    ]


def read(results: Path, model: str | None = None) -> Iterator[Table]:
    """The tables of a file of rows, model by model, or of one model."""
    table = _rows(results, model)
    path = forecast_file(results)
    forecasts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in dict.fromkeys(row["model"] for row in table):
        own = [row for row in table if row["model"] == name]
        yield from _tables(name, own, forecasts.get(name, {}))


def _tables(model: str, results: Sequence[Row], forecasts: Mapping[str, Any]) -> Iterator[Table]:
    names = list(dict.fromkeys(row["system"] for row in results))
    names = [BASE, *(name for name in names if name != BASE)] if BASE in names else names
    systems = {name: [row for row in results if row["system"] == name] for name in names}
    yield Table(
        f"{model}: time",
        [
            *("system", "pairs", "CPU s, cold", "CPU s, motion stored"),
            *(f"× {BASE}, cold", f"× {BASE}, stored", "clock s, cold", "clock s, stored"),
        ],
        [_time(name, own, systems.get(BASE, ())) for name, own in systems.items()],
    )
    yield Table(
        f"{model}: work",
        [
            *("system", "NFE, cold", "NFE, stored", "forwards, cold", "forwards, stored"),
            *("TFLOP, cold", "TFLOP, stored", "peak MB"),
        ],
        [_work(name, own) for name, own in systems.items()],
    )
    yield Table(
        f"{model}: quality",
        ["system", *METRICS.values(), *(f"{METRICS[m]} − {BASE}" for m in list(METRICS)[:2])],
        [_quality(name, own, results) for name, own in systems.items()],
    )
    known = {name: own for name, own in systems.items() if name in forecasts}
    if known:
        yield Table(
            f"{model}: the forecast of recast doctor",
            [
                *("system", "learn, forecast s", "CPU s", "ratio"),
                *("transfer, forecast s", "CPU s", "ratio"),
            ],
            [_forecast(name, own, forecasts[name]) for name, own in known.items()],
        )


def _time(name: str, own: Sequence[Row], base: Sequence[Row]) -> list[str]:
    cells = [name, str(len(own))]
    cells += [_number(_mean(own, column)) for column in ("cold_cpu_seconds", "stored_cpu_seconds")]
    cells += [_ratio(own, base, column) for column in ("cold_cpu_seconds", "stored_cpu_seconds")]
    return cells + [_number(_mean(own, column)) for column in ("cold_seconds", "stored_seconds")]


def _work(name: str, own: Sequence[Row]) -> list[str]:
    columns = [f"{kind}_{what}" for what in ("calls", "forwards", "tflop") for kind in _KINDS]
    peak = max(max(row["learn_peak_memory_mb"], row["transfer_peak_memory_mb"]) for row in own)
    return [name, *(_number(_mean(own, column)) for column in columns), f"{peak:.0f}"]


def _quality(name: str, own: Sequence[Row], results: Sequence[Row]) -> list[str]:
    means = [summary.mean(own, rows.METRIC + metric) for metric in METRICS]
    if name != BASE:
        means += [summary.paired(results, name, BASE, metric) for metric in list(METRICS)[:2]]
    cells = ["–" if mean is None else mean.text().replace("-", "−") for mean in means]
    return [name, *cells, *(len(METRICS) + 2 - len(cells)) * ["–"]]


def _forecast(name: str, own: Sequence[Row], said: Mapping[str, float]) -> list[str]:
    cells = [name]
    for verb in ("learn", "transfer"):
        measured = _mean(own, f"{verb}_cpu_seconds")
        cells += [_number(said[verb]), _number(measured), f"{said[verb] / measured:.2f}"]
    return cells


_KINDS = ("cold", "stored")


def _ratio(own: Sequence[Row], base: Sequence[Row], column: str) -> str:
    """How many times as fast as the base, over the pairs that both have."""
    pairs = {(row["clip"], row["prompt"]): row[column] for row in base}
    shared = [row for row in own if (row["clip"], row["prompt"]) in pairs]
    if not shared:
        return "–"
    total = sum(pairs[row["clip"], row["prompt"]] for row in shared)
    return f"{total / sum(row[column] for row in shared):.3g}"


def _mean(own: Sequence[Row], column: str) -> float:
    return float(sum(row[column] for row in own) / len(own))


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"
