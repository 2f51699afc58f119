"""`recast analyze`: what a model's features hold."""

import dataclasses
import json
from dataclasses import dataclass, field

from recast import models
from recast.backbones.base import Settings
from recast.cli import flags
from recast.cli.console import say, watch
from recast.shapes.probe import ProbeConfig, Row
from recast.shapes.probe import probe as probed


@dataclass(frozen=True, kw_only=True)
class _Probe:
    backbone: str = "shapes"
    """Model to look into: an alias, a folder, or a hub id."""
    config: ProbeConfig = field(default_factory=ProbeConfig)
    settings: Settings = field(default_factory=Settings)
    json: bool = False
    """Print the numbers as JSON."""


def probe(argv: list[str], command: str, about: str) -> None:
    """Print R² for every role and noise level."""
    asked = flags.parse(_Probe, _Probe(), argv, command, about)
    rows = watch(probed(models.load(asked.backbone, asked.settings), asked.config))
    if asked.json:
        say(json.dumps([dataclasses.asdict(row) for row in rows]))
    else:
        say(_table(asked.config.levels, rows))


def _table(levels: tuple[float, ...], rows: list[Row]) -> str:
    width = max(len(row.role) for row in rows)
    head = f"{'noise level':<{width}}" + "".join(f"{level:>8g}" for level in levels)
    lines = [f"{row.role:<{width}}" + "".join(f"{r2:8.2f}" for r2 in row.r2) for row in rows]
    return "\n".join(["R² of the subject's displacement, read linearly from SMM", head, *lines])
