"""A benchmark from a suite to its report: what is missing is run, here or on Ray, and written.

One process at a time works in a folder. A row is written as soon as it is there.
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
    """A suite that ships with Recast, or a file.toml."""
    methods: tuple[str, ...] = ()
    """What to compare; without it what the suite says. METHOD, METHOD:PRESET, a variant that the
    suite names, external:FOLDER for clips that another system made (CLIP-PROMPT.mp4), source for
    the clip itself, truth for the perfect answer in the shapes world."""
    backbone: str | None = None
    """The model; without it the suite's."""
    seeds: int | None = None
    """Results for each pair, with seeds from 0 on; without it as many as the suite says."""
    clips: Path | None = None
    """Folder with the suite's clips, where it names files; without it the suite's own."""
    limit: int | None = None
    """Only so many clips, evenly from the whole suite."""
    out: Path | None = None
    """Folder for rows, clips and the report; without it out/bench-SUITE. What is there already is
    not made again."""
    have: tuple[Path, ...] = ()
    """Tables that other folders or machines left, rows.parquet: their rows are taken over, and
    not made again unless settings or weights are others now. Their clips are not in them."""
    threads: int = 1
    """CPU threads of each process. Other numbers round differently, so a table should have one."""
    ray: str | None = None
    """Run on Ray: "local" starts a cluster here, anything else is the address of one. As many
    clips at once as there are CPUs (GPUs, where there are some)."""
    tools: Tools = field(default_factory=Tools)
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        for name in ("seeds", "limit", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadCall(f"--{name} is at least 1, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a benchmark left behind."""

    folder: Path
    report: Path
    rows: int
    failed: int
    """Rows that hold an error."""
    missing: int
    """Rows that could not even be written, since their process was lost."""


@job
def bench(config: BenchConfig, told: Suite | None = None) -> Generator[Event, None, Outcome]:
    """Run what is missing; the result says what is there. Raises `RecastError`.

    A suite `told` is used in place of the one that the config names.
    """
    told = told or suite.read(config.suite, config.clips)
    out = config.out or Path("out") / f"bench-{told.name}"
    variants = tuple(told.variant(name) for name in dict.fromkeys(config.methods or told.methods))
    with locked(out):
        rows.sweep(out)
        _check_folder(out, told)
        theirs: dict[Id, Row] = {}
        for table in config.have:
            theirs |= rows.adopt(out, table, told.name)
        tasks = _tasks(config, told, variants, out, theirs)
        current = yield from _done(tasks, config, out, theirs)
        found = rows.export(out, current)
        page = report.write(out, told, found)
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
    tasks: list[Task], config: BenchConfig, out: Path, theirs: Mapping[Id, Row]
) -> Generator[Event, None, list[Id]]:
    """Do the tasks, and write what they make; returns the names of all rows as they are now."""
    total, mine = sum(task.size for task in tasks), rows.done(out)
    current: list[Id] = []
    shown: set[str] = set()
    for made in _worked(tasks, config):
        if isinstance(made, Note):
            yield made
            continue
        name = (made.key, made.stamp)
        current.append(name)
        if made.row is not None:
            _write(out, made, shown)
            if made.row["error"]:
                yield Note(text=_failure(made.row))
        elif name in theirs and name not in mine:
            rows.take_over(out, theirs[name])
        yield Step(stage="row", index=len(current), total=total)
    return current


def _check_folder(out: Path, told: Suite) -> None:
    """Raise `BadCall` for the rows of another suite."""
    others = {row["suite"] for row in rows.read(out)} - {told.name}
    if others:
        raise BadCall(
            f"{out} holds rows of the suite {min(others)}; choose another --out for {told.name}"
        )


def _tasks(
    config: BenchConfig,
    told: Suite,
    variants: tuple[Variant, ...],
    out: Path,
    theirs: Mapping[Id, Row],
) -> list[Task]:
    """One for each clip: the rows that are asked for, and those that are there besides."""
    clips, seeds = _by_clip(told), tuple(range(config.seeds or told.seeds))
    count = min(config.limit or len(clips), len(clips))
    chosen = [index * len(clips) // count for index in range(count)]
    done, there = rows.done(out) | theirs.keys(), [*rows.read(out), *theirs.values()]
    tasks = []
    for index, cases in enumerate(clips):
        mine = variants if index in chosen else ()
        known = _known(told, cases, there)
        task = Task(
            suite=told.name,
            cases=tuple(cases),
            variants=mine,
            seeds=seeds,
            backbone=config.backbone or told.backbone,
            settings=config.settings,
            source=told.source,
            tools=config.tools,
            threads=config.threads,
            done=frozenset(done),
            others=tuple(one for one in known if one[0] not in mine or one[2] not in seeds),
        )
        if task.size:
            tasks.append(task)
    return tasks


def _by_clip(told: Suite) -> list[list[Case]]:
    def name(case: Case) -> str:
        return case.clip

    return [list(cases) for _, cases in groupby(sorted(told.cases, key=name), key=name)]


def _known(told: Suite, cases: list[Case], there: list[Row]) -> Iterator[tuple[Variant, Case, int]]:
    """What the rows of a clip are of, each once, as far as the suite still has it."""
    by_prompt = {case.prompt: case for case in cases}
    mine = [row for row in there if row["clip"] == cases[0].clip and row["prompt"] in by_prompt]
    for name, prompt, seed in dict.fromkeys((r["variant"], r["prompt"], r["seed"]) for r in mine):
        with suppress(BadCall):  # a method or folder that is there no more
            yield told.variant(name), by_prompt[prompt], seed


def _worked(tasks: list[Task], config: BenchConfig) -> Iterator[BenchResult | Note]:
    if config.ray is None:
        for task in tasks:
            yield from work.work(task)
    else:
        from recast.bench import cluster  # an optional extra

        yield from cluster.work(tasks, config.ray)


def _write(out: Path, made: BenchResult, shown: set[str]) -> None:
    """The clips first, so that a row never names one that is not there. `shown` are the names of
    those sources that were written: once a run, since one of an earlier run may be cut otherwise.
    """
    assert made.row is not None
    clip = made.row["clip"]
    if made.source is not None and clip not in shown:
        made.source.save(out / rows.VIDEOS / f"{clip}.mp4")
        shown.add(clip)
    if made.result is not None:
        made.result.save(out / made.row["video"])
    rows.write(out, made.row)


def _failure(row: rows.Row) -> str:
    return f"{row['variant']} on {row['clip']}, {row['prompt']!r}: {row['error']}"
