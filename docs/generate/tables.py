"""Tables of what the registry and the benchmark define: metrics, suites, keys and columns; and of
what the scripts in `benchmarks/` measured about the metrics."""

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from pyarrow import parquet

from recast import registry
from recast.bench import rows
from recast.evaluation import metrics_of_rows
from recast.metrics import motion_fidelity
from recast.pipeline import method_presets, model_loading

_RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
_FORMS = (*motion_fidelity.METRICS, *motion_fidelity.RETIRED)
_NAN = "script gives NaN"


def method_matrix() -> str:
    """Every method on every backbone with released weights: whether it runs there, and whether a
    shipped model of the backbone was measured with it. Methods with equal cells share a row."""
    backbones = [name for name in registry.names("backbones") if name != "gaussian"]
    lines: dict[tuple[str, ...], list[str]] = {}
    for method, cells in matrix(backbones).items():
        lines.setdefault(tuple(cells), []).append(f"`{method}`")
    table = _head(["", *(f"`{name}`" for name in backbones)])
    return "\n".join([*table, *(f"| {', '.join(m)} | {' | '.join(c)} |" for c, m in lines.items())])


def matrix(backbones: list[str]) -> dict[str, list[str]]:
    """For each method, "no", "yes" or "measured" on each backbone. A method runs where its default
    preset finds its roles. A pair is measured if a table of rows in `benchmarks/results/` holds
    results of it."""
    measured, cells = _measured_pairs(), dict[str, list[str]]()
    roles = {}
    for name in backbones:
        model = registry.load("backbones", name).tiny()
        roles[name] = {*model.roles, *model.transformers}
    for method in registry.names("methods"):
        cells[method] = []
        for name in backbones:
            config = method_presets.default_config(method, name)
            runs = set(method_presets.configure(method, config).roles) <= roles[name]
            is_measured = runs and (method, name) in measured
            cells[method].append("measured" if is_measured else "yes" if runs else "no")
    return cells


def _measured_pairs() -> set[tuple[str, str]]:
    """Method and backbone of all kept rows that a model made without an error."""
    kinds, pairs = model_loading.aliases(), set()
    for path in _RESULTS.glob("*.parquet"):
        for row in parquet.read_table(path, columns=["method", "backbone", "error"]).to_pylist():
            if row["backbone"] is not None and row["error"] is None:
                pairs.add((row["method"], kinds[row["backbone"]]))
    return pairs


def metrics() -> str:
    """Every metric of every file: name, direction, unit and what it needs."""
    lines = [
        "| name | title | better | unit | needs | file |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for file in registry.names("metrics"):
        for metric in registry.load("metrics", file).METRICS.values():
            needs = ", ".join(sorted(metric.needs)) or "result"
            cells = (
                f"`{metric.name}`",
                metric.title,
                metric.better,
                metric.unit,
                needs,
                f"`{file}`",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def suites() -> str:
    """Every suite that ships with Recast: its name and what it says it is for."""
    lines = ["| suite | what it is for |", "| --- | --- |"]
    folder = files("recast.bench") / "suites"
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        about = tomllib.loads(path.read_text(encoding="utf-8")).get("about", "")
        lines.append(f"| `{path.name.removesuffix('.toml')}` | {' '.join(about.split())} |")
    return "\n".join(lines)


def columns() -> str:
    """Every column of a table of rows but the metrics': its name and its Arrow type."""
    lines = ["| column | type |", "| --- | --- |"]
    lines += [f"| `{name}` | {kind} |" for name, kind in rows.COLUMNS.items()]
    return "\n".join([*lines, f"| `{rows.METRIC}NAME` | double |"])


def rulers_shapes() -> str:
    """What each metric gives for clips of the shapes world: means over clips."""
    content = _read("rulers-shapes.json")
    table, known = content["rows"], metrics_of_rows()
    lines = _head([f"means over {content['clips']} clips", *list(table[0])[1:]])
    for row in table:
        arrow = known[row["metric"]].arrow
        values = [f"{value:.2f}" for name, value in row.items() if name != "metric"]
        lines.append(f"| `{row['metric']}` {arrow} | {' | '.join(values)} |")
    return "\n".join(lines)


def rulers_real() -> str:
    """What each form of motion fidelity gives for real clips: first compared with changed versions
    of themselves (mean, and range over the clips), then with each other."""
    table = _read("rulers-real.json")["rows"]
    clips = {row["source"] for row in table if row["result"] == "itself"}
    is_change = [row["result"] not in clips and "own rate" not in row["result"] for row in table]
    changed = [row for row, chosen in zip(table, is_change, strict=True) if chosen]
    pairs = [row for row, chosen in zip(table, is_change, strict=True) if not chosen]
    titles = [f"`{name}`" for name in _FORMS]
    lines = _head(["result", *titles, _NAN])
    for change in dict.fromkeys(row["result"] for row in changed):
        lines.append(_ranges(change, [row for row in changed if row["result"] == change]))
    lines.append(_ranges("another clip", [row for row in pairs if "own rate" not in row["source"]]))
    lines += ["", *_head(["two clips that are not related", *titles, _NAN])]
    for row in sorted(pairs, key=lambda row: "own rate" in row["source"]):
        values = [f"{row[name]:.2f}" for name in _FORMS]
        nan = "yes" if row[_NAN] else "no"
        lines.append(f"| {row['source']} / {row['result']} | {' | '.join(values)} | {nan} |")
    return "\n".join(lines)


def menagerie_measures() -> str:
    """What the measures of the menagerie give for clips that are known: means over pairs."""
    content = _read("menagerie-measures.json")
    table, known = content["rows"], metrics_of_rows()
    lines = _head([f"means over {content['pairs']} pairs", *list(table[0])[1:]])
    for row in table:
        values = [f"{value:.2f}" for name, value in row.items() if name != "metric"]
        arrow = known[row["metric"]].arrow
        lines.append(f"| `{row['metric']}` {arrow} | {' | '.join(values)} |")
    return "\n".join(lines)


def clip_world() -> str:
    """The distances of clips from the colours that the shipped CLIP knows."""
    table = _read("clip-world.json")["rows"]
    lines = _head(["clips", "of the world", "number", "lowest", "median", "highest", "wrong"])
    for row in table:
        cells = [row["group"], "yes" if row["of the world"] else "no", *list(row.values())[2:]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _ranges(title: str, table: list[dict[str, Any]]) -> str:
    cells = []
    for name in _FORMS:
        values = [row[name] for row in table]
        mean = sum(values) / len(values)
        cells.append(f"{mean:.2f} ({min(values):.2f} to {max(values):.2f})")
    nan = sum(row[_NAN] for row in table)
    return f"| {title} | {' | '.join(cells)} | {nan} of {len(table)} |"


def _head(titles: list[str]) -> list[str]:
    return [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((_RESULTS / name).read_text(encoding="utf-8"))
    return content
