"""The report of a benchmark: an HTML page that contains its charts and clips, and separate files.

This module owns what the report shows and how numbers are formatted. The numbers come from
`summary.py`, and the charts from `chart.py`.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader

from recast import evaluation
from recast.bench import chart, rows, summary
from recast.bench.rows import METRIC, Row
from recast.bench.suite import Suite
from recast.errors import UnknownName
from recast.media.atomic_files import atomic
from recast.metrics.base import Metric

PAGE, SUMMARY, SCATTER, TRUE_SCATTER = (
    "report.html",
    "summary.csv",
    "scatter.png",
    "scatter-true.png",
)
WALL = 24
"""Largest number of pairs whose clips the report shows."""
WALL_BYTES = 40_000_000
"""Largest total size in bytes of the clips inside the report."""
_GROUP_METRICS = (
    *("text_similarity", "motion_fidelity_plain", "motion_fidelity"),
    *("true_look", "true_motion", "true_distance", "true_structure", "camera_error"),
)
"""Metrics in the table by group."""
_COLUMNS = 12
"""Largest number of columns of a table; a wider one is transposed."""
_COSTS = {
    "learn_seconds": "seconds to learn",
    "seconds": "seconds to transfer",
    "learn_calls": "network evaluations (NFE) to learn",
    "calls": "network evaluations (NFE) to transfer",
    "learn_peak_memory_mb": "peak memory to learn, MB",
    "peak_memory_mb": "peak memory to transfer, MB",
    "motion_mb": "size of the motion, MB",
}
_PEAKS = ("learn_peak_memory_mb", "peak_memory_mb")
"""Costs for which the report shows the maximum instead of the mean."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the report: a row of headings, and rows of cells."""

    title: str
    head: Sequence[str]
    body: Sequence[Sequence[str]]


def write(folder: Path, suite: Suite, results: Sequence[Row]) -> Path:
    """Write the report, the summary and the charts; returns the path of the report."""
    known = evaluation.metrics_of_rows()
    metrics = [known[name] for name in rows.metrics(results) if name in known]
    order = summary.variants(results, suite.methods)
    charts = _charts(results, order)
    for name, png in charts.items():
        with atomic(folder / name) as temporary:
            temporary.write_bytes(png)
    with atomic(folder / SUMMARY) as temporary:
        _write_summary(temporary, results, metrics, order)
    environment = Environment(loader=PackageLoader("recast.bench", "."), autoescape=True)
    clips, omitted = _clip_rows(folder, results, order)
    text = environment.get_template("report.html.jinja").render(
        suite=suite,
        facts=_facts(results),
        charts={name: _uri(png, "image/png") for name, png in charts.items()},
        tables=_tables(results, metrics, order),
        clip_rows=clips,
        omitted=omitted,
        failures=[row for row in results if row["error"] is not None],
    )
    with atomic(folder / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / PAGE


def tables(
    results: Sequence[Row], order: Sequence[str] = (), baseline: str | None = None
) -> list[Table]:
    """The tables of the report alone, with the variants in the given order and the differences to
    `baseline`, by default to the first variant that is not a bound. Raises `UnknownName` for a
    baseline that the rows do not have."""
    names = summary.variants(results, order)
    if baseline is not None and baseline not in names:
        raise UnknownName("variant", baseline, names)
    known = evaluation.metrics_of_rows()
    metrics = [known[name] for name in rows.metrics(results) if name in known]
    return _tables(results, metrics, names, baseline)


def _charts(results: Sequence[Row], order: Sequence[str]) -> dict[str, bytes]:
    charts = {
        SCATTER: chart.scatter(
            results,
            order,
            ("text_similarity", "text similarity (CLIP)"),
            _fidelity_axis(results),
        ),
        TRUE_SCATTER: chart.scatter(
            results,
            order,
            ("true_look", "fraction of correct attributes (colour, shape, background)"),
            ("true_motion", "correlation of the subject's path with the source's"),
        ),
    }
    return {name: png for name, png in charts.items() if png is not None}


def _fidelity_axis(results: Sequence[Row]) -> tuple[str, str]:
    """The plain form of motion fidelity, or the retired one for a table that has only that."""
    if any(row.get(f"{METRIC}motion_fidelity_plain") is not None for row in results):
        return "motion_fidelity_plain", "motion fidelity, plain"
    return "motion_fidelity", "motion fidelity, still tracklets agree (retired)"


def _facts(results: Sequence[Row]) -> list[tuple[str, str]]:
    """Names and values for the top of the report: counts, and the models, devices, settings, tools
    and versions of the rows."""
    origins = {
        "backbone": [
            f"{row['backbone']} ({row['fingerprint']})" for row in results if row["fingerprint"]
        ],
        "device": [row["device"] for row in results],
        "settings": [row.get("settings") for row in results],
        "tracker": [row["tracker"] for row in results],
        "CLIP": [row["clip_model"] for row in results],
        "versions": [row["versions"] for row in results],
    }
    counts = {
        "clips": len({row["clip"] for row in results}),
        "pairs": len({(row["clip"], row["prompt"]) for row in results}),
        "seeds": len({row["seed"] for row in results}),
        "rows": len(results),
    }
    facts = [(name, str(count)) for name, count in counts.items()]
    for name, values in origins.items():
        facts.append((name, " | ".join(dict.fromkeys(filter(None, values))) or "–"))
    return facts


def _tables(
    results: Sequence[Row],
    metrics: Sequence[Metric],
    order: Sequence[str],
    baseline: str | None = None,
) -> list[Table]:
    valid = [row for row in results if row["error"] is None]
    by_variant = {name: [row for row in valid if row["variant"] == name] for name in order}
    present = [m for m in metrics if any(row.get(METRIC + m.name) is not None for row in valid)]
    tables = [
        Table(
            "Metrics",
            ["", *(f"{name} ({len(own)} rows)" for name, own in by_variant.items())],
            [
                [_title(m), *(_cell(own, METRIC + m.name) for own in by_variant.values())]
                for m in present
            ],
        )
    ]
    groups = [group for group in dict.fromkeys(row["group"] for row in valid) if group]
    if len(groups) > 1:
        tables.append(_by_group(by_variant, present, groups))
    tables += _paired(valid, present, order, baseline)
    models = {name: own for name, own in by_variant.items() if own[0]["fingerprint"]}
    if models:
        tables.append(_costs(models))
    return [_transposed_if_wide(table) for table in tables]


def _transposed_if_wide(table: Table) -> Table:
    """The table, with variants as rows if there are too many of them for columns."""
    if len(table.head) <= _COLUMNS:
        return table
    head, *body = zip(table.head, *table.body, strict=True)
    return Table(table.title, head, body)


def _by_group(
    by_variant: Mapping[str, Sequence[Row]], metrics: Sequence[Metric], groups: Sequence[str]
) -> Table:
    body = [
        [
            f"{_title(metric)}, {group}",
            *(
                _cell([row for row in own if row["group"] == group], METRIC + metric.name)
                for own in by_variant.values()
            ),
        ]
        for metric in metrics
        if metric.name in _GROUP_METRICS
        for group in groups
    ]
    return Table("By group", ["", *by_variant], body)


def _costs(models: Mapping[str, Sequence[Row]]) -> Table:
    """The costs that any row has: means, and the maximum of peak memory."""
    body = [
        [title, *(_cost(own, column) for own in models.values())]
        for column, title in _COSTS.items()
        if any(row.get(column) is not None for own in models.values() for row in own)
    ]
    return Table("Cost (learning happens once per clip)", ["", *models], body)


def _paired(
    valid: Sequence[Row], metrics: Sequence[Metric], names: Sequence[str], baseline: str | None
) -> list[Table]:
    """Paired differences between each variant and the baseline, by default the first variant that
    is not a bound."""
    if baseline is None:
        compared = [name for name in names if name not in summary.BOUNDS]
        if len(compared) < 2:
            return []
        baseline = compared[0]
    rest = [name for name in names if name != baseline]
    body = []
    for metric in metrics:
        differences = [summary.paired(valid, name, baseline, metric.name) for name in rest]
        cells = ["–" if mean is None else mean.text(3) for mean in differences]
        body.append([_title(metric), *cells])
    title = f"Difference to {baseline}, on the same clips, prompts and seeds"
    return [Table(title, ["", *rest], body)]


def _title(metric: Metric) -> str:
    return f"{metric.title} {metric.arrow}"


def _cell(own: Sequence[Row], column: str) -> str:
    mean = summary.mean(own, column)
    return "–" if mean is None else mean.text(3)


def _cost(own: Sequence[Row], column: str) -> str:
    values = [row[column] for row in own if row.get(column) is not None]
    if not values:
        return "–"
    value = max(values) if column in _PEAKS else sum(values) / len(values)
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _write_summary(
    path: Path, results: Sequence[Row], metrics: Sequence[Metric], order: Sequence[str]
) -> None:
    valid = [row for row in results if row["error"] is None]
    columns = ["variant", "column", "unit", "mean", "low", "high", "max", "clips", "rows"]
    units = {METRIC + metric.name: metric.unit for metric in metrics} | dict.fromkeys(_COSTS, "")
    lines = []
    for name in order:
        own = [row for row in valid if row["variant"] == name]
        for column, unit in units.items():
            mean = summary.mean(own, column)
            if mean is not None:
                low, high = mean.interval or (None, None)
                maximum = max(row[column] for row in own if row.get(column) is not None)
                values = (mean.value, low, high, maximum, mean.clips, mean.rows)
                cells = [name, column.removeprefix(METRIC), unit, *values]
                lines.append(dict(zip(columns, cells, strict=True)))
    rows.write_csv(path, columns, lines)


def _clip_rows(
    folder: Path, results: Sequence[Row], order: Sequence[str]
) -> tuple[list[Mapping[str, object]], int]:
    """For up to `WALL` pairs, chosen evenly, the clips as data URIs: the source, and the first seed
    of each variant. Also the number of pairs that are left out."""
    with_clips = [row for row in results if row["method"] != "source" and _clips(folder, row)]
    pairs = list(dict.fromkeys((row["clip"], row["prompt"]) for row in with_clips))
    count = min(WALL, len(pairs))
    chosen = [pairs[index * len(pairs) // count] for index in range(count)]
    lines: list[Mapping[str, object]] = []
    total_bytes = 0
    for clip, prompt in chosen:
        files: dict[str, Path] = {}
        for row in sorted(with_clips, key=lambda row: (order.index(row["variant"]), row["seed"])):
            if (row["clip"], row["prompt"]) == (clip, prompt):
                source, result = _clips(folder, row)
                files.setdefault("source", source)
                files.setdefault(row["variant"], result)
        total_bytes += sum(path.stat().st_size for path in files.values())
        if total_bytes > WALL_BYTES:
            break
        clips = [(name, _uri(path.read_bytes(), "video/mp4")) for name, path in files.items()]
        lines.append({"clip": clip, "prompt": prompt, "clips": clips})
    return lines, len(pairs) - len(lines)


def _clips(folder: Path, row: Row) -> tuple[Path, ...]:
    """The paths of a row's source and result; empty if one of them is not in the folder."""
    if row["video"] is None:
        return ()
    paths = (folder / rows.VIDEOS / f"{row['clip']}.mp4", folder / row["video"])
    return paths if all(path.is_file() for path in paths) else ()


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
