"""The map of the rooms in CONTRIBUTING.md against the tree and the import contract."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "recast"
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = TEXT.split("## The map of the house")[1].split("\n## ")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in SECTION.splitlines()
    if line.startswith("| `")
]
ROOMS = [row[0].strip("`") for row in ROWS]


def test_every_room_and_file_of_the_map_exists() -> None:
    for room, _, _, first in ROWS:
        place = PACKAGE / room.strip("`")
        assert place.is_dir() if room.endswith("/`") else place.is_file(), room
        for file in re.findall(r"`([^`]+)`", first):
            assert (PACKAGE / file).is_file(), file
    for file in re.findall(r"`(\w+/\w+\.py)`", TEXT):
        assert (PACKAGE / file).is_file() or (ROOT / file).is_file(), file


def test_every_room_of_the_tree_is_in_the_map() -> None:
    folders = {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__/"}
    files = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert set(ROOMS) == folders | files
    assert len(ROOMS) == len(set(ROOMS))


def test_the_map_has_the_order_of_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (rooms,) = [one for one in contracts["contracts"] if one["id"] == "rooms"]
    layer = {
        name: number
        for number, names in enumerate(rooms["layers"])
        for name in re.findall(r"\w+", names)
    }
    order = [layer[Path(room).stem] for room in ROOMS if room != "assets/"]
    assert order == sorted(order)
    assert {"__main__", *(Path(room).stem for room in ROOMS)} == {*layer, "assets"}
