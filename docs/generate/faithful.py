"""The tables of "Faithful to what": every published preset against its source, line by line.

The lines are data in `faithful.toml`. The values of settings come from the presets themselves, and
`problems` finds lines that do not agree with them.
"""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recast import registry
from recast.pipeline import defaults

DATA = Path(__file__).with_name("faithful.toml")
WITHOUT_SOURCE = {"sdedit", "unguided"}
"""Methods whose presets follow no publication: their sources name no numbers for video."""


def tables() -> str:
    """A section for each published preset. Raises `ValueError` for data that does not agree with
    the presets."""
    wrong = problems()
    if wrong:
        raise ValueError(f"{DATA.name} does not agree with the presets: {'; '.join(wrong)}")
    return "\n".join(line for name, data in _data().items() for line in _method(name, data))


def problems() -> list[str]:
    """What does not agree: presets without lines, unknown settings, settings without a line, and
    settings with other values than the preset's."""
    data = _data()
    wrong = []
    for name in sorted(set(registry.names("methods")) - WITHOUT_SOURCE | set(data)):
        method = data.get(name, {})
        published = {
            preset: config for preset, config in _presets(name) if defaults.tuned_on(preset) is None
        }
        named = {preset for line in method.get("line", ()) for preset in line["presets"]}
        wrong += [f"{name} {preset} has no preset" for preset in sorted(named - set(published))]
        for preset, config in published.items():
            wrong += [f"{name} {preset}: {text}" for text in _mismatches(method, preset, config)]
    return wrong


def _mismatches(method: Mapping[str, Any], preset: str, config: Any) -> Iterator[str]:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    # A preset without a number for sampling uses that of the model, which needs no line.
    explained = {"steps", "guidance_scale"} - {n for n, v in values.items() if v is not None}
    explained |= set(method.get("ours", {}))
    for line in _lines(method, preset):
        for setting, wanted in line.get("sets", {}).items():
            explained.add(setting)
            value = values.get(setting)
            value = list(value) if isinstance(value, tuple) else value
            if setting not in values or value != wanted:
                yield f"{setting} is {value!r}, and the line says {wanted!r}"
    yield from (f"no line explains {setting}" for setting in sorted(set(values) - explained))


def _data() -> dict[str, Any]:
    return tomllib.loads(DATA.read_text(encoding="utf-8"))


def _presets(method: str) -> list[tuple[str, Any]]:
    return list(registry.load("methods", method).PRESETS.items())


def _lines(method: Mapping[str, Any], preset: str) -> list[Mapping[str, Any]]:
    return [line for line in method.get("line", ()) if preset in line["presets"]]


def _method(name: str, data: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"## {name} {{#faithful-{name}}}", "", data["source"], "")
    for preset, config in _presets(name):
        lines = _lines(data, preset)
        if not lines:
            continue
        yield from (f"### {name} {preset} {{#faithful-{name}-{preset}}}", "")
        yield from ("| the source says | the preset has | same? |", "| --- | --- | --- |")
        yield from (_row(line, config) for line in lines)
        yield ""
    if data.get("ours"):
        yield from ("Settings that no source has:", "")
        yield from (f"- `--{_flag(setting)}`: {why}" for setting, why in data["ours"].items())
        yield ""


def _row(line: Mapping[str, Any], config: Any) -> str:
    flags = [f"`--{_flag(name)}` {_value(getattr(config, name))}" for name in line.get("sets", {})]
    has = "; ".join([*flags, *([line["has"]] if "has" in line else [])])
    verdict = f"**Differs.** {line['differs']}" if "differs" in line else "same"
    return f"| {line['says']} | {has} | {verdict} |"


def _flag(setting: str) -> str:
    return setting.replace("_", "-")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(f"`{one}`" for one in value) or "empty"
    if isinstance(value, str):
        return f"“{value.strip()}”" if " " in value else f"`{value}`" if value else "empty"
    return f"{value:g}"
