"""The reference of the command line, from the dataclasses that define the flags.

Names, defaults and help texts are those that the command itself shows.
"""

import argparse
import re
import warnings
from typing import Any

import tyro

from recast import registry
from recast.cli import completion, flags
from recast.pipeline import method_presets, model_loading

_TITLES = {
    "positional arguments": "Arguments",
    "options": "Options",
    "draw options": "Sampling",
    "source options": "Source clip",
    "settings options": "Model",
    "tools options": "Tools",
    "limits options": "Limits",
    "config options": "Settings",
}
_BY_METHOD = {"transfer", "learn", "demo"}
"""Commands whose `config` flags are a method's; those stand on the page of the methods."""


def all_commands() -> str:
    """A section for each command: its summary and a table of each group of flags."""
    return "\n".join(_command(*command) for command in completion.specifications().items())


def all_settings() -> str:
    """A section for each method: its settings, and their values in every preset."""
    return "\n".join(_method(name) for name in registry.names("methods"))


def _command(name: str, command: flags.Specification) -> str:
    parser = _parser(command.kind, default=command.default, config=flags.MARKERS)
    about = re.sub(r" Presets of .*", "", command.description)
    lines = [f"## recast {name}", "", about, ""]
    for group in parser._action_groups:
        rows = [_row(action) for action in group._group_actions if _is_flag(action)]
        title = _TITLES.get(str(group.title), str(group.title))
        if str(group.title) == "config options" and name in _BY_METHOD:
            lines += [f"**{title} of the method**: see [Methods](methods.md#settings).", ""]
        elif rows:
            lines += [f"**{title}**", "", "| flag | default | meaning |", "| --- | --- | --- |"]
            lines += [*rows, ""]
    return "\n".join(lines)


def _parser(kind: Any, **options: Any) -> argparse.ArgumentParser:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return tyro.extras.get_parser(kind, **options)


def _is_flag(action: argparse.Action) -> bool:
    return action.dest != "help" and action.help != argparse.SUPPRESS


def _row(action: argparse.Action) -> str:
    flag, default, text = _parts(action)
    return f"| {flag} | {default} | {text} |"


def _parts(action: argparse.Action) -> tuple[str, str, str]:
    """Flag with the values that it takes, default, and help, as cells of a table."""
    text = " ".join(str(action.help).split())
    found = re.search(r"\s*\((?:default: (.*)|required)\)$", text)
    default = "" if found is None or found[1] is None else found[1]
    text = text if found is None else text[: found.start()]
    metavar = re.sub(r"^\[(\S+) \[.*$", r"\1...", str(action.metavar or "").replace("{None}|", ""))
    default = {"None": "", "True": "yes", "False": "no"}.get(default, default)
    name = " / ".join(action.option_strings) or metavar
    takes = metavar if action.option_strings and action.nargs != 0 else ""
    flag = " ".join([f"`{name}`", *_values_of(takes)])
    return _cell(flag), _cell(f"`{default}`" if default.strip("'") else ""), _cell(text)


def _values_of(metavar: str) -> list[str]:
    """The kind of a flag's values, or each choice as a separate item, so that lines may break."""
    choices = re.match(r"^\{(.*)\}(\.*)$", metavar)
    if choices is None:
        return [f"`{metavar}`"] if metavar else []
    return [" | ".join(f"`{choice}`" for choice in choices[1].split(",")) + choices[2]]


def _cell(text: str) -> str:
    outside = re.split(r"(`[^`]*`)", text)
    escaped = [
        part if part.startswith("`") else part.replace("<", "&lt;").replace("*", "\\*")
        for part in outside
    ]
    return "".join(escaped).replace("|", "\\|")


def _method(name: str) -> str:
    module = registry.load("methods", name)
    presets: dict[str, Any] = module.PRESETS
    summary = (module.__doc__ or "").strip().split("\n\n")[0]
    lines = [f"### {name} {{#settings-{name}}}", "", _cell(" ".join(summary.split())), ""]
    lines.append(f"Presets: {', '.join(f'`{p}`' for p in presets)}. {_defaults(name)}")
    parser = _parser(module.Config, default=next(iter(presets.values())), config=flags.MARKERS)
    actions = [action for group in parser._action_groups for action in group._group_actions]
    lines += [
        "",
        f"| flag | meaning | {' | '.join(presets)} |",
        "| --- " * (len(presets) + 2) + "|",
    ]
    for action in filter(_is_flag, actions):
        flag, _, text = _parts(action)
        field = action.dest.replace("-", "_")
        values = " | ".join(_value(getattr(config, field)) for config in presets.values())
        lines.append(f"| {flag} | {text} | {values} |")
    return "\n".join([*lines, ""])


def _defaults(method: str) -> str:
    """A sentence for each default preset, with the models that have it."""
    models: dict[str, list[str]] = {}
    for model in model_loading.aliases():
        models.setdefault(method_presets.default_preset(method, model), []).append(model)
    usual, *others = sorted(models, key=lambda name: len(models[name]), reverse=True)
    texts = [f"`{name}` on {', '.join(f'`{model}`' for model in models[name])}" for name in others]
    rest = f"`{usual}` on other models" if texts else f"`{usual}`"
    return f"The default is {'; '.join([*texts, rest])}."


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(f"`{one}`" for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return f"`{value}`" if value else ""
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
