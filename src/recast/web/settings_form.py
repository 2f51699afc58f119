"""The form of all settings of a run: which groups it has, which settings stand first.

This module owns the order. Names, kinds and help come from the dataclasses by `fields.py`, and the
HTML is the template `settings.html`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recast.backbones.base import Settings
from recast.pipeline import method_presets
from recast.pipeline.config import Draw
from recast.pipeline.source_clip import Source
from recast.web.fields import Field, fields_of
from recast.web.requests import hidden_settings

_ELSEWHERE = {
    "draw": ("seed", "samples", "negative_prompt"),
    "source": ("start", "fit", "source_prompt"),
}
"""Settings that have a place of their own on the page."""
_COMMON = (("draw", "steps"), ("draw", "guidance_scale"), ("source", "frames"))
_COMMON_OF_METHOD = 6
"""Number of the method's settings that stand first; each method declares the important ones
first."""


@dataclass(frozen=True, slots=True)
class Input:
    """One setting in the form."""

    part: str
    """The config that has it: "config", "draw", "source" or "settings"."""
    field: Field
    value: Any
    """What the form shows at first; as JSON has it."""

    @property
    def name(self) -> str:
        """The name of the form's field."""
        return f"{self.part}.{self.field.name}"

    @property
    def default(self) -> Any:
        """The value that counts as unchanged."""
        return _plain(self.field.default)


@dataclass(frozen=True, slots=True)
class Group:
    """Settings under one heading."""

    title: str
    inputs: list[Input]
    open: bool = False


def groups(
    method: str, preset: str, values: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Group]:
    """The groups of the form for a preset of a method. `values` are those of a request."""
    config = method_presets.preset(method, preset)
    hidden = hidden_settings(config)
    parts = {"config": config, "draw": Draw(), "source": Source(), "settings": Settings()}
    known = {
        (part, field.name): Input(part, field, _value(part, field, values or {}))
        for part, object in parts.items()
        for field in fields_of(object)
        if field.name not in _ELSEWHERE.get(part, ())
        if part != "config" or field.name not in hidden
    }
    of_method = [input for (part, _), input in known.items() if part == "config"]
    first = [known[key] for key in _COMMON] + of_method[:_COMMON_OF_METHOD]

    def rest(part: str) -> list[Input]:
        return [input for input in known.values() if input.part == part and input not in first]

    found = [
        Group("Most used", first, open=True),
        Group(f"More of {method}", rest("config")),
        Group("Source clip", rest("source")),
        Group("Model and memory", rest("settings")),
    ]
    return [group for group in found if group.inputs]


def _value(part: str, field: Field, values: Mapping[str, Mapping[str, Any]]) -> Any:
    own = values.get(part, {})
    return own.get(field.name, _plain(field.default))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
