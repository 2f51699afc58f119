"""The rows of a benchmark: one small Parquet file each, so that none is ever half-written.

Whoever is killed between two rows loses nothing, and a rerun knows what is there. At the end all
of them are one table, as Parquet and as CSV. Knows no method and no metric.
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recast.errors import BadCall
from recast.media.atomic_files import atomic
from recast.pipeline.manifest import plain

Row = Mapping[str, Any]
Id = tuple[str, str]
"""Key and stamp: which row it is, and all that its numbers depend on."""
ROWS, VIDEOS = "rows", "videos"
TABLE, SPREADSHEET = "rows.parquet", "rows.csv"
METRIC = "metric."
"""What the columns of metrics begin with."""
_NUMBER, _COUNT, _TEXT = pa.float64(), pa.int64(), pa.string()
COLUMNS = {
    **dict.fromkeys(("key", "stamp", "suite", "clip", "group", "prompt", "source_prompt"), _TEXT),
    **dict.fromkeys(("variant", "method", "config", "backbone", "fingerprint", "device"), _TEXT),
    **dict.fromkeys(("settings", "mask"), _TEXT),
    "seed": _COUNT,
    "steps": _COUNT,
    "guidance_scale": _NUMBER,
    "error": _TEXT,
    "notes": _TEXT,
    "learn_seconds": _NUMBER,
    "learn_calls": _COUNT,
    "learn_peak_memory_mb": _NUMBER,
    "motion_mb": _NUMBER,
    "seconds": _NUMBER,
    "calls": _COUNT,
    "peak_memory_mb": _NUMBER,
    **dict.fromkeys(("video", "tracker", "clip_model", "versions", "finished"), _TEXT),
}
"""Every column but the metrics', in order. An older table may lack some."""


def key(identity: Any) -> str:
    """A short hash of anything that JSON can tell."""
    told = json.dumps(plain(identity), sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def write(folder: Path, row: Row) -> None:
    """Add a row, or replace that of the same key. Raises `NoSpace`, `BadCall`."""
    (folder / ROWS).mkdir(parents=True, exist_ok=True)
    with atomic(_path(folder, row["key"])) as temporary:
        pq.write_table(_table([row]), temporary)


def done(folder: Path) -> set[Id]:
    """Key and stamp of every row without an error."""
    return {(row["key"], row["stamp"]) for row in read(folder) if row["error"] is None}


def read(folder: Path) -> list[dict[str, Any]]:
    """All rows, in the order of suite, clip, prompt, variant and seed."""
    found = [row for path in sorted((folder / ROWS).glob("[!.]*.parquet")) for row in _rows(path)]
    order = ("suite", "clip", "prompt", "variant", "seed")
    return sorted(found, key=lambda row: tuple((row[name] is None, row[name]) for name in order))


def adopt(folder: Path, table: Path, suite: str) -> dict[Id, Row]:
    """Add the rows without an error of another folder's table, where there is none of that key.

    Returns them all by key and stamp: where both have a row of a key, whoever knows the stamp can
    tell which is right. Raises `BadCall` for a file that is no such table, and for rows of another
    suite.
    """
    try:
        columns, found = set(pq.read_schema(table).names), list(_rows(table))
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise BadCall(f"{table} is no {TABLE} that can be read ({reason})") from error
    lacks = {"key", "stamp", "suite", "error"} - columns
    strange = {name for name in columns - COLUMNS.keys() if not name.startswith(METRIC)}
    if wrong := sorted(lacks or strange):
        told = f"{'lacks' if lacks else 'has'} the column {wrong[0]}"
        raise BadCall(f"{table} {told}, so no benchmark of this version wrote it")
    others = {row["suite"] for row in found} - {suite}
    good: dict[Id, Row] = {(row["key"], row["stamp"]): row for row in found if row["error"] is None}
    if others:
        raise BadCall(f"{table} holds rows of the suite {min(others)}, and this is {suite}")
    there = {key for key, _ in done(folder)}
    for (key, _), row in good.items():
        if key not in there:
            take_over(folder, row)
    return good


def take_over(folder: Path, row: Row) -> None:
    """Add a row that was made elsewhere: a clip that is here is of another one."""
    (folder / row["video"]).unlink(missing_ok=True)
    write(folder, row)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written. The folder must be locked."""
    for part in (ROWS, VIDEOS):
        for path in (folder / part).glob(".recast-*"):
            path.unlink(missing_ok=True)


def export(folder: Path, current: Iterable[Id]) -> list[dict[str, Any]]:
    """Write all rows whose key and stamp are `current` as one Parquet and one CSV file, and return
    them."""
    chosen = set(current)
    found = [row for row in read(folder) if (row["key"], row["stamp"]) in chosen]
    table = _table(found)
    with atomic(folder / TABLE) as temporary:
        pq.write_table(table, temporary)
    with atomic(folder / SPREADSHEET) as temporary:
        write_csv(temporary, table.column_names, found)
    return found


def write_csv(path: Path, columns: Iterable[str], found: Iterable[Row]) -> None:
    """Rows as CSV, empty where there is no value."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), restval="", extrasaction="raise")
        writer.writeheader()
        writer.writerows(found)


def metrics(found: Iterable[Row]) -> list[str]:
    """The names of all metrics that any row has, in the rows' order."""
    names = (name for row in found for name in row if name.startswith(METRIC))
    return [name.removeprefix(METRIC) for name in dict.fromkeys(names)]


def _path(folder: Path, name: str) -> Path:
    return folder / ROWS / f"{name}.parquet"


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    yield from pq.ParquetFile(path).read().to_pylist()


def _table(found: list[Any]) -> pa.Table:
    """Rows as a table: a column is what its name says, whatever a row lacks."""
    names = metrics(found)
    unknown = {name for row in found for name in row} - COLUMNS.keys()
    assert unknown == {METRIC + name for name in names}, unknown
    schema = pa.schema(
        [*COLUMNS.items(), *((METRIC + name, _NUMBER) for name in names)],
    )
    return pa.Table.from_pylist([dict(row) for row in found], schema)
