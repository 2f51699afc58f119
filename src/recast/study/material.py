"""The clips and prompts from which a study is made: a benchmark's folder, or folders of clips.

A benchmark's folder is read through its documented files, `rows.csv` and `videos/`. Folders of
clips are `prompts.csv`, `source/` and one more folder for each system. This module owns both
layouts. It refuses to know what a study does with the clips.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recast.errors import BadCall, BadClip, UnknownName, reason_of

ROWS, VIDEOS, METRIC = "rows.csv", "videos", "metric."
PROMPTS, SOURCES = "prompts.csv", "source"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A source clip and a prompt, with the result of each system as a file."""

    clip: str
    prompt: str
    source: Path
    results: Mapping[str, Path]
    source_prompt: str = ""
    seed: int = 0
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """For each system, the values of the metrics that it has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """All cases for which every system has a result."""

    systems: tuple[str, ...]
    cases: tuple[Found, ...]
    incomplete: int
    """The number of cases that lack the result of a system, and are left out."""
    is_bench: bool

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics of any result."""
        names = (name for case in self.cases for own in case.scores.values() for name in own)
        return list(dict.fromkeys(names))


def is_bench(folder: Path) -> bool:
    """Whether a folder is that of a benchmark."""
    return (folder / ROWS).is_file()


def read(folder: Path, systems: Sequence[str] = (), seeds: int = 1) -> Material:
    """The cases of a folder for some systems, by default for all but the source itself.

    Of a benchmark, the first `seeds` results of each clip and prompt are used. Raises `BadCall` for
    another kind of folder, `UnknownName` for an unknown system, and `BadClip` for missing clips.
    """
    if is_bench(folder):
        return _from_bench(folder, systems, seeds)
    if (folder / PROMPTS).is_file():
        return _from_folders(folder, systems)
    raise BadCall(
        f"{folder} has neither {ROWS} of a benchmark nor {PROMPTS} beside folders of clips; give "
        "the folder of recast bench, or one with such files"
    )


def _from_bench(folder: Path, systems: Sequence[str], seeds: int) -> Material:
    rows = [
        row
        for row in _table(folder / ROWS, ("clip", "prompt", "variant", "seed", "video", "error"))
        if not row["error"] and row["video"]
    ]
    own = [row["variant"] for row in rows if row.get("method") != "source"]
    chosen = _chosen(systems, dict.fromkeys(own), folder)
    by_case: dict[tuple[str, str], dict[int, dict[str, dict[str, str]]]] = defaultdict(dict)
    for row in rows:
        if row["variant"] in chosen:
            results = by_case[row["clip"], row["prompt"]].setdefault(int(row["seed"]), {})
            results[row["variant"]] = row
    cases: list[Found] = []
    incomplete = 0
    for by_seed in by_case.values():
        whole = [own for _, own in sorted(by_seed.items()) if own.keys() >= set(chosen)]
        incomplete += not whole
        cases += [_bench_case(folder, own, chosen) for own in whole[:seeds]]
    return _material(folder, chosen, cases, incomplete, bench=True)


def _bench_case(folder: Path, rows: Mapping[str, Mapping[str, str]], chosen: list[str]) -> Found:
    first = rows[chosen[0]]
    return Found(
        clip=first["clip"],
        prompt=first["prompt"],
        source=_inside(folder, f"{VIDEOS}/{first['clip']}.mp4"),
        results={name: _inside(folder, rows[name]["video"]) for name in chosen},
        source_prompt=first.get("source_prompt", ""),
        seed=int(first["seed"]),
        scores={name: _scores(rows[name]) for name in chosen},
    )


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder. Raises `BadClip` if it is missing or lies elsewhere."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise BadClip(
            f"{folder / ROWS} names the clip {name}, which is not in {folder}; a folder that took "
            "its rows over with `have` has no clips"
        )
    return path


def _scores(row: Mapping[str, str]) -> dict[str, float]:
    values = {
        name.removeprefix(METRIC): float(text)
        for name, text in row.items()
        if name.startswith(METRIC) and text
    }
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _from_folders(folder: Path, systems: Sequence[str]) -> Material:
    rows = _table(folder / PROMPTS, ("name", "prompt"))
    folders = sorted(one.name for one in folder.iterdir() if one.is_dir() and one.name[0] != ".")
    chosen = _chosen(systems, [name for name in folders if name != SOURCES], folder)
    cases: list[Found] = []
    incomplete = 0
    for row in rows:
        source = row.get("source") or row["name"]
        clip = _clip(folder / SOURCES, source)
        if clip is None:
            raise BadClip(f"{folder / SOURCES} has no clip {source}, which {PROMPTS} names")
        found = {name: _clip(folder / name, row["name"]) for name in chosen}
        results = {name: path for name, path in found.items() if path is not None}
        if len(results) < len(chosen):
            incomplete += 1
            continue
        found_case = Found(
            clip=source,
            prompt=row["prompt"],
            source=clip,
            results=results,
            source_prompt=row.get("source_prompt") or "",
        )
        cases.append(found_case)
    return _material(folder, chosen, cases, incomplete, bench=False)


def _clip(folder: Path, stem: str) -> Path | None:
    """The clip of a name: a file with any suffix, or a folder of images. Raises `BadCall` for a
    name that is a path."""
    if not stem or Path(stem).name != stem:
        raise BadCall(f"{PROMPTS}: {stem!r} is not the name of a clip; leave folders out")
    if not folder.is_dir():
        return None
    found = [one for one in sorted(folder.iterdir()) if stem in (one.stem, one.name)]
    return found[0] if found else None


def _chosen(systems: Sequence[str], known: Iterable[str], folder: Path) -> list[str]:
    names = list(known)
    for name in systems:
        if name not in names:
            raise UnknownName("system", name, names)
    chosen = list(dict.fromkeys(systems)) or names
    if not chosen:
        raise BadCall(f"{folder} has no results of any system")
    return chosen


def _material(
    folder: Path, chosen: list[str], cases: list[Found], incomplete: int, bench: bool
) -> Material:
    if not cases:
        raise BadCall(
            f"{folder} has no clip and prompt for which each of {', '.join(chosen)} has a result"
        )
    return Material(
        systems=tuple(chosen), cases=tuple(cases), incomplete=incomplete, is_bench=bench
    )


def _table(path: Path, required: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a CSV file. Raises `BadCall` for a file without one of the columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            missing = [name for name in required if name not in (reader.fieldnames or ())]
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadCall(f"{path} cannot be read as CSV in UTF-8 ({reason_of(error)})") from error
    if missing:
        raise BadCall(f"{path} lacks the column {missing[0]}")
    return rows
