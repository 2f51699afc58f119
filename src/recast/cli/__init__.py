"""The command line: finds the command, runs it, and turns its end into an exit code.

Owns the names of the commands and flags, and how a library error reads on a terminal. Knows no
order of work: that is `pipeline`'s. Begin with `main` here, then `transfer`.

Every command imports what it needs when it is called, so that help and most mistakes come at once.
Exit codes: 0; 1 for a run that failed; 2 for a wrong call; 130 after Ctrl-C.
"""

import importlib
import os
import sys
from collections.abc import Iterable, Sequence

import recast
from recast.cli.console import complain, say
from recast.errors import BadCall, RecastError, UnknownName

INTERRUPTED = 130
# Name -> module in this package and function in it, and a summary.
_COMMANDS = {
    "transfer": ("transfer.transfer", "make a new clip with the motion of another"),
    "learn": ("transfer.learn", "learn the motion of a clip into a file, for many transfers"),
    "mix": ("motions.mix", "add or interpolate motions that were learned"),
    "inspect": ("motions.inspect", "show what a motion file holds"),
    "evaluate": ("evaluate.evaluate", "score a result against its source by every metric"),
    "bench": ("bench.bench", "run a suite of clips, prompts and methods, and report"),
    "demo": ("transfer.demo", "render a clip of the shapes world and transfer its motion"),
    "methods": ("listing.methods", "list the methods and their presets"),
    "backbones": ("listing.backbones", "list the models that have a name"),
    "doctor": ("listing.doctor", "show what this machine has and what fits on it"),
    "store ls": ("listing.store_ls", "list the motions in the motion store"),
    "store prune": ("listing.store_prune", "remove the least recently used motions"),
    "analyze probe": ("analysis.probe", "measure how well a model's features predict the motion"),
    "analyze retrieve": (
        "analysis.retrieve",
        "find the nearest frames of other subjects by a model's features",
    ),
    "analyze invert-features": (
        "analysis.invert_features",
        "rebuild a clip from its features alone, to see what they hold",
    ),
    "shapes render": ("shapes.render", "draw a clip of the shapes world, with its exact truth"),
    "shapes train": ("shapes.train", "train a model like those that ship, from scratch"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    try:
        _dispatch(list(sys.argv[1:] if argv is None else argv))
    except RecastError as error:
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        complain("stopped; no unfinished file was left behind")
        return INTERRUPTED
    except SystemExit as end:  # tyro, once it has shown the help
        return int(end.code or 0)
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def commands() -> dict[str, str]:
    """Every command and its summary."""
    return {name: summary for name, (_, summary) in _COMMANDS.items()}


def _dispatch(argv: list[str]) -> None:
    for count in (2, 1):
        name = " ".join(argv[:count])
        if name in _COMMANDS:
            target, summary = _COMMANDS[name]
            module, _, function = target.partition(".")
            command = getattr(importlib.import_module(f"recast.cli.{module}"), function)
            command(argv[count:], f"recast {name}", f"{summary[0].upper()}{summary[1:]}.")
            return
    if not argv:
        raise BadCall("no command was given; recast --help lists them")
    group = [name for name in _COMMANDS if name.startswith(f"{argv[0]} ")]
    if {"-h", "--help"} & set(argv[: 2 if group else 1]):
        say(_overview(group or _COMMANDS))
    elif argv[0] == "--version":
        say(f"recast {recast.__version__}")
    else:
        raise UnknownName("command", " ".join(argv[: 2 if group else 1]), group or _first_words())


def _first_words() -> set[str]:
    return {name.split()[0] for name in _COMMANDS}


def _overview(names: Iterable[str]) -> str:
    listed = list(names)
    width = max(map(len, listed))
    rows = [f"  recast {name:<{width}}  {_COMMANDS[name][1]}" for name in listed]
    head = "Text-driven video motion transfer: the same motion, a new cast."
    return "\n".join([head, "", *rows, "", "Each command explains itself with --help."])
