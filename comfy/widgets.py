"""Widgets that are made from the fields of Recast's configs: choices, defaults and help texts have
one place, which is the config.

A field whose default is None becomes a number whose 0 means the default, and a text that is empty
by default has a box of several lines. This module refuses to
know single fields.
"""

import dataclasses
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
from comfy_api.latest import io

_LARGEST_INT, _LARGEST_FLOAT = 2**31 - 1, 1e6


def widgets(config: type, *names: str) -> list[io.Input]:
    """One widget for each of these fields of a dataclass, in this order."""
    kinds, helps = get_type_hints(config), _help_texts(config)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return [_widget(name, kinds[name], defaults[name], helps[name]) for name in names]


def values(config: type, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The values of fields from those of their widgets."""
    kinds = get_type_hints(config)
    return {
        name: None if value == 0 and _is_optional(kinds[name]) else value
        for name, value in chosen.items()
    }


def _widget(name: str, kind: Any, default: Any, text: str) -> io.Input:
    if get_origin(kind) is Literal:
        return io.Combo.Input(name, options=list(get_args(kind)), default=default, tooltip=text)
    if _is_optional(kind):
        (kind,) = set(get_args(kind)) - {NoneType}
        default, text = kind(0), f"{text} 0 means the default."
    if kind is bool:
        return io.Boolean.Input(name, default=default, tooltip=text)
    if kind is int:
        return io.Int.Input(name, default=default, min=0, max=_LARGEST_INT, tooltip=text)
    if kind is float:
        limits = {"min": 0.0, "max": _LARGEST_FLOAT, "step": 0.01}
        return io.Float.Input(name, default=default, tooltip=text, **limits)
    assert kind is str, kind
    return io.String.Input(name, default=default, multiline=not default, tooltip=text)


def _is_optional(kind: Any) -> bool:
    return NoneType in get_args(kind)


def _help_texts(config: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass and of its bases, each as one line."""
    return {
        parameter.arg_name: " ".join((parameter.description or "").split())
        for base in reversed(config.__mro__)
        if dataclasses.is_dataclass(base)
        for parameter in docstring_parser.parse_from_object(base).params
    }
