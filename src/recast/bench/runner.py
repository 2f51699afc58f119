"""A benchmark from a suite to its report: missing rows are made, in this process or on Ray.

One process at a time works in a folder. A row is written as soon as it is made.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated

import tyro

from recast.backbones.base import Settings
from recast.bench import report, rows, suite, work
from recast.bench.rows import Id, Row
from recast.bench.suite import Case, Suite, Variant
from recast.bench.work import BenchResult, Task
from recast.errors import BadCall
from recast.evaluation import Tools
from recast.events import Event, Note, Step, job
from recast.media.atomic_files import locked


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """Every method of a suite on every clip and prompt of it."""

    suite: Annotated[str, tyro.conf.arg(metavar="SUITE")]
    """The name of a suite that ships with Recast, or a TOML file."""
    methods: tuple[str, ...] = ()
    """What to compare; without it what the suite says. Each entry is METHOD; METHOD:PRESET; a
    variant that the suite defines; external:FOLDER for clips that another system made
    (CLIP-PROMPT.mp4); source for the clip itself; or truth for the perfect answer in the shapes
    world."""
    backbone: str | None = None
    """The model; without it the suite's."""
    seeds: int | None = None
    """Number of results for each pair, with seeds 0, 1, 2 and so on; without it the suite's."""
    clips: Path | None = None
    """Folder with the suite's clips, where the suite names files; without it the folder of the
    suite."""
    limit: int | None = None
    """Use only this many clips, spread evenly over the suite."""
    out: Path | None = None
    """Folder for rows, clips and the report; without it out/bench-SUITE. Rows that exist there are
    not made again."""
    have: tuple[Path, ...] = ()
    """Tables rows.parquet of other folders or machines. Their rows are taken over and not made
    again, unless settings or weights have changed. The tables hold no clips."""
    threads: int = 1
    """CPU threads of each process. Other numbers round differently, so one table should use one
    number."""
    ray: str | None = None
    """Run on Ray: "local" starts a cluster on this machine, anything else is the address of one. As
    many clips run at once as there are CPUs, or GPUs where there are any."""
    tools: Tools = field(default_factory=Tools)
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        for name in ("seeds", "limit", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadCall(f"`{name}` must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a benchmark wrote."""

    folder: Path
    report: Path
    rows: int
    failed: int
    """Rows that hold an error."""
    missing: int
    """Rows that were not written because their process was lost."""


@job
def bench(config: BenchConfig, resolved: Suite | None = None) -> Generator[Event, None, Outcome]:
    """Make the missing rows and the report. Raises `RecastError`.

    The suite `resolved` is used in place of the one that the config names.
    """
    resolved = resolved or suite.read(config.suite, config.clips)
    out = config.out or Path("out") / f"bench-{resolved.name}"
    variants = tuple(
        resolved.variant(name) for name in dict.fromkeys(config.methods or resolved.methods)
    )
    with locked(out):
        rows.sweep(out)
        _check_folder(out, resolved)
        adopted: dict[Id, Row] = {}
        for table in config.have:
            adopted |= rows.adopt(out, table, resolved.name)
        tasks = _tasks(config, resolved, variants, out, adopted)
        current = yield from _done(tasks, config, out, adopted)
        found = rows.export(out, current)
        page = report.write(out, resolved, found)
        yield Step(stage="report", index=1, total=1)
    outcome = Outcome(
        folder=out,
        report=page,
        rows=len(found),
        failed=sum(row["error"] is not None for row in found),
        missing=sum(task.size for task in tasks) - len(current),
    )
    return outcome


def _done(
    tasks: list[Task], config: BenchConfig, out: Path, adopted: Mapping[Id, Row]
) -> Generator[Event, None, list[Id]]:
    """Do the tasks and write their results; returns the ids of all current rows."""
    total, mine = sum(task.size for task in tasks), rows.done(out)
    current: list[Id] = []
    written_sources: set[str] = set()
    for made in _worked(tasks, config):
        if isinstance(made, Note):
            yield made
            continue
        name = (made.key, made.stamp)
        current.append(name)
        if made.row is not None:
            _write(out, made, written_sources)
            if made.row["error"]:
                yield Note(text=_failure(made.row))
        elif name in adopted and name not in mine:
            rows.take_over(out, adopted[name])
        yield Step(stage="row", index=len(current), total=total)
    return current


def _check_folder(out: Path, resolved: Suite) -> None:
    """Raise `BadCall` for the rows of another suite."""
    others = {row["suite"] for row in rows.read(out)} - {resolved.name}
    if others:
        raise BadCall(
            f"{out} holds rows of the suite {min(others)}; choose another `out` for {resolved.name}"
        )


def _tasks(
    config: BenchConfig,
    resolved: Suite,
    variants: tuple[Variant, ...],
    out: Path,
    adopted: Mapping[Id, Row],
) -> list[Task]:
    """One task for each clip: the rows that are asked for, and the existing rows to check."""
    clips, seeds = _by_clip(resolved), tuple(range(config.seeds or resolved.seeds))
    count = min(config.limit or len(clips), len(clips))
    chosen = [index * len(clips) // count for index in range(count)]
    done, there = rows.done(out) | adopted.keys(), [*rows.read(out), *adopted.values()]
    tasks = []
    for index, cases in enumerate(clips):
        mine = variants if index in chosen else ()
        known = _known(resolved, cases, there)
        task = Task(
            suite=resolved.name,
            cases=tuple(cases),
            variants=mine,
            seeds=seeds,
            backbone=config.backbone or resolved.backbone,
            settings=config.settings,
            source=resolved.source,
            tools=config.tools,
            threads=config.threads,
            done=frozenset(done),
            others=tuple(one for one in known if one[0] not in mine or one[2] not in seeds),
        )
        if task.size:
            tasks.append(task)
    return tasks


def _by_clip(resolved: Suite) -> list[list[Case]]:
    def name(case: Case) -> str:
        return case.clip

    return [list(cases) for _, cases in groupby(sorted(resolved.cases, key=name), key=name)]


def _known(
    resolved: Suite, cases: list[Case], there: list[Row]
) -> Iterator[tuple[Variant, Case, int]]:
    """Variant, case and seed of the existing rows of a clip, as far as the suite still has them."""
    by_prompt = {case.prompt: case for case in cases}
    mine = [row for row in there if row["clip"] == cases[0].clip and row["prompt"] in by_prompt]
    for name, prompt, seed in dict.fromkeys((r["variant"], r["prompt"], r["seed"]) for r in mine):
        with suppress(BadCall):  # a method or folder that no longer exists
            yield resolved.variant(name), by_prompt[prompt], seed


def _worked(tasks: list[Task], config: BenchConfig) -> Iterator[BenchResult | Note]:
    if config.ray is None:
        for task in tasks:
            yield from work.work(task)
    else:
        from recast.bench import cluster  # an optional extra

        yield from cluster.work(tasks, config.ray)


def _write(out: Path, made: BenchResult, written_sources: set[str]) -> None:
    """Write a result: its clips first, so that a row never names a missing clip. `written_sources`
    are the sources that this run has written; each is written once a run, since the source of an
    earlier run may have been cut differently."""
    assert made.row is not None
    clip = made.row["clip"]
    if made.source is not None and clip not in written_sources:
        made.source.save(out / rows.VIDEOS / f"{clip}.mp4")
        written_sources.add(clip)
    if made.result is not None:
        made.result.save(out / made.row["video"])
    rows.write(out, made.row)


def _failure(row: rows.Row) -> str:
    return f"{row['variant']} on {row['clip']}, {row['prompt']!r}: {row['error']}"
