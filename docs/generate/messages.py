"""Every message of an error that Recast raises on purpose, read from the source.

What a message fills in at run time is shown as "…". Messages that are made elsewhere and only
passed on are left out.
"""

import ast
import re
from collections import defaultdict
from pathlib import Path

import recast
from recast import errors

_SOURCE = Path(recast.__file__).parent
_KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.RecastError)
}


def every_message() -> str:
    """A section for each kind of error: what it means, and its messages with their files."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for path in sorted(_SOURCE.rglob("*.py")):
        room = path.relative_to(_SOURCE).as_posix()
        for kind, text in _messages(path):
            found[kind].add((text, room))
    sections = []
    for name, kind in _KINDS.items():
        if name not in found:
            continue
        meaning = " ".join((kind.__doc__ or "").split())
        sections += [f"### {name}", "", meaning, "", "| message | raised in |", "| --- | --- |"]
        sections += [f"| {_cell(text)} | `{room}` |" for text, room in sorted(found[name])]
        sections.append("")
    return "\n".join(sections)


def _messages(path: Path) -> list[tuple[str, str]]:
    """Kind and text of every `raise Kind("text")` in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
            continue
        kind, values = node.exc.func, node.exc.args
        if isinstance(kind, ast.Name) and kind.id in _KINDS and len(values) == 1:
            text = _text(values[0])
            if len(re.sub(r"\W", "", text)) >= 12:
                found.append((kind.id, text))
    return found


def _text(value: ast.expr) -> str:
    if isinstance(value, ast.Constant):
        return str(value.value)
    if isinstance(value, ast.JoinedStr):
        return "".join(_text(part) for part in value.values)
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return _text(value.left) + _text(value.right)
    return "…"


def _cell(text: str) -> str:
    """A message as a cell. Its backticks are those of the field that it names."""
    outside = re.split(r"(`[^`]*`)", " ".join(text.split()))
    escaped = [p if p[:1] == "`" else re.sub(r"([*_<\[\]])", r"\\\1", p) for p in outside]
    return "".join(escaped).replace("|", "\\|")
