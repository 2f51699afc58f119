"""A run of the page as a command line and as Python, so that it can be repeated without the page.

This module owns both texts. They name only what differs from the defaults. It refuses to know
where the clip is on the visitor's machine: it writes the file's name.
"""

import dataclasses
import shlex
from collections.abc import Iterator
from typing import Any

from recast.backbones.base import Settings
from recast.pipeline import method_presets
from recast.pipeline.config import DEFAULT_BACKBONE, Draw, RunConfig
from recast.pipeline.source_clip import MOTION_SUFFIX, Source
from recast.web.requests import hidden_settings

_PARTS = {"draw": Draw, "source": Source, "settings": Settings}


def command_line(run: RunConfig[Any], clip: str, mask: str | None = None) -> str:
    """The call of `recast transfer`. `clip` and `mask` are what the visitor calls these files."""
    words = ["recast", "transfer", clip, run.prompt, "--method", run.method]
    if run.backbone != DEFAULT_BACKBONE:
        words += ["--backbone", run.backbone]
    if run.preset:
        words += ["--preset", run.preset]
    if mask:
        words += [f"--mask={mask}"]
    for name, value in _changes(run):
        words += _flag(name, value)
    return shlex.join(words)


def python(run: RunConfig[Any], clip: str, mask: str | None = None) -> str:
    """The same run as a Python program."""
    known = method_presets.presets(run.method)
    preset = method_presets.record(run.method, run.config, run.backbone).name
    config = f'recast.presets("{run.method}")["{preset}"]'
    changes = _differences(run.config, known[preset])
    if changes:
        arguments = ", ".join(f"{name}={value!r}" for name, value in changes.items())
        config = f"dataclasses.replace({config}, {arguments})"
    parts = _parts(run)
    lines = [
        *(["import dataclasses"] if changes else []),
        "from pathlib import Path",
        "",
        "import recast",
        "from recast.pipeline import run",
        *(["from recast.pipeline.config import Draw"] if "draw" in parts else []),
        "",
        "config = recast.RunConfig(",
        f"    clip=Path({clip!r}),",
        f"    prompt={run.prompt!r},",
        f"    method={run.method!r},",
        f"    backbone={run.backbone!r},",
        *([f"    preset={run.preset!r},"] if run.preset else []),
        *([f"    mask={mask!r},"] if mask else []),
        f"    config={config},",
        *(f"    {part}={text}," for part, text in parts.items()),
        ")",
    ]
    return "\n".join([*lines, "print(run.transfer(config).run().folder)"])


def _parts(run: RunConfig[Any]) -> dict[str, str]:
    """The nested configs that differ from their defaults, as Python."""
    homes = {"draw": "Draw", "source": "recast.Source", "settings": "recast.Settings"}
    found = {}
    for part, kind in _PARTS.items():
        values = _differences(getattr(run, part), kind())
        if values:
            arguments = ", ".join(f"{name}={value!r}" for name, value in values.items())
            found[part] = f"{homes[part]}({arguments})"
    return found


def _changes(run: RunConfig[Any]) -> Iterator[tuple[str, Any]]:
    """Name and value of every setting that the command line must name."""
    if run.clip.suffix == MOTION_SUFFIX and not run.preset:
        from recast.motions.motion import Motion

        start = method_presets.config_of_motion(Motion.load(run.clip))
    else:
        preset = run.preset or method_presets.default_preset(run.method, run.backbone)
        start = method_presets.preset(run.method, preset)
    hidden = hidden_settings(start)
    for name, value in _differences(run.config, start).items():
        if name not in hidden:
            yield name, value
    for part, kind in _PARTS.items():
        yield from _differences(getattr(run, part), kind()).items()


def _differences(config: Any, other: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(other)]
    return {n: getattr(config, n) for n in names if getattr(config, n) != getattr(other, n)}


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, tuple):
        return [f"--{flag}", *map(str, value)]
    return [f"--{flag}", str(value)]
