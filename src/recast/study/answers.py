"""The answers of a study, in one SQLite file: raters, what each of them sees, and what they said.

This module owns durability: an answer is on the disk before the rater sees the next item, so that
a server that is killed loses nothing, and several processes may use the file at once. There is one
answer for each rater and item. It refuses to know the web and statistics. Of a rater it stores a
random pseudonym and a hash of the code with which the rater returns.
"""

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from recast.errors import BadCall, RunFailed, reason_of
from recast.study.assignment import Shown
from recast.study.forms import Scores

_TABLES = """
CREATE TABLE IF NOT EXISTS raters (
    rater INTEGER PRIMARY KEY, pseudonym TEXT UNIQUE NOT NULL, code TEXT UNIQUE NOT NULL,
    joined REAL NOT NULL);
CREATE TABLE IF NOT EXISTS assignments (
    rater INTEGER NOT NULL REFERENCES raters, position INTEGER NOT NULL, item INTEGER NOT NULL,
    options TEXT NOT NULL, opened REAL, PRIMARY KEY (rater, position));
CREATE TABLE IF NOT EXISTS answers (
    rater INTEGER NOT NULL, position INTEGER NOT NULL, scores TEXT NOT NULL,
    seconds REAL NOT NULL, answered REAL NOT NULL, PRIMARY KEY (rater, position),
    FOREIGN KEY (rater, position) REFERENCES assignments);
"""
_PATIENCE = 15.0
"""Seconds to wait for another process that writes."""


@dataclass(frozen=True, slots=True)
class Rater:
    """A rater and how far they are."""

    number: int
    pseudonym: str
    answered: int
    total: int


@dataclass(frozen=True, slots=True)
class Judgment:
    """One answer."""

    rater: str
    """The pseudonym."""
    item: int
    shown: tuple[str, ...]
    """The options in the order in which they stood."""
    scores: Scores
    seconds: float
    """From the opening of the item to the answer."""
    answered: float
    """Unix time."""


class Answers:
    """The file of answers. Every method is one transaction and may be called from any thread."""

    def __init__(self, path: Path, durable: bool = True) -> None:
        """Open the file, or create it. Without `durable` a power cut may lose answers, but many are
        stored in less time. Raises `BadCall` for a file that is not such a database."""
        self._path, self._durable = path, durable
        try:
            with self._connection() as database:
                database.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            raise BadCall(f"{path} cannot be used for answers ({reason_of(error)})") from error

    def join(
        self,
        assign: Callable[[Mapping[int, int], int], Sequence[Shown]],
        max_raters: int,
        now: float,
    ) -> str:
        """Add a rater and return the code that identifies them. `assign` is called with the number
        of raters of each item and the number of the new rater. Raises `RunFailed` if there
        are `max_raters` already."""
        code = secrets.token_urlsafe(16)
        with self._writing() as database:
            (number,) = database.execute(
                "SELECT COALESCE(MAX(rater), -1) + 1 FROM raters"
            ).fetchone()
            if number >= max_raters:
                raise RunFailed("this study has enough raters; thank you for your interest")
            counts = dict(database.execute("SELECT item, COUNT(*) FROM assignments GROUP BY item"))
            pseudonym = f"rater-{secrets.token_hex(4)}"
            database.execute(
                "INSERT INTO raters VALUES (?, ?, ?, ?)", (number, pseudonym, _hash(code), now)
            )
            database.executemany(
                "INSERT INTO assignments VALUES (?, ?, ?, ?, NULL)",
                [
                    (number, position, shown.item, json.dumps(shown.options))
                    for position, shown in enumerate(assign(counts, number))
                ],
            )
        return code

    def rater(self, code: str) -> Rater | None:
        """The rater with a code."""
        with self._connection() as database:
            row = database.execute(
                "SELECT rater, pseudonym FROM raters WHERE code = ?", (_hash(code),)
            ).fetchone()
            if row is None:
                return None
            counts = [
                database.execute(
                    f"SELECT COUNT(*) FROM {name} WHERE rater = ?", row[:1]
                ).fetchone()[0]
                for name in ("answers", "assignments")
            ]
        return Rater(row[0], row[1], counts[0], counts[1])

    def open_next(self, rater: int, now: float) -> tuple[int, Shown] | None:
        """The position and content of the first item without an answer, whose time begins now;
        None if the rater has answered all."""
        with self._writing() as database:
            row = _next(database, rater)
            if row is None:
                return None
            database.execute(
                "UPDATE assignments SET opened = ? WHERE rater = ? AND position = ?",
                (now, rater, row[0]),
            )
        return row[0], Shown(row[1], tuple(json.loads(row[2])))

    def add(self, rater: int, position: int, scores: Scores, min_play: float, now: float) -> None:
        """Store an answer to the item that the rater sees now. Raises `RunFailed` for any other
        item, also one that has an answer, and for an answer before the minimum play."""
        with self._writing() as database:
            row = _next(database, rater)
            if row is None or row[0] != position or row[3] is None:
                raise RunFailed("this item has an answer already, or is not the one to answer now")
            seconds = now - row[3]
            if seconds < min_play:
                raise RunFailed(
                    f"the videos must play for {min_play:g} seconds before an answer; please watch "
                    "them to the end"
                )
            database.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?)",
                (rater, position, json.dumps(scores), round(seconds, 3), now),
            )

    def add_all(self, rater: int, answers: Sequence[tuple[Scores, float]], now: float) -> None:
        """Store the scores and seconds of all items of a rater at once, in their order, as a
        simulated rater gives them."""
        with self._writing() as database:
            database.executemany(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?)",
                [
                    (rater, position, json.dumps(scores), seconds, now)
                    for position, (scores, seconds) in enumerate(answers)
                ],
            )

    def assignments(self, rater: int) -> list[Shown]:
        """What a rater sees, in order."""
        with self._connection() as database:
            rows = database.execute(
                "SELECT item, options FROM assignments WHERE rater = ? ORDER BY position", (rater,)
            ).fetchall()
        return [Shown(item, tuple(json.loads(options))) for item, options in rows]

    def judgments(self) -> list[Judgment]:
        """All answers, by rater and position."""
        with self._connection() as database:
            rows = database.execute(
                "SELECT pseudonym, item, options, scores, seconds, answered FROM answers "
                "JOIN assignments USING (rater, position) JOIN raters USING (rater) "
                "ORDER BY rater, position"
            ).fetchall()
        return [
            Judgment(name, item, tuple(json.loads(options)), json.loads(scores), seconds, answered)
            for name, item, options, scores, seconds, answered in rows
        ]

    def raters(self) -> list[Rater]:
        """All raters, in the order in which they joined."""
        with self._connection() as database:
            rows = database.execute(
                "SELECT rater, pseudonym, "
                "(SELECT COUNT(*) FROM answers a WHERE a.rater = r.rater), "
                "(SELECT COUNT(*) FROM assignments s WHERE s.rater = r.rater) "
                "FROM raters r ORDER BY rater"
            ).fetchall()
        return [Rater(*row) for row in rows]

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection without a transaction. FULL: a commit is on the disk when it returns."""
        with closing(
            sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None)
        ) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
            database.execute("PRAGMA foreign_keys = ON")
            yield database

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which an exception in the body undoes."""
        with self._connection() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")


def _next(database: sqlite3.Connection, rater: int) -> tuple[int, int, str, float | None] | None:
    """Position, item, options and time of opening of the first item without an answer."""
    return database.execute(
        "SELECT position, item, options, opened FROM assignments WHERE rater = ? AND position NOT "
        "IN (SELECT position FROM answers WHERE rater = ?) ORDER BY position LIMIT 1",
        (rater, rater),
    ).fetchone()


def _hash(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()
