"""From a command line to a config: tyro parses the flags, and each mistake becomes one line.

tyro reads types, defaults and help from the dataclasses. This module adds what tyro does not offer:
the nearest names for an unknown flag, errors of one line instead of a box, help texts without the
line breaks of the source, and the settings of a method as flags beside those of the run. It refuses
to know what a command does.
"""

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from itertools import pairwise
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

import docstring_parser
import tyro

from recast.cli.console import asks_help
from recast.errors import BadCall, UnknownName, check_finite

T = TypeVar("T")
MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs)
"""How tyro makes flags of the fields of a dataclass."""
_ASKS = ContextVar("asks", default=False)
"""Whether `parse` is called by `specification`."""
_INT_ERROR = r"(?:no type matching .*\|INT could|invalid literal for int).*?('.*?')[\].].*"
_FLOAT_ERROR = (
    r"(?:no type matching .*\|FLOAT could|could not convert string to float).*?('.*?')[\].].*"
)
_PLAIN_ERRORS = (
    (rf"Error parsing (\S+): {_INT_ERROR}", r"\1 takes a whole number, got \2"),
    (rf"Error parsing (\S+): {_FLOAT_ERROR}", r"\1 takes a number, got \2"),
    (r"Error parsing (\S+): Could not find valid parse .*\[(.*)\]\.", r"\1 does not take \2"),
    (r"invalid choice (.*) for argument '(\S+)'.*\((.*?),?\)\.", r"\2 takes one of \3, got \1"),
    (r"Missing value for argument '(\S+)'.*", r"\1 needs a value"),
    (
        r"Unrecognized options: (.*)\.",
        r"unexpected arguments: \1; put a text of several words in quotation marks, and its flag "
        "before it if it has one",
    ),
)
"""Regular expressions for tyro's messages, each with what Recast says instead."""


class Specification(NamedTuple):
    """What a command parses, as the arguments of `parse`."""

    kind: Any
    default: Any
    description: str


class _Asked(BaseException):
    """Carries a specification out of a command."""

    def __init__(self, specification: Specification) -> None:
        super().__init__()
        self.specification = specification


def specification(command: Callable[[], object]) -> Specification:
    """What a command parses. The command ends before it does anything else."""
    token = _ASKS.set(True)
    try:
        command()
    except _Asked as asked:
        return asked.specification
    finally:
        _ASKS.reset(token)
    raise RuntimeError("the command has parsed nothing")


def parse(kind: Any, default: Any, argv: Sequence[str], command: str, description: str = "") -> Any:
    """An instance of the dataclass `kind`: the values of `default`, changed by the flags in `argv`.

    For --help it prints the help and raises `SystemExit(0)`. Raises `BadCall` for every mistake.
    """
    if _ASKS.get():
        raise _Asked(Specification(kind, default, description))
    if not asks_help(argv):
        _check_known(argv, default)
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message), unwrapped_help():
            parsed = tyro.cli(
                kind,
                prog=command,
                description=description or None,
                args=list(argv),
                default=default,
                config=MARKERS,
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise BadCall(_one_line(message.getvalue(), command)) from None
    _check_finite(parsed)
    return parsed


def value_of(flag: str, argv: Sequence[str]) -> str | None:
    """The last value of a flag in `argv`, for what has to be known before the flags are parsed."""
    value = None
    for index, word in enumerate(argv):
        if word == flag and index + 1 < len(argv):
            value = argv[index + 1]
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def without(config: Any, names: set[str]) -> tuple[type, Any]:
    """A subclass of the config's class in which the fields `names` are not flags, and the config as
    an instance of it.

    It is for a method that has a setting of the same name as the run: the flag then sets that of
    the run.
    """
    kind = type(config)
    hints = get_type_hints(kind)
    hidden = [
        (f.name, Annotated[hints[f.name], tyro.conf.Suppress], dataclasses.field(default=f.default))
        for f in dataclasses.fields(kind)
        if f.name in names
    ]
    if not hidden:
        return kind, config
    visible = dataclasses.make_dataclass(
        kind.__name__, hidden, bases=(kind,), frozen=True, kw_only=True
    )
    return visible, visible(**_values(config))


def restored(config: Any, kind: type[T]) -> T:
    """The config from `without`, as an instance of the method's own class again."""
    return config if type(config) is kind else kind(**_values(config))


def own_names(default: Any, but: Any = None) -> set[str]:
    """The names of all fields of a config that become flags, without those of the nested config
    `but`."""
    names = set()
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            names |= set() if value is but else own_names(value, but)
        else:
            names.add(field.name)
    return names


def _values(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _check_finite(config: Any) -> None:
    """Raise `BadCall` for a number that is not finite, also in nested configs."""
    check_finite(config)
    for value in _values(config).values():
        if dataclasses.is_dataclass(value):
            _check_finite(value)


def _all_flags(default: Any) -> Iterator[str]:
    for name in own_names(default):
        flag = name.replace("_", "-")
        yield from (f"--{flag}", f"--no-{flag}")


def _check_known(argv: Sequence[str], default: Any) -> None:
    """Raise `UnknownName` for a flag that the config does not have."""
    known = set(_all_flags(default))
    for word in argv:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            choices = {name for name in known if not name.startswith("--no-")}
            raise UnknownName("flag", flag, choices)


@contextlib.contextmanager
def unwrapped_help() -> Iterator[None]:
    """Inside this context, help texts have no line breaks, so that they fit any terminal.

    Otherwise tyro breaks a text where the docstring in the source does, because docstring_parser
    keeps the indentation of a field's docstring.
    """
    original = docstring_parser.parse_from_object

    def parse_unwrapped(described: object) -> docstring_parser.Docstring:
        docstring = original(described)
        for parameter in docstring.params:
            if parameter.description is not None:
                parameter.description = " ".join(parameter.description.split())
        return docstring

    docstring_parser.parse_from_object = parse_unwrapped  # type: ignore[assignment]
    try:
        yield
    finally:
        docstring_parser.parse_from_object = original


def _one_line(box: str, command: str) -> str:
    """tyro's message without its frame, its title and the help that it repeats."""
    lines = [re.sub(r"^[│ ] |│$", "", line).rstrip() for line in box.splitlines()[1:]]
    # Lines of dashes separate the title (if only ASCII is allowed), the message and the help.
    rules = [index for index, line in enumerate(lines) if re.fullmatch(r" ?[─-]{4,}", line)]
    first = 1 if rules[:1] == [0] else 0
    body = lines[first : next((rule for rule in rules if rule >= first), len(lines))]
    text = " ".join(" ".join(body).split()).rstrip(".") + "."
    if text.startswith("Missing from"):
        # Missing arguments are indented below that line, and their help is indented further.
        names = [line.strip() for line in body if re.match(r" {4}\S", line)]
        return f"missing: {', '.join(names)}; see {command} --help"
    for pattern, plain in _PLAIN_ERRORS:
        if match := re.fullmatch(pattern, text):
            return f"{match.expand(plain)}; see {command} --help"
    if text[1:2].islower():
        text = text[0].lower() + text[1:]
    return f"{text.rstrip('.')}; see {command} --help"


def local_ray(argv: list[str]) -> list[str]:
    """The arguments, with "local" after a `--ray` that has no value: a cluster on this machine."""
    words = []
    for word, following in pairwise([*argv, "--"]):
        words += [word, "local"] if word == "--ray" and following.startswith("--") else [word]
    return words
