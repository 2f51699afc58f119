"""`recast completion`: a script that lets a shell complete commands, flags and their choices.

The script is tyro's, for one parser of all commands. A command is asked for its flags by calling it
until it parses them, so a new command is completed without an edit here.
"""

import contextlib
import dataclasses
import importlib
import io
from collections.abc import Mapping
from functools import partial, reduce
from operator import or_
from typing import Annotated, Any, Literal

import tyro

from recast.cli import flags
from recast.cli.console import say
from recast.cli.flags import Specification
from recast.errors import BadCall

_MISSING: Any = tyro.MISSING
_END = {
    "bash": "complete -o bashdefault -o default -F _tyro_recast recast",
    "fish": "complete --command recast --force-files",
}
"""The line that completes names of files where no choice is known."""
_ZSH_CHOICES = "  # Check for special path completion marker."
"""The line of tyro's script for zsh before which the choices are known."""
_ZSH_FILES = '  [[ -n "$completions" ]] || { _files; return }'


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Completion:
    shell: Annotated[
        Literal["bash", "zsh", "fish"], tyro.conf.Positional, tyro.conf.arg(metavar="SHELL")
    ]
    """The shell: bash, zsh or fish."""


@dataclasses.dataclass(frozen=True)
class _NoFlags:
    pass


def completion(argv: list[str], command: str, about: str) -> None:
    """Print the script."""
    default = _Completion(shell=_MISSING)
    call: _Completion = flags.parse(_Completion, default, argv, command, about)
    say(script(call.shell, specifications()))


def specifications() -> dict[str, Specification]:
    """What each command parses, by the names of the commands. A command whose packages are not
    installed has no flags."""
    cli = importlib.import_module("recast.cli")  # here, because it imports this module by name
    found = {}
    for name in cli.commands():
        try:
            found[name] = flags.specification(partial(cli.call, name, ()))
        except BadCall as missing:
            found[name] = Specification(_NoFlags, _NoFlags(), str(missing))
    return found


def script(shell: str, commands: Mapping[str, Specification]) -> str:
    """The script for a shell, with commands of one word or two."""
    groups: dict[str, dict[str, Specification]] = {}
    for name, specification in commands.items():
        group, _, inner = name.partition(" ")
        groups.setdefault(group, {})[inner] = specification
    parser = reduce(or_, [_group(name, members) for name, members in groups.items()])
    text = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(text), flags.unwrapped_help():
        tyro.cli(
            parser,
            prog="recast",
            args=["--tyro-write-completion", shell, "-"],
            config=(*flags.MARKERS, tyro.conf.OmitSubcommandPrefixes),
        )
    lines = text.getvalue().rstrip()
    if shell == "zsh":
        return lines.replace(_ZSH_CHOICES, f"{_ZSH_FILES}\n{_ZSH_CHOICES}")
    return f"{lines}\n{_END[shell]}"


def _group(name: str, members: Mapping[str, Specification]) -> Any:
    """The subcommand of a command of one word, or of all commands that begin with a word."""
    if "" in members:
        return _subcommand(name, members[""])
    inner = reduce(or_, [_subcommand(*member) for member in members.items()])
    holder = dataclasses.make_dataclass(name, [("command", inner)])
    return Annotated[holder, tyro.conf.subcommand(name)]


def _subcommand(name: str, specification: Specification) -> Any:
    options = tyro.conf.subcommand(
        name, default=specification.default, description=specification.description
    )
    return Annotated[specification.kind, options]
