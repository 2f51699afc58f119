"""MkDocs hook: replaces each `<!-- generate: ... -->` line of a page by text made from the program.

Nothing is written into the source tree. The build fails where a command that a page runs does not
end as the page says.
"""

import os
import re
from collections.abc import Callable
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the client of the hub is first imported

import commands
import faithful
import messages
import outputs
import tables

_GENERATORS: dict[str, Callable[[str], str]] = {
    "commands": lambda _: commands.all_commands(),
    "settings": lambda _: commands.all_settings(),
    "faithful": lambda _: faithful.tables(),
    "method-matrix": lambda _: tables.method_matrix(),
    "metrics": lambda _: tables.metrics(),
    "suites": lambda _: tables.suites(),
    "rulers-shapes": lambda _: tables.rulers_shapes(),
    "rulers-real": lambda _: tables.rulers_real(),
    "clip-world": lambda _: tables.clip_world(),
    "menagerie-measures": lambda _: tables.menagerie_measures(),
    "columns": lambda _: tables.columns(),
    "messages": lambda _: messages.every_message(),
    "prints": outputs.prints,
    "fails": outputs.fails,
}
_DIRECTIVE = re.compile(r"^<!-- generate: ([\w-]+) ?(.*?) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with every directive replaced. Raises `KeyError` for an unknown directive."""
    return _DIRECTIVE.sub(lambda match: _GENERATORS[match[1]](match[2]), markdown)
