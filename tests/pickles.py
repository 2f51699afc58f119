"""Files whose unpickling would run code."""

from pathlib import Path


class Trap:
    """Unpickling this object creates a file at a path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)
