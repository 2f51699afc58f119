"""Suites: which clips, which prompts, which methods. A suite is a TOML file.

Owns the keys of that file and the errors about them. Everything that can be wrong with a suite is
found here, before a model is loaded. Runs nothing.
"""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recast.bench import pairs
from recast.errors import BadCall, BadClip, UnknownName
from recast.pipeline import method_presets, source_clip
from recast.pipeline.source_clip import Source

SHIPPED = Path(__file__).parent / "suites"
EXTERNAL = "external:"
Look = Literal["colour", "shape", "background"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One clip and one prompt."""

    clip: str
    """The clip's name."""
    prompt: str
    group: str = ""
    file: Path | None = None
    """The clip; None for a scene of the shapes world."""
    scene: int = 0
    """The scene's seed."""
    source_prompt: str = ""
    mask: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """What produces a result: a configured method, or a folder of results of another system."""

    name: str
    method: str
    """A method's name; "external"; "source" for the clip itself; "truth" for the perfect answer."""
    config: Any = None
    steps: int | None = None
    guidance_scale: float | None = None
    mask: str | None = None
    """A mask, as for `RunConfig.mask`."""
    folder: Path | None = None

    @property
    def needs_model(self) -> bool:
        """Whether a model is needed to make the result."""
        return self.method not in ("external", "source", "truth")


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A whole suite, resolved and checked."""

    name: str
    about: str
    backbone: str
    seeds: int
    methods: tuple[str, ...]
    cases: tuple[Case, ...]
    source: Source
    variants: Mapping[str, Variant]
    """The variants that the suite itself defines."""

    def variant(self, name: str) -> Variant:
        """A variant by its name: one that the suite defines; METHOD or METHOD:PRESET;
        external:FOLDER; source; or truth. Raises `UnknownName`, `BadCall`."""
        if name in self.variants:
            return self.variants[name]
        if name.startswith(EXTERNAL):
            return _external(name)
        if name == "truth" and any(case.file for case in self.cases):
            raise BadCall("truth is known for rendered clips only, and this suite has other clips")
        if name in ("source", "truth"):
            return Variant(name=name, method=name)
        method, _, preset = name.partition(":")
        return Variant(
            name=name, method=method, config=method_presets.preset(method, preset or None)
        )


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _World(_Table):
    pairs: int = Field(ge=1)
    group: str = ""
    changes: list[Look] = Field(default=["colour", "shape", "background"], min_length=1)
    paths: list[str] = []
    camera: bool | None = None
    patterns: list[str] = []
    described: bool = False
    """Whether methods are given the source's own prompt."""


class _Clip(_Table):
    file: str
    name: str = ""
    group: str = ""
    prompts: list[str] = []
    prompt_file: str = ""
    source_prompt: str = ""
    mask: str = ""


class _Variant(_Table):
    name: str
    method: str
    preset: str = ""
    steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = None
    mask: Literal["auto"] | None = None
    config: dict[str, Any] = {}


class _Grid(_Table):
    """Every combination of some settings. A key may name several settings that change together."""

    method: str
    preset: str = ""
    config: dict[str, Any] = {}
    over: dict[str, list[Any]] = Field(min_length=1)


class _Suite(_Table):
    about: str
    methods: list[str] = []
    backbone: str = "shapes"
    seeds: int = Field(default=1, ge=1)
    source: dict[str, Any] = {}
    world: list[_World] = []
    clip: list[_Clip] = []
    variant: list[_Variant] = []
    grid: list[_Grid] = []


_TABLES: dict[str, type[BaseModel]] = {
    "world": _World,
    "clip": _Clip,
    "variant": _Variant,
    "grid": _Grid,
}


def names() -> list[str]:
    """The names of the suites that ship with Recast."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def read(name: str, folder: Path | None = None) -> Suite:
    """Read a suite by its name or file. Its clips are in `folder`, by default that of the file.

    Raises `UnknownName`, `BadCall`, and `BadClip` with the name of every missing clip and mask.
    """
    path = SHIPPED / f"{name}.toml" if name in names() else Path(name)
    if path.suffix != ".toml":
        raise UnknownName("suite", name, names())
    table = _validated(path)
    place = folder or path.parent
    cases = [*chain.from_iterable(map(_scenes, table.world)), *_files(table.clip, place, path)]
    if not cases:
        raise BadCall(f"{path.name} has neither [[world]] nor [[clip]], so there is nothing to run")
    _check_names(cases, path.name)
    gridded = [variant for grid in table.grid for variant in _combinations(grid)]
    methods = (*table.methods, *(variant.name for variant in gridded))
    if not methods:
        raise BadCall(
            f"{path.name} has neither methods nor [[grid]], so there is nothing to compare"
        )
    return Suite(
        name=path.stem,
        about=table.about,
        backbone=table.backbone,
        seeds=table.seeds,
        methods=methods,
        cases=tuple(cases),
        source=_configured(Source, table.source, f"{path.name}, [source]"),
        variants={v.name: _variant(v, path.name) for v in (*table.variant, *gridded)},
    )


def _validated(path: Path) -> _Suite:
    try:
        return _Suite.model_validate(tomllib.loads(_text(path)))
    except tomllib.TOMLDecodeError as error:
        raise BadCall(f"{path.name} is not TOML: {error}") from error
    except ValidationError as error:
        raise BadCall(f"{path.name}: {_explained(error)}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise BadCall(f"{path.name} is not UTF-8 (line {line}); save it as UTF-8") from error
    except OSError as error:
        raise BadCall(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error


def _explained(error: ValidationError) -> str:
    """The first error, its place, and the keys that are valid there."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}"
    kind = _TABLES.get(str(first["loc"][0]), _Suite) if len(first["loc"]) > 1 else _Suite
    known = list(kind.model_fields)
    return f"{where}: {UnknownName('key', str(first['loc'][-1]), known)}"


def _scenes(table: _World) -> Iterator[Case]:
    asked = (table.changes, table.paths, table.camera, table.patterns)
    for scene, prompt in pairs.held_out(table.pairs, *asked):
        yield Case(
            clip=f"scene-{scene}",
            prompt=prompt,
            group=table.group,
            scene=scene,
            source_prompt=pairs.source_prompt(scene) if table.described else "",
        )


def _files(table: Sequence[_Clip], place: Path, suite: Path) -> list[Case]:
    named = [name for one in table for name in (one.file, one.mask) if name]
    missing = [name for name in named if not (place / name).exists()]
    if missing:
        raise BadClip(
            f"{len(missing)} of the {len(named)} clips and masks of {suite.name} are not in "
            f"{place}: {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}; give their "
            "folder with `clips`"
        )
    return [case for one in table for case in _prompted(one, place, suite)]


def _prompted(table: _Clip, place: Path, suite: Path) -> Iterator[Case]:
    prompts = list(table.prompts)
    if table.prompt_file:
        prompts += [line.strip() for line in _text(suite.parent / table.prompt_file).splitlines()]
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise BadCall(
            f"{suite.name}: the clip {table.file} has no prompts; give prompts or prompt_file"
        )
    path, mask = place / table.file, place / table.mask if table.mask else None
    for one in (path, mask):
        if one is not None:
            source_clip.check_opens(one, Source())
    for prompt in prompts:
        yield Case(
            clip=table.name or path.stem,
            prompt=prompt,
            group=table.group,
            file=path,
            source_prompt=table.source_prompt,
            mask=mask,
        )


def _check_names(cases: Sequence[Case], suite: str) -> None:
    """Raise `BadCall` for two clips of one name, whose rows and files would be mixed up."""
    first: dict[str, Case] = {}
    for case in cases:
        other = first.setdefault(case.clip, case)
        for part in ("file", "scene", "mask", "source_prompt"):
            one, two = getattr(other, part), getattr(case, part)
            if one != two:
                scenes = other.file is case.file is None
                way = "let described be alike" if scenes else "give one of them another name ="
                raise BadCall(
                    f"{suite}: two clips are called {case.clip!r}, and the {part} of one is "
                    f"{str(one)!r}, of the other {str(two)!r}; {way}"
                )


def _variant(table: _Variant, suite: str) -> Variant:
    default = method_presets.preset(table.method, table.preset or None)
    config = _configured(type(default), table.config, f"{suite}, variant {table.name!r}", default)
    return Variant(
        name=table.name,
        method=table.method,
        config=config,
        steps=table.steps,
        guidance_scale=table.guidance_scale,
        mask=table.mask,
    )


def _combinations(table: _Grid) -> Iterator[_Variant]:
    """The variants of a grid, named by what they change, such as "inner_steps 5, lr 0.04"."""
    for values in product(*table.over.values()):
        config = dict(table.config)
        for key, value in zip(table.over, values, strict=True):
            names = key.split(",")
            both = value if len(names) > 1 else [value]
            if not isinstance(both, list) or len(both) != len(names):
                raise BadCall(f"grid.over: {key!r} takes lists of {len(names)} values, got {value}")
            config |= dict(zip((name.strip() for name in names), both, strict=True))
        shown = [
            f"{key.split(',')[0]} {_short(v)}" for key, v in zip(table.over, values, strict=True)
        ]
        name = f"{table.method}: {', '.join(shown)}"
        yield _Variant(name=name, method=table.method, preset=table.preset, config=config)


def _short(value: Any) -> str:
    return str(value[0] if isinstance(value, list) else value)


def _configured(kind: Any, given: Mapping[str, Any], where: str, default: Any = None) -> Any:
    """A config with some values changed. Raises `BadCall` with the place in the file."""
    known = {field.name for field in dataclasses.fields(kind)}
    for key in given:
        if key not in known:
            raise BadCall(f"{where}: {UnknownName('key', key, known)}")
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    try:
        return dataclasses.replace(kind() if default is None else default, **values)
    except (BadCall, TypeError) as error:
        # The user wrote keys of a file, not fields of a call.
        raise BadCall(f"{where}: {str(error).replace('`', '')}") from error


def _external(name: str) -> Variant:
    folder = Path(name.removeprefix(EXTERNAL)).expanduser()
    if not folder.is_dir():
        raise BadCall(
            f"{name}: there is no folder {folder}; it must hold CLIP-PROMPT.mp4 for each pair"
        )
    return Variant(name=name, method="external", folder=folder)
