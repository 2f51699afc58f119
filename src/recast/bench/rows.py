"""The rows of a benchmark: each result is one row in a small Parquet file, written atomically.

A process that is killed between two rows loses no row, and a rerun knows which rows exist. At the
end all rows become one table, as Parquet and as CSV. This module owns the columns and refuses to
know methods and metrics.
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recast.errors import BadCall, reason_of
from recast.media.atomic_files import atomic
from recast.pipeline.manifest import plain

Row = Mapping[str, Any]
Id = tuple[str, str]
"""Key and stamp of a row. The key is a hash of its pair, variant and seed; the stamp is a hash of
everything that its numbers depend on."""
ROWS, VIDEOS = "rows", "videos"
TABLE, SPREADSHEET = "rows.parquet", "rows.csv"
METRIC = "metric."
"""Prefix of the columns that hold metrics."""
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
"""All columns except those of metrics, in order. A table of an earlier version may lack some."""


def key(identity: Any) -> str:
    """A hash of 16 hexadecimal digits of anything that JSON can represent."""
    text = json.dumps(plain(identity), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write(folder: Path, row: Row) -> None:
    """Add a row, or replace the row with the same key. Raises `NoSpace`, `BadCall`."""
    (folder / ROWS).mkdir(parents=True, exist_ok=True)
    with atomic(_path(folder, row["key"])) as temporary:
        pq.write_table(as_table([row]), temporary)


def done(folder: Path) -> set[Id]:
    """Key and stamp of all rows without an error."""
    return {(row["key"], row["stamp"]) for row in read(folder) if row["error"] is None}


def read(folder: Path) -> list[dict[str, Any]]:
    """All rows, sorted by suite, clip, prompt, variant and seed."""
    results = [row for path in sorted((folder / ROWS).glob("[!.]*.parquet")) for row in _rows(path)]
    order = ("suite", "clip", "prompt", "variant", "seed")
    return sorted(results, key=lambda row: tuple((row[name] is None, row[name]) for name in order))


def adopt(folder: Path, table: Path, suite: str) -> dict[Id, Row]:
    """Import the rows without an error from another folder's table, unless their key exists here.

    Returns all these rows by key and stamp. If both folders have a row with the same key, the
    caller can choose by the stamp. Raises `BadCall` for a file that is not such a table, and for
    rows of another suite.
    """
    try:
        columns, results = set(pq.read_schema(table).names), list(_rows(table))
    except (OSError, pa.ArrowException) as error:
        raise BadCall(
            f"{table} is not a table {TABLE} of a benchmark ({reason_of(error)})"
        ) from error
    missing = {"key", "stamp", "suite", "error"} - columns
    unknown = {name for name in columns - COLUMNS.keys() if not name.startswith(METRIC)}
    if wrong := sorted(missing or unknown):
        problem = f"{'lacks' if missing else 'has'} the column {wrong[0]}"
        raise BadCall(
            f"{table} {problem}, so it is not a table {TABLE} that this version of Recast can read"
        )
    other_suites = {row["suite"] for row in results} - {suite}
    if other_suites:
        raise BadCall(f"{table} holds rows of the suite {min(other_suites)}, not of {suite}")
    valid: dict[Id, Row] = {
        (row["key"], row["stamp"]): row for row in results if row["error"] is None
    }
    existing = {key for key, _ in done(folder)}
    for (key, _), row in valid.items():
        if key not in existing:
            take_over(folder, row)
    return valid


def take_over(folder: Path, row: Row) -> None:
    """Import a row of another folder. A clip of the same name in this folder belongs to an older
    row, so it is removed."""
    (folder / row["video"]).unlink(missing_ok=True)
    write(folder, row)


def sweep(folder: Path) -> None:
    """Remove the temporary files of a killed process. The folder must be locked."""
    for part in (ROWS, VIDEOS):
        for path in (folder / part).glob(".recast-*"):
            path.unlink(missing_ok=True)


def export(folder: Path, current: Iterable[Id]) -> list[dict[str, Any]]:
    """Write the rows whose key and stamp are in `current` to one Parquet file and one CSV file, and
    return them."""
    ids = set(current)
    results = [row for row in read(folder) if (row["key"], row["stamp"]) in ids]
    table = as_table(results)
    with atomic(folder / TABLE) as temporary:
        pq.write_table(table, temporary)
    with atomic(folder / SPREADSHEET) as temporary:
        write_csv(temporary, table.column_names, results)
    return results


def write_csv(path: Path, columns: Iterable[str], results: Iterable[Row]) -> None:
    """Write rows as CSV; a missing value is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), restval="", extrasaction="raise")
        writer.writeheader()
        writer.writerows(results)


def metrics(results: Iterable[Row]) -> list[str]:
    """The names of all metrics in any row, in order of appearance."""
    names = (name for row in results for name in row if name.startswith(METRIC))
    return [name.removeprefix(METRIC) for name in dict.fromkeys(names)]


def _path(folder: Path, name: str) -> Path:
    return folder / ROWS / f"{name}.parquet"


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    yield from pq.ParquetFile(path).read().to_pylist()


def as_table(results: list[Any]) -> pa.Table:
    """Rows as a table whose column types do not depend on missing values."""
    names = metrics(results)
    unknown = {name for row in results for name in row} - COLUMNS.keys()
    assert unknown == {METRIC + name for name in names}, unknown
    schema = pa.schema(
        [*COLUMNS.items(), *((METRIC + name, _NUMBER) for name in names)],
    )
    return pa.Table.from_pylist([dict(row) for row in results], schema)
