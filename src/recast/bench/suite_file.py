"""The file of a suite: the keys of its TOML tables, and the first problem of a file as an error.

It refuses to know what the values mean, except for the checks that a type can make.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from recast.errors import BadCall, UnknownName

SYSTEM = "system.toml"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _World(_Table):
    pairs: int = Field(ge=1)
    first: int = Field(default=0, ge=0)
    """Number of pairs that are left out at the beginning, for pairs that no other suite has."""
    group: str = ""
    camera: bool | None = None
    described: bool = False
    """Whether methods receive the source's own prompt."""


class ShapesTable(_World):
    """Held-out pairs of the shapes world."""

    name: Literal["shapes"] = "shapes"
    changes: list[Literal["colour", "shape", "background"]] = Field(
        default=["colour", "shape", "background"], min_length=1
    )
    paths: list[str] = []
    patterns: list[str] = []


class MenagerieTable(_World):
    """Held-out pairs of the menagerie."""

    name: Literal["menagerie"]
    kinds: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(min_length=1)
    """Kind of the source and kind in the prompt; the pairs take them in turn."""
    changes: list[Literal["colour", "scene"]] = ["colour"]
    unseen: bool = False
    """Whether training never showed the kind, colour and landscape of a prompt together."""
    actions: list[str] = []


def _world_of(table: Any) -> Any:
    return table.get("name", "shapes") if isinstance(table, dict) else "shapes"


WorldTable = ShapesTable | MenagerieTable
_WORLDS: dict[str, type[BaseModel]] = {"shapes": ShapesTable, "menagerie": MenagerieTable}


class ClipTable(_Table):
    """A clip from a file."""

    file: str
    name: str = ""
    group: str = ""
    prompts: list[str] = []
    prompt_file: str = ""
    source_prompt: str = ""
    mask: str = ""


class VariantTable(_Table):
    """A method with settings and a name of its own."""

    name: str
    method: str
    preset: str = ""
    steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = None
    mask: Literal["auto"] | None = None
    config: dict[str, Any] = {}


class SystemTable(_Table):
    """What is known of another system whose results are compared."""

    system: str = Field(min_length=1)
    """Its name."""
    version: str = ""
    settings: str = ""
    machine: str = ""
    """The machine on which it made the results."""
    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """The time for one clip."""
    qualitative: bool = False
    """Whether its clips are shown without numbers, for example because they show other sources."""


class GridTable(_Table):
    """All combinations of some settings. A key of `over` may name several settings, separated by
    commas, that change together."""

    method: str
    preset: str = ""
    config: dict[str, Any] = {}
    over: dict[str, list[Any]] = Field(min_length=1)


class SuiteTable(_Table):
    """The whole file."""

    about: str
    methods: list[str] = []
    backbone: str = "shapes"
    seeds: int = Field(default=1, ge=1)
    source: dict[str, Any] = {}
    world: list[
        Annotated[
            Annotated[ShapesTable, Tag("shapes")] | Annotated[MenagerieTable, Tag("menagerie")],
            Discriminator(_world_of),
        ]
    ] = []
    clip: list[ClipTable] = []
    variant: list[VariantTable] = []
    grid: list[GridTable] = []


_TABLES: dict[str, type[BaseModel]] = {
    "clip": ClipTable,
    "variant": VariantTable,
    "grid": GridTable,
}


def read(path: Path) -> SuiteTable:
    """The tables of a file. Raises `BadCall` for a file that is not a suite."""
    try:
        return SuiteTable.model_validate(tomllib.loads(text(path)))
    except tomllib.TOMLDecodeError as error:
        raise BadCall(f"{path.name} is not TOML: {error}") from error
    except ValidationError as error:
        raise BadCall(f"{path.name}: {_first_problem(error)}") from error


def read_system(folder: Path) -> SystemTable | None:
    """What the file system.toml in a folder of results says; None if there is no such file. Raises
    `BadCall` for a file that is not such a table."""
    path = folder / SYSTEM
    if not path.is_file():
        return None
    try:
        return SystemTable.model_validate(tomllib.loads(text(path)))
    except tomllib.TOMLDecodeError as error:
        raise BadCall(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        raise BadCall(f"{path}: {_first_problem(error)}") from error


def text(path: Path) -> str:
    """The text of a file in UTF-8. Raises `BadCall`."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise BadCall(f"{path.name} is not UTF-8 (line {line}); save it as UTF-8") from error
    except OSError as error:
        raise BadCall(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error


def _first_problem(error: ValidationError) -> str:
    """The first problem of a file, with its place; for an unknown key, the nearest valid keys."""
    first = error.errors()[0]
    if first["type"] == "union_tag_invalid":
        table = ".".join(map(str, first["loc"]))
        return f"{table}: {UnknownName('world', str(first['input']['name']), _WORLDS)}"
    place = list(map(str, first["loc"]))
    known: type[BaseModel] = SuiteTable
    if place[0] == "world" and len(place) > 2:
        known = _WORLDS[place.pop(2)]  # which pydantic names in the place, but the file does not
    elif len(place) > 1:
        known = _TABLES.get(place[0], SuiteTable)
    *tables, key = place
    prefix = f"{'.'.join(tables)}: " if tables else ""
    if first["type"] == "extra_forbidden":
        return f"{prefix}{UnknownName('key', key, known.model_fields)}"
    if first["type"] == "missing":
        return f"{prefix}the key {key} is missing"
    value, rule = first["input"], f"{first['msg'][0].lower()}{first['msg'][1:]}"
    got = f", got {value!r}" if isinstance(value, str | int | float | bool) else ""
    return f"{'.'.join(place)}: {rule}{got}"
