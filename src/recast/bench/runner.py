"""The run of a benchmark: missing rows are computed, in this process or on Ray, and reported.

This module owns which rows are missing, and the folder: one process at a time works in it, and each
row is written as soon as it is computed. It refuses to know how a row is computed (`work.py`).
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
from recast.networks import devices


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """The run of a suite: each method on each clip and prompt. Raises `BadCall` for a value out of
    range."""

    suite: Annotated[str, tyro.conf.arg(metavar="SUITE")]
    """The name of a suite that ships with Recast, or a TOML file."""
    methods: tuple[str, ...] = ()
    """What to compare; by default the methods that the suite lists. Each entry is METHOD, with the
    preset that `recast methods --backbone NAME` shows for the model; METHOD:PRESET; a variant that
    the suite defines; external:FOLDER for results of another system (files CLIP-PROMPT.mp4); source
    for the clip itself; or truth for the perfect result, which is known in the shapes world."""
    backbone: str | None = None
    """The model; by default that of the suite."""
    seeds: int | None = None
    """Number of results for each clip and prompt, with seeds 0, 1, 2 and so on; by default that of
    the suite."""
    clips: Path | None = None
    """Folder of the clips that the suite names; by default the folder of the suite."""
    limit: int | None = None
    """Use only this many clips, spread evenly over the suite."""
    out: Path | None = None
    """Folder for rows, clips and the report; by default out/bench-SUITE. Rows that exist there are
    not computed again."""
    have: tuple[Path, ...] = ()
    """Tables rows.parquet from other folders or machines. Their rows are imported and not computed
    again, unless settings or weights have changed. The tables hold no clips."""
    threads: int = 1
    """CPU threads of each process. Another number changes the rounding, so all rows of a table
    should use the same number."""
    ray: str | None = None
    """Run on Ray. "local" starts a cluster on this machine; any other value is the address of a
    cluster. The number of clips that run at once is the number of CPUs, or of GPUs if there are
    any."""
    tools: Tools = field(default_factory=Tools)
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        for name in ("seeds", "limit", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadCall(f"`{name}` must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The files that a benchmark wrote, and counts of its rows."""

    folder: Path
    report: Path
    rows: int
    failed: int
    """Number of rows that hold an error."""
    missing: int
    """Number of rows that were not written, because their process was lost."""


@job
def bench(config: BenchConfig, resolved: Suite | None = None) -> Generator[Event, None, Outcome]:
    """Compute the missing rows and write the report.

    The suite `resolved` replaces the suite and the model that the config names. Raises
    `RecastError`.
    """
    resolved = resolved or suite.read(config.suite, config.clips, config.backbone)
    if config.ray is None:  # otherwise other processors compute
        for text in devices.precision_notes(config.settings.device, config.settings.dtype):
            yield Note(text=text)
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
        current = yield from _run_tasks(tasks, config, out, adopted)
        results = rows.export(out, current)
        page = report.write(out, resolved, results)
        yield Step(stage="report", index=1, total=1)
    return Outcome(
        folder=out,
        report=page,
        rows=len(results),
        failed=sum(row["error"] is not None for row in results),
        missing=sum(task.size for task in tasks) - len(current),
    )


def _run_tasks(
    tasks: list[Task], config: BenchConfig, out: Path, adopted: Mapping[Id, Row]
) -> Generator[Event, None, list[Id]]:
    """Run all tasks and write their results. Returns the ids of the rows that are up to date."""
    total, existing = sum(task.size for task in tasks), rows.done(out)
    current: list[Id] = []
    written_sources: set[str] = set()
    for result in _results(tasks, config):
        if isinstance(result, Note):
            yield result
            continue
        row_id = (result.key, result.stamp)
        current.append(row_id)
        if result.row is not None:
            _write(out, result, written_sources)
            if result.row["error"]:
                yield Note(text=_failure(result.row))
        elif row_id in adopted and row_id not in existing:
            rows.take_over(out, adopted[row_id])
        yield Step(stage="row", index=len(current), total=total)
    return current


def _check_folder(out: Path, resolved: Suite) -> None:
    """Raise `BadCall` if a folder holds rows of another suite."""
    others = {row["suite"] for row in rows.read(out)} - {resolved.name}
    if others:
        raise BadCall(
            f"`out` is {out}, which holds rows of the suite {min(others)}; choose another folder "
            f"for {resolved.name}"
        )


def _tasks(
    config: BenchConfig,
    resolved: Suite,
    variants: tuple[Variant, ...],
    out: Path,
    adopted: Mapping[Id, Row],
) -> list[Task]:
    """One task for each clip: the rows that the config requests, and the existing rows to check."""
    clips, seeds = _by_clip(resolved), tuple(range(config.seeds or resolved.seeds))
    count = min(config.limit or len(clips), len(clips))
    chosen = [index * len(clips) // count for index in range(count)]
    done, existing = rows.done(out) | adopted.keys(), [*rows.read(out), *adopted.values()]
    tasks = []
    for index, cases in enumerate(clips):
        requested = variants if index in chosen else ()
        known = _known(resolved, cases, existing)
        task = Task(
            suite=resolved.name,
            cases=tuple(cases),
            variants=requested,
            seeds=seeds,
            backbone=resolved.backbone,
            settings=config.settings,
            source=resolved.source,
            tools=config.tools,
            threads=config.threads,
            done=frozenset(done),
            others=tuple(row for row in known if row[0] not in requested or row[2] not in seeds),
        )
        if task.size:
            tasks.append(task)
    return tasks


def _by_clip(resolved: Suite) -> list[list[Case]]:
    def name(case: Case) -> str:
        return case.clip

    return [list(cases) for _, cases in groupby(sorted(resolved.cases, key=name), key=name)]


def _known(
    resolved: Suite, cases: list[Case], existing: list[Row]
) -> Iterator[tuple[Variant, Case, int]]:
    """Variant, case and seed of each existing row of a clip that the suite still has."""
    by_prompt = {case.prompt: case for case in cases}
    own = [row for row in existing if row["clip"] == cases[0].clip and row["prompt"] in by_prompt]
    for name, prompt, seed in dict.fromkeys((r["variant"], r["prompt"], r["seed"]) for r in own):
        with suppress(BadCall):  # a method or folder that no longer exists
            yield resolved.variant(name), by_prompt[prompt], seed


def _results(tasks: list[Task], config: BenchConfig) -> Iterator[BenchResult | Note]:
    if config.ray is None:
        for task in tasks:
            yield from work.work(task)
    else:
        from recast.bench import cluster  # an optional extra

        yield from cluster.work(tasks, config.ray)


def _write(out: Path, computed: BenchResult, written_sources: set[str]) -> None:
    """Write a row and its clips, the clips first, so that no row names a missing clip.

    `written_sources` are the sources that this run has written. Each run writes every source once,
    because an earlier run may have cut it differently.
    """
    assert computed.row is not None
    clip = computed.row["clip"]
    if computed.source is not None and clip not in written_sources:
        computed.source.save(out / rows.VIDEOS / f"{clip}.mp4")
        written_sources.add(clip)
    if computed.result is not None:
        computed.result.save(out / computed.row["video"])
    rows.write(out, computed.row)


def _failure(row: rows.Row) -> str:
    return f"{row['variant']} on {row['clip']}, {row['prompt']!r}: {row['error']}"
