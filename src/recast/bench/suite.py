"""Suites: the clips, prompts and methods of a benchmark, read from a TOML file.

This module owns the keys of that file, and checks the whole suite before a model is loaded. It
refuses to know how a suite runs.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

from recast.bench import menagerie_pairs, shapes_pairs, suite_file
from recast.bench.suite_file import (
    ClipTable,
    GridTable,
    ShapesTable,
    SystemTable,
    VariantTable,
    WorldTable,
)
from recast.bench.worlds import WORLDS
from recast.errors import BadCall, BadClip, UnknownName, check_finite
from recast.media import video as videos
from recast.pipeline import method_presets, source_clip
from recast.pipeline.source_clip import Source

SHIPPED = Path(__file__).parent / "suites"
EXTERNAL = "external:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One clip with one prompt."""

    clip: str
    """Name of the clip."""
    prompt: str
    group: str = ""
    """Name of the group of clips for which the report shows means of their own; it may be empty."""
    file: Path | None = None
    """File of the clip; None for a scene of a rendered world."""
    world: str = "shapes"
    """The rendered world of the scene, if there is no file."""
    scene: int = 0
    """Seed of the scene, if there is no file."""
    source_prompt: str = ""
    mask: Path | None = None
    """Image or video of the region to evaluate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """What produces a result: a configured method, or a folder with results of another system."""

    name: str
    method: str
    """Name of a method; or "external"; "source" for the clip itself; "truth" for the perfect
    result."""
    config: Any = None
    """Config of the method; None if there is no method."""
    steps: int | None = None
    guidance_scale: float | None = None
    mask: str | None = None
    """The edit mask, as in `RunConfig.mask`."""
    folder: Path | None = None
    """Folder of the results, for "external"."""
    system: SystemTable | None = None
    """What the folder says of the system that made them."""

    def __post_init__(self) -> None:
        check_finite(self)

    @property
    def needs_model(self) -> bool:
        """Whether a model produces the result."""
        return self.method not in ("external", "source", "truth")


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A suite that has been read and checked."""

    name: str
    about: str
    """A description of the suite for the report."""
    backbone: str
    """The model, on which the preset of a variant that names none depends."""
    seeds: int
    """The default number of results for each case."""
    methods: tuple[str, ...]
    """The default names of variants, as `variant` takes them."""
    cases: tuple[Case, ...]
    source: Source
    variants: Mapping[str, Variant]
    """The variants that the suite defines itself, by name."""

    def variant(self, name: str) -> Variant:
        """The variant of a name: one that the suite defines; METHOD or METHOD:PRESET;
        external:FOLDER; source; or truth. Raises `UnknownName`, `BadCall`."""
        if name in self.variants:
            return self.variants[name]
        if name.startswith(EXTERNAL):
            return _external(name)
        if name == "truth" and any(case.file for case in self.cases):
            raise BadCall(
                "the variant truth exists only for scenes of a rendered world, and this suite has "
                "clips from files; leave truth out"
            )
        if name in ("source", "truth"):
            return Variant(name=name, method=name)
        method, _, preset = name.partition(":")
        return Variant(name=name, method=method, config=_preset(method, preset, self.backbone))


def names() -> list[str]:
    """The names of the suites that ship with Recast."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def read(name: str, folder: Path | None = None, backbone: str | None = None) -> Suite:
    """Read a shipped suite by its name, or any suite by its file.

    The clips of the suite are in `folder`, by default the folder of the file. `backbone` replaces
    the model of the suite. Raises `UnknownName`
    for an unknown name, `BadCall` for a file that is not a valid suite, and `BadClip` for missing
    clips and masks.
    """
    path = SHIPPED / f"{name}.toml" if name in names() else Path(name)
    if path.suffix != ".toml":
        raise UnknownName("suite", name, names())
    table = suite_file.read(path)
    clips = folder or path.parent
    cases = [*chain.from_iterable(map(_scenes, table.world)), *_files(table.clip, clips, path)]
    if not cases:
        raise BadCall(
            f"{path.name} has no clips; add a table [[world]] for scenes of a rendered world, or "
            "[[clip]] for a file"
        )
    _check_names(cases, path.name)
    grid_variants = [variant for grid in table.grid for variant in _combinations(grid)]
    _check_variants((*table.variant, *grid_variants), path.name)
    methods = (*table.methods, *(variant.name for variant in grid_variants))
    if not methods:
        raise BadCall(
            f"{path.name} has nothing to compare; add the key methods or a table [[grid]]"
        )
    model = backbone or table.backbone
    return Suite(
        name=path.stem,
        about=table.about,
        backbone=model,
        seeds=table.seeds,
        methods=methods,
        cases=tuple(cases),
        source=_configured(Source, _with_paths(table.source), f"{path.name}, [source]"),
        variants={v.name: _variant(v, path.name, model) for v in (*table.variant, *grid_variants)},
    )


def _scenes(table: WorldTable) -> Iterator[Case]:
    for scene, prompt in _held_out(table):
        yield Case(
            clip=f"scene-{scene}",
            prompt=prompt,
            group=table.group,
            world=table.name,
            scene=scene,
            source_prompt=WORLDS[table.name].source_prompt(scene) if table.described else "",
        )


def _held_out(table: WorldTable) -> Iterator[tuple[int, str]]:
    if isinstance(table, ShapesTable):
        return shapes_pairs.held_out(
            table.pairs, table.changes, table.paths, table.camera, table.patterns, table.first
        )
    return menagerie_pairs.held_out(
        table.pairs,
        table.kinds,
        table.changes,
        table.unseen,
        table.actions,
        table.camera,
        table.first,
    )


def _files(tables: Sequence[ClipTable], folder: Path, suite: Path) -> list[Case]:
    names = [name for table in tables for name in (table.file, table.mask) if name]
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise BadClip(
            f"{len(missing)} of the {len(names)} clips and masks of {suite.name} are not in "
            f"{folder}: {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}; give their "
            "folder with `clips`"
        )
    return [case for table in tables for case in _cases_of_clip(table, folder, suite)]


def _cases_of_clip(table: ClipTable, folder: Path, suite: Path) -> Iterator[Case]:
    prompts = list(table.prompts)
    if table.prompt_file:
        prompts += [
            line.strip() for line in suite_file.text(suite.parent / table.prompt_file).splitlines()
        ]
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise BadCall(
            f"{suite.name}: the clip {table.file} has no prompts; give prompts or prompt_file"
        )
    path, mask = folder / table.file, folder / table.mask if table.mask else None
    source_clip.check_opens(path, Source())
    if mask is not None:
        videos.read(mask, frames=1)  # it may be one image, or not move
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
    """Raise `BadCall` for two clips of one name, because their rows and files would be mixed up."""
    first: dict[str, Case] = {}
    for case in cases:
        other = first.setdefault(case.clip, case)
        for part in ("file", "world", "scene", "mask", "source_prompt"):
            one, two = getattr(other, part), getattr(case, part)
            if one != two:
                both_scenes = other.file is case.file is None
                remedy = (
                    "give both tables the same value of the key described"
                    if both_scenes
                    else "give one of them another name with the key name"
                )
                raise BadCall(
                    f"{suite}: two clips have the name {case.clip!r}, but the {part} of one is "
                    f"{str(one)!r} and that of the other is {str(two)!r}; {remedy}"
                )


def _check_variants(variants: Sequence[VariantTable], suite: str) -> None:
    """Raise `BadCall` for two variants of one name, because one of them would be lost."""
    counts = Counter(variant.name for variant in variants)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise BadCall(
            f"{suite}: two variants have the name {twice[0]!r}; of settings that change together "
            "only the first is in the name, so put one with distinct values first"
        )


def _preset(method: str, name: str, backbone: str) -> Any:
    """The config of a preset; without a name that of the default preset on the model."""
    if name:
        return method_presets.preset(method, name)
    return method_presets.default_config(method, backbone)


def _variant(table: VariantTable, suite: str, backbone: str) -> Variant:
    default = _preset(table.method, table.preset, backbone)
    config = _configured(type(default), table.config, f"{suite}, variant {table.name!r}", default)
    return Variant(
        name=table.name,
        method=table.method,
        config=config,
        steps=table.steps,
        guidance_scale=table.guidance_scale,
        mask=table.mask,
    )


def _combinations(table: GridTable) -> Iterator[VariantTable]:
    """The variants of a grid. Their names are their settings: "dmt: inner_steps 5, lr 0.04"."""
    for values in product(*table.over.values()):
        config = dict(table.config)
        for key, value in zip(table.over, values, strict=True):
            names = key.split(",")
            items = value if len(names) > 1 else [value]
            if not isinstance(items, list) or len(items) != len(names):
                raise BadCall(f"grid.over: {key!r} takes lists of {len(names)} values, got {value}")
            config |= dict(zip((name.strip() for name in names), items, strict=True))
        settings = map(_setting_text, table.over, values)
        name = f"{table.method}: {', '.join(settings)}"
        yield VariantTable(name=name, method=table.method, preset=table.preset, config=config)


def _setting_text(key: str, value: Any) -> str:
    """A setting in the name of a variant. Of settings that change together it is the first; a list
    is "queries + keys"."""
    name, *others = key.split(",")
    first = value[0] if others else value
    return f"{name} {' + '.join(map(str, first)) if isinstance(first, list) else first}"


def _with_paths(source: Mapping[str, Any]) -> dict[str, Any]:
    """The values of [source], with the names of structure maps as paths."""
    paths = ("control", "control_model")
    return {key: Path(v) if key in paths and isinstance(v, str) else v for key, v in source.items()}


def _configured(kind: Any, changes: Mapping[str, Any], place: str, default: Any = None) -> Any:
    """A config with some values changed. Raises `BadCall` with the place in the file."""
    known = {field.name for field in dataclasses.fields(kind)}
    for key in changes:
        if key not in known:
            raise BadCall(f"{place}: {UnknownName('key', key, known)}")
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in changes.items()}
    try:
        return dataclasses.replace(kind() if default is None else default, **values)
    except (BadCall, TypeError) as error:
        # Without backticks, because the names are keys of the file and not flags.
        raise BadCall(f"{place}: {str(error).replace('`', '')}") from error


def _external(name: str) -> Variant:
    folder = Path(name.removeprefix(EXTERNAL)).expanduser()
    if not folder.is_dir():
        raise BadCall(
            f"{name}: there is no folder {folder}; it must hold a file CLIP-PROMPT.mp4 for each "
            "clip and prompt"
        )
    system = suite_file.read_system(folder)
    return Variant(name=name, method="external", folder=folder, system=system)
