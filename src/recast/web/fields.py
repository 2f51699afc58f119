"""The settings of a run as a page needs them: names, kinds, defaults, help, from the dataclasses.

The command line has tyro for this. Here the same classes and the same docstrings become fields of
an HTML form, and the values that come back become a config again. This module refuses to know
which configs there are.
"""

import dataclasses
import functools
import threading
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import docstring_parser

from recast.errors import BadCall, UnknownName, check_finite

T = TypeVar("T")
Kind = Literal["switch", "whole number", "number", "text", "choice", "list"]
_MAX_TEXT = 2000
"""Longest text of a setting, in characters."""
_ONE_PARSER = threading.Lock()
"""Held while docstrings are read: they come from the syntax tree of the source, and Python 3.11
fails with a SystemError where two threads build one at the same time."""
_KINDS: dict[type, Kind] = {bool: "switch", int: "whole number", float: "number", str: "text"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One setting."""

    name: str
    kind: Kind
    help: str
    default: Any
    choices: tuple[str, ...] = ()
    """The values of a choice."""
    optional: bool = False
    """Whether the setting may have no value."""
    item: type = str
    """The type of the items of a list."""

    @property
    def label(self) -> str:
        """The name in words."""
        return label_of(self.name)


def label_of(name: str) -> str:
    """The name of a setting in words: guidance_scale is "Guidance scale"."""
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def fields_of(config: Any) -> list[Field]:
    """The settings of a dataclass object, with its values as defaults. Nested configs and types
    that no form can show are left out."""
    kind = type(config)
    hints = get_type_hints(kind, include_extras=False)
    texts = _texts_of(kind)
    return [
        Field(name=name, help=texts.get(name, ""), default=getattr(config, name), **form)
        for name in (field.name for field in dataclasses.fields(config))
        if (form := _form(hints[name]))
    ]


def with_values(config: T, values: Mapping[str, Any]) -> T:
    """A dataclass object, changed by values as JSON has them.

    Raises `UnknownName` for a setting that it does not have, and `BadCall` for a value of another
    type, beside the errors of the class itself.
    """
    fields = {field.name: field for field in fields_of(config)}
    for name in values:
        if name not in fields:
            raise UnknownName("setting", name, fields)
    changes = {name: _read(fields[name], value) for name, value in values.items()}
    changed: T = dataclasses.replace(cast(Any, config), **changes)
    check_finite(changed)
    return changed


def _texts_of(kind: type) -> Mapping[str, str]:
    """The help of each field of a dataclass, from its docstrings."""
    with _ONE_PARSER:
        return _parsed_texts(kind)


@functools.cache
def _parsed_texts(kind: type) -> Mapping[str, str]:
    return {
        parameter.arg_name: " ".join((parameter.description or "").split())
        for parent in reversed(kind.__mro__)  # the docstrings of inherited fields are there
        if dataclasses.is_dataclass(parent)
        for parameter in docstring_parser.parse_from_object(parent).params
    }


def _form(hint: Any) -> dict[str, Any]:
    """Kind, choices and so on of a type; empty for one that no form can show."""
    optional = False
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        optional = len(parts) < len(get_args(hint))
        if len(parts) != 1:
            return {}
        (hint,) = parts
    if get_origin(hint) is Literal:
        return {"kind": "choice", "choices": get_args(hint), "optional": optional}
    if get_origin(hint) is tuple and len(get_args(hint)) == 2 and get_args(hint)[1] is Ellipsis:
        item = get_args(hint)[0]
        return {"kind": "list", "item": item, "optional": optional} if item in (str, int) else {}
    return {"kind": _KINDS[hint], "optional": optional} if hint in _KINDS else {}


def _read(field: Field, value: Any) -> Any:
    """A value of JSON as the type of a setting. Raises `BadCall`, `UnknownName`."""
    if field.optional and (value is None or value == ""):
        return None
    match field.kind:
        case "switch":
            if isinstance(value, bool):
                return value
            raise BadCall(f"`{field.name}` is on or off (true or false), got {value!r}")
        case "choice":
            if value in field.choices:
                return value
            raise UnknownName(f"`{field.name}`", str(value), field.choices)
        case "list":
            return _read_list(field, value)
        case "text":
            if isinstance(value, str) and len(value) <= _MAX_TEXT:
                return value
            raise BadCall(f"`{field.name}` is a text of at most {_MAX_TEXT} characters")
        case _:
            return _read_number(field.name, field.kind == "whole number", value)


def _read_list(field: Field, value: Any) -> tuple[Any, ...]:
    items = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or len(items) > 100:
        raise BadCall(f"`{field.name}` is a list with blanks in between, got {value!r}")
    if field.item is int:
        return tuple(_read_number(field.name, True, item) for item in items)
    return tuple(str(item)[:100] for item in items)


def _read_number(name: str, whole: bool, value: Any) -> int | float:
    kind = "a whole number" if whole else "a number"
    if not isinstance(value, bool) and isinstance(value, int | float | str):
        try:
            return int(str(value)) if whole else float(value)
        except (ValueError, OverflowError):
            pass
    raise BadCall(f"`{name}` is {kind}, got {value!r}")
