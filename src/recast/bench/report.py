"""The report: one HTML file that needs nothing beside it, and its tables and picture as files.

Owns what is shown and how it is format_prompts; the numbers are those of `summary`.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader

from recast.bench import chart, rows, summary
from recast.bench.rows import METRIC, Row
from recast.bench.suite import Suite
from recast.evaluation import evaluate
from recast.media.atomic_files import atomic
from recast.metrics.base import Metric

PAGE, SUMMARY, SCATTER, TRUE_SCATTER = (
    "report.html",
    "summary.csv",
    "scatter.png",
    "scatter-true.png",
)
WALL = 24
"""Pairs whose clips are shown."""
WALL_BYTES = 40_000_000
"""Clips beyond this many bytes are left to the folder."""
_BY_GROUP = (
    *("text_similarity", "motion_fidelity"),
    *("true_look", "true_motion", "true_distance", "true_structure", "camera_error"),
)
_COLUMNS = 12
_COSTS = {
    "learn_seconds": "seconds to learn",
    "seconds": "seconds to transfer",
    "learn_calls": "network calls to learn",
    "calls": "network calls to transfer",
    "learn_peak_memory_mb": "peak memory to learn, MB",
    "peak_memory_mb": "peak memory to transfer, MB",
    "motion_mb": "size of the motion, MB",
}
_PEAKS = ("learn_peak_memory_mb", "peak_memory_mb")
"""Costs of which the greatest counts, and not the mean."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the report."""

    title: str
    head: Sequence[str]
    body: Sequence[Sequence[str]]


def write(folder: Path, suite: Suite, found: Sequence[Row]) -> Path:
    """Write the report and what lies beside it; returns the page."""
    known = evaluate.metrics()
    metrics = [known[name] for name in rows.metrics(found) if name in known]
    order = summary.variants(found, suite.methods)
    pictures = _pictures(found, order)
    for name, picture in pictures.items():
        with atomic(folder / name) as temporary:
            temporary.write_bytes(picture)
    with atomic(folder / SUMMARY) as temporary:
        _write_summary(temporary, found, metrics, order)
    page = Environment(loader=PackageLoader("recast.bench", "."), autoescape=True).get_template(
        "report.html.jinja"
    )
    shown, left_out = _wall(folder, found, order)
    text = page.render(
        suite=suite,
        facts=_facts(found),
        pictures={name: _uri(it, "image/png") for name, it in pictures.items()},
        tables=_tables(found, metrics, order),
        wall=shown,
        left_out=left_out,
        failures=[row for row in found if row["error"] is not None],
    )
    with atomic(folder / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / PAGE


def tables(found: Sequence[Row], order: Sequence[str] = ()) -> list[Table]:
    """The report's tables, variants in a suite's order, for whoever wants them without the page."""
    known = evaluate.metrics()
    metrics = [known[name] for name in rows.metrics(found) if name in known]
    return _tables(found, metrics, summary.variants(found, order))


def _pictures(found: Sequence[Row], order: Sequence[str]) -> dict[str, bytes]:
    drawn = {
        SCATTER: chart.scatter(
            found,
            order,
            ("text_similarity", "text similarity (CLIP)"),
            ("motion_fidelity", "motion fidelity"),
        ),
        TRUE_SCATTER: chart.scatter(
            found,
            order,
            ("true_look", "share of colour, shape and background that are right"),
            ("true_motion", "correlation of the subject's path with the source's"),
        ),
    }
    return {name: picture for name, picture in drawn.items() if picture is not None}


def _facts(found: Sequence[Row]) -> list[tuple[str, str]]:
    """What made the rows, each said once."""
    told = {
        "backbone": [
            f"{row['backbone']} ({row['fingerprint']})" for row in found if row["fingerprint"]
        ],
        "device": [row["device"] for row in found],
        "settings": [row.get("settings") for row in found],
        "tracker": [row["tracker"] for row in found],
        "CLIP": [row["clip_model"] for row in found],
        "versions": [row["versions"] for row in found],
    }
    counts = {
        "clips": len({row["clip"] for row in found}),
        "pairs": len({(row["clip"], row["prompt"]) for row in found}),
        "seeds": len({row["seed"] for row in found}),
        "rows": len(found),
    }
    said = [(name, str(count)) for name, count in counts.items()]
    for name, values in told.items():
        said.append((name, " | ".join(dict.fromkeys(filter(None, values))) or "–"))
    return said


def _tables(found: Sequence[Row], metrics: Sequence[Metric], order: Sequence[str]) -> list[Table]:
    good = [row for row in found if row["error"] is None]
    by_variant = {name: [row for row in good if row["variant"] == name] for name in order}
    shown = [m for m in metrics if any(row.get(METRIC + m.name) is not None for row in good)]
    made = [
        Table(
            "Metrics",
            ["", *(f"{name} ({len(mine)} rows)" for name, mine in by_variant.items())],
            [
                [_title(m), *(_cell(mine, METRIC + m.name) for mine in by_variant.values())]
                for m in shown
            ],
        )
    ]
    groups = [group for group in dict.fromkeys(row["group"] for row in good) if group]
    if len(groups) > 1:
        made.append(_by_group(by_variant, shown, groups))
    made += _paired(good, shown, order)
    models = {name: mine for name, mine in by_variant.items() if mine[0]["fingerprint"]}
    if models:
        made.append(_costs(models))
    return [_wide(table) for table in made]


def _wide(table: Table) -> Table:
    """The table, its variants as rows where they are too many to stand side by side."""
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
                _cell([row for row in mine if row["group"] == group], METRIC + metric.name)
                for mine in by_variant.values()
            ),
        ]
        for metric in metrics
        if metric.name in _BY_GROUP
        for group in groups
    ]
    return Table("By group", ["", *by_variant], body)


def _costs(models: Mapping[str, Sequence[Row]]) -> Table:
    """Those costs that any row has: means, and the greatest of peaks."""
    body = [
        [title, *(_cost(mine, column) for mine in models.values())]
        for column, title in _COSTS.items()
        if any(row.get(column) is not None for mine in models.values() for row in mine)
    ]
    return Table("Cost; learning is paid once for a clip", ["", *models], body)


def _paired(good: Sequence[Row], metrics: Sequence[Metric], names: Sequence[str]) -> list[Table]:
    """Every variant less the first that is no bound, pair by pair."""
    compared = [name for name in names if name not in summary.BOUNDS]
    if len(compared) < 2:
        return []
    other, rest = compared[0], [name for name in names if name != compared[0]]
    body = []
    for metric in metrics:
        differences = [summary.paired(good, name, other, metric.name) for name in rest]
        told = ["–" if it is None else it.text(3) for it in differences]
        body.append([_title(metric), *told])
    return [Table(f"Less {other}, on the same clips, prompts and seeds", ["", *rest], body)]


def _title(metric: Metric) -> str:
    return f"{metric.title} {'↑' if metric.higher_is_better else '↓'}"


def _cell(mine: Sequence[Row], column: str) -> str:
    mean = summary.mean(mine, column)
    return "–" if mean is None else mean.text(3)


def _cost(mine: Sequence[Row], column: str) -> str:
    values = [row[column] for row in mine if row.get(column) is not None]
    if not values:
        return "–"
    value = max(values) if column in _PEAKS else sum(values) / len(values)
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _write_summary(
    path: Path, found: Sequence[Row], metrics: Sequence[Metric], order: Sequence[str]
) -> None:
    good = [row for row in found if row["error"] is None]
    columns = ["variant", "column", "unit", "mean", "low", "high", "max", "clips", "rows"]
    units = {METRIC + metric.name: metric.unit for metric in metrics} | dict.fromkeys(_COSTS, "")
    lines = []
    for name in order:
        mine = [row for row in good if row["variant"] == name]
        for column, unit in units.items():
            mean = summary.mean(mine, column)
            if mean is not None:
                low, high = mean.interval or (None, None)
                most = max(row[column] for row in mine if row.get(column) is not None)
                values = (mean.value, low, high, most, mean.clips, mean.rows)
                told = [name, column.removeprefix(METRIC), unit, *values]
                lines.append(dict(zip(columns, told, strict=True)))
    rows.write_csv(path, columns, lines)


def _wall(
    folder: Path, found: Sequence[Row], order: Sequence[str]
) -> tuple[list[Mapping[str, object]], int]:
    """For up to `WALL` pairs, evenly: the source and every variant's clip of the first seed, as
    data; and how many pairs are left out."""
    shown = [row for row in found if row["method"] != "source" and _clips(folder, row)]
    pairs = list(dict.fromkeys((row["clip"], row["prompt"]) for row in shown))
    count = min(WALL, len(pairs))
    chosen = [pairs[index * len(pairs) // count] for index in range(count)]
    lines: list[Mapping[str, object]] = []
    taken = 0
    for clip, prompt in chosen:
        files: dict[str, Path] = {}
        for row in sorted(shown, key=lambda row: (order.index(row["variant"]), row["seed"])):
            if (row["clip"], row["prompt"]) == (clip, prompt):
                source, result = _clips(folder, row)
                files.setdefault("source", source)
                files.setdefault(row["variant"], result)
        taken += sum(path.stat().st_size for path in files.values())
        if taken > WALL_BYTES:
            break
        clips = [(name, _uri(path.read_bytes(), "video/mp4")) for name, path in files.items()]
        lines.append({"clip": clip, "prompt": prompt, "clips": clips})
    return lines, len(pairs) - len(lines)


def _clips(folder: Path, row: Row) -> tuple[Path, ...]:
    """A row's source and result; nothing if one of them is not in the folder."""
    if row["video"] is None:
        return ()
    paths = (folder / rows.VIDEOS / f"{row['clip']}.mp4", folder / row["video"])
    return paths if all(path.is_file() for path in paths) else ()


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
