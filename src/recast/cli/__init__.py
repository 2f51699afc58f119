"""The command line: it finds the command, runs it, and ends with an exit code.

The room owns the names of commands and flags, and how events and errors look on a terminal. It
refuses to know the order of a run, which belongs to `recast.pipeline`. Begin with `main` here, then
read `transfer.py` and `flags.py`.

Each command is imported when it is called. Help, and the commands that compute nothing, load no
large library (`stand_ins.py`), so that they answer at once. Exit codes: 0 for success, 1 for a run
that failed, 2 for a wrong call, 130 after Ctrl-C.
"""

import importlib
import os
import sys
from collections.abc import Iterable, Sequence

import recast
from recast import registry
from recast.cli import stand_ins
from recast.cli.console import asks_help, complain, say
from recast.errors import BadCall, RecastError, UnknownName

INTERRUPTED = 130
# For each command the module in this package with the function in it, and a summary.
_COMMANDS = {
    "transfer": ("transfer.transfer", "make a new clip with the motion of another"),
    "learn": ("transfer.learn", "learn a motion from a clip and save it, for many transfers"),
    "mix": ("motions.mix", "add or interpolate learned motions"),
    "inspect": ("motions.inspect", "show the content of a motion file"),
    "evaluate": ("evaluate.evaluate", "compare a result with its source by every metric"),
    "bench": ("bench.bench", "compare methods on a suite of clips and prompts, with a report"),
    "demo": ("transfer.demo", "render a clip of the shapes world and transfer its motion"),
    "serve": ("serve.serve", "show the page in which transfers are made in a browser"),
    "methods": ("listing.methods", "list the methods and their presets"),
    "backbones": ("listing.backbones", "list the models that can be loaded by a short name"),
    "doctor": ("listing.doctor", "show what this machine has, or the memory that a model needs"),
    "completion": ("completion.completion", "print a script that completes commands in a shell"),
    "verify": ("verify.verify", "check a model on this machine from its files to a transfer"),
    "store ls": ("listing.store_ls", "list the motions in the motion store"),
    "store prune": (
        "listing.store_prune",
        "remove the least recently used motions from the motion store",
    ),
    "analyze probe": ("analysis.probe", "measure how well a model's features predict motion"),
    "analyze retrieve": (
        "analysis.retrieve",
        "find the frames whose features are most similar, and compare positions",
    ),
    "analyze invert-features": (
        "analysis.invert_features",
        "reconstruct a clip from its features alone, to see what they contain",
    ),
    "study new": (
        "study.new",
        "make a human study from the results of a benchmark or from folders of clips",
    ),
    "study serve": ("study.serve", "serve the page on which raters answer a study"),
    "study report": ("study.report", "analyse the answers of a study and write its report"),
    "shapes render": (
        "shapes.render",
        "render a clip of the shapes world, with its exact ground truth",
    ),
    "menagerie render": (
        "menagerie.render",
        "render a clip of the menagerie, with its exact ground truth",
    ),
    "menagerie train": ("menagerie.train", "train a model on animals and vehicles from scratch"),
    "shapes train": ("shapes.train", "train a model like the shipped ones from scratch"),
}

_ABOUT_THE_MACHINE = ("torch", "safetensors.torch", "huggingface_hub")
"""The large libraries that know the devices of this machine and the models that are downloaded."""
WAITING = {"GOMP_SPINCOUNT": "3000"}
"""How many times a thread of OpenMP looks for work before it sleeps. By default it looks for so
long that two processes with a thread for each core bring one another to a standstill
(docs/log/speed.md)."""
_COMPUTE_NOTHING = ("backbones", "inspect", "methods", "store ls", "store prune")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv`, by default `sys.argv[1:]`, and return the exit code. By default it
    is the only program of its process."""
    registry.deferring = argv is None
    if argv is None and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.update(WAITING | os.environ)  # before torch is imported
    try:
        _dispatch(list(sys.argv[1:] if argv is None else argv))
    except RecastError as error:
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        complain("stopped; no unfinished file was left behind")
        return INTERRUPTED
    except SystemExit as end:  # from tyro, after the help
        return int(end.code or 0)
    except BrokenPipeError:  # the program that reads the output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def commands() -> dict[str, str]:
    """All commands, each with its summary."""
    return {name: summary for name, (_, summary) in _COMMANDS.items()}


def call(name: str, argv: Sequence[str]) -> None:
    """Import a command and run it with its arguments."""
    target, summary = _COMMANDS[name]
    if name in _COMPUTE_NOTHING or asks_help(argv):
        stand_ins.install()
    elif name == "doctor" and not argv:
        stand_ins.install(but=_ABOUT_THE_MACHINE)
    module, _, function = target.partition(".")
    with registry.quiet_imports():
        command = getattr(importlib.import_module(f"recast.cli.{module}"), function)
    command(list(argv), f"recast {name}", f"{summary[0].upper()}{summary[1:]}.")


def _dispatch(argv: list[str]) -> None:
    for count in (2, 1):
        name = " ".join(argv[:count])
        if name in _COMMANDS:
            call(name, argv[count:])
            return
    if not argv:
        raise BadCall("no command was given; recast --help lists all commands")
    group = [name for name in _COMMANDS if name.startswith(f"{argv[0]} ")]
    if asks_help(argv[: 2 if group else 1]):
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
    return "\n".join([head, "", *rows, "", "recast COMMAND --help lists the flags of a command."])
