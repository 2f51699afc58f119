"""From a command line to a config: tyro on our dataclasses, every mistake in one line.

tyro reads types, defaults and help from the dataclasses. This module adds what tyro does not offer:
the nearest names for an unknown flag, errors of one line instead of a box, and the settings of a
method as flags beside those of the run.
"""

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from recast.errors import BadCall, UnknownName

T = TypeVar("T")
_MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs)


def parse(kind: Any, default: Any, argv: Sequence[str], command: str, description: str = "") -> Any:
    """An instance of `kind` (a dataclass, with its parameters) from flags that start at `default`.

    Prints help and raises SystemExit(0) if asked to. Raises `BadCall` for every mistake.
    """
    if not asks_help(argv):
        _check_known(argv, default)
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(
                kind,
                prog=command,
                description=description or None,
                args=list(argv),
                default=default,
                config=_MARKERS,
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise BadCall(_one_line(message.getvalue(), command)) from None


def asks_help(argv: Sequence[str]) -> bool:
    """Whether the command line asks for help."""
    return bool({"-h", "--help"} & set(argv))


def value_of(flag: str, argv: Sequence[str]) -> str | None:
    """The value of a flag in argv, read before there is a parser; the last one counts."""
    value = None
    for index, word in enumerate(argv):
        if word == flag and index + 1 < len(argv):
            value = argv[index + 1]
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def without(config: Any, names: set[str]) -> tuple[type, Any]:
    """A class like the config's own and an instance of it, in which fields of these names are not
    flags.

    Where a method and the run have a setting of the same name, the flag means the run's.
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
    """The config as the method's own class again."""
    return config if type(config) is kind else kind(**_values(config))


def own_names(default: Any, but: Any = None) -> set[str]:
    """The names of a config's fields that become flags, including nested ones but not `but`."""
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


def _known(default: Any) -> Iterator[str]:
    for name in own_names(default):
        flag = name.replace("_", "-")
        yield from (f"--{flag}", f"--no-{flag}")


def _check_known(argv: Sequence[str], default: Any) -> None:
    known = set(_known(default))
    for word in argv:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            choices = {name for name in known if not name.startswith("--no-")}
            raise UnknownName("flag", flag, choices)


def _one_line(box: str, command: str) -> str:
    """tyro's message without its frame, its title and the help that it repeats."""
    lines = [re.sub(r"^[│ ] |│$", "", line).rstrip() for line in box.splitlines()[1:]]
    # Rules separate the title (where letters must be ASCII), the message and the help.
    rules = [index for index, line in enumerate(lines) if re.fullmatch(r" ?[─-]{4,}", line)]
    first = 1 if rules[:1] == [0] else 0
    body = lines[first : next((rule for rule in rules if rule >= first), len(lines))]
    text = " ".join(" ".join(body).split()).rstrip(".")
    wrong = re.match(
        r"Error parsing (\S+): no type matching \{None\}\|(\S+) .* from \[(.+?)\]", text
    )
    if text.startswith("Missing from"):
        # Missing arguments are indented below that line, and their help is indented further.
        names = [line.strip() for line in body if re.match(r" {4}\S", line)]
        text = f"missing: {', '.join(names)}"
    elif wrong:
        text = f"{wrong[1]} takes {wrong[2]}, got {wrong[3]}"
    elif text[1:2].islower():
        text = text[0].lower() + text[1:]
    return f"{text}; see {command} --help"


def local_ray(argv: list[str]) -> list[str]:
    """The command line, where `--ray` without a value means a cluster on this machine."""
    words = []
    for word, following in zip(argv, [*argv[1:], "--"], strict=True):
        words += [word, "local"] if word == "--ray" and following.startswith("--") else [word]
    return words
