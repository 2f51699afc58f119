"""Tables of what the registry and the benchmark define: metrics, suites, keys and columns."""

import tomllib
from importlib.resources import files

from recast import registry
from recast.bench import rows


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
