"""The queue: every job of a server and its state, in one SQLite file.

The page adds jobs and reads their progress, and the workers take jobs and write it. SQLite's
write-ahead log lets several processes do so at once, and each change is one transaction: a process
that is killed leaves no half change behind. A worker writes only into a job that is still its own.
This module owns the states. It refuses to know what a job does.
"""

import contextlib
import json
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from recast.errors import BadCall

State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
STATES: tuple[State, ...] = get_args(State)
UNFINISHED = ("queued", "running")
_WAIT_SECONDS = 30.0
"""How long a process waits for another one that writes."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    client TEXT NOT NULL,
    batch TEXT NOT NULL,
    state TEXT NOT NULL,
    request TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    cancelled REAL,
    worker TEXT NOT NULL DEFAULT '',
    progress TEXT NOT NULL DEFAULT '{}',
    result TEXT NOT NULL DEFAULT '{}',
    error TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number);
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One job of the queue."""

    number: int
    """Its place in the order of the queue."""
    id: str
    """A name that nobody can guess."""
    kind: str
    client: str
    """The browser or address that asked for the job."""
    batch: str
    """The comparison to which the job belongs; empty for a job of its own."""
    state: State
    request: Mapping[str, Any]
    created: float
    """In seconds since the epoch, as the other times."""
    started: float | None
    finished: float | None
    cancelled: float | None
    """Time at which the job was asked to stop."""
    worker: str
    progress: Mapping[str, Any]
    result: Mapping[str, Any]
    error: str

    @property
    def unfinished(self) -> bool:
        """Whether the job waits or runs."""
        return self.state in UNFINISHED


class JobStore:
    """The jobs in a file. Every call is one transaction, and any process or thread may call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connection() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(_SCHEMA)

    def add(
        self, kind: str, client: str, request: Mapping[str, Any], *, id: str = "", batch: str = ""
    ) -> str:
        """Queue a job, and return its id. `id` is one from `new_id`."""
        id = id or new_id()
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO jobs (id, kind, client, batch, state, request, created) "
                "VALUES (?, ?, ?, ?, 'queued', ?, ?)",
                (id, kind, client, batch, json.dumps(request), time.time()),
            )
        return id

    def claim(self, worker: str) -> Job | None:
        """The first job of the queue, which now belongs to `worker`; None for an empty queue."""
        if not self.count(("queued",)):
            return None
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT id FROM jobs WHERE state = 'queued' ORDER BY number LIMIT 1"
            ).fetchone()
            if row is None:
                return None
            connection.execute(
                "UPDATE jobs SET state = 'running', worker = ?, started = ?, cancelled = NULL, "
                "finished = NULL, progress = '{}', error = '' WHERE id = ?",
                (worker, time.time(), row["id"]),
            )
        return self.get(row["id"])

    def get(self, id: str) -> Job:
        """A job by its id. Raises `BadCall` for an unknown one."""
        jobs = self._select("WHERE id = ?", (id,))
        if not jobs:
            raise BadCall("this job does not exist; its results may have been removed")
        return jobs[0]

    def jobs(
        self,
        *,
        client: str | None = None,
        states: Sequence[str] = STATES,
        batch: str | None = None,
        limit: int = -1,
    ) -> list[Job]:
        """The jobs of a client, or of all, the newest first."""
        where = [f"state IN ({', '.join('?' * len(states))})"]
        values: list[Any] = [*states]
        for name, value in (("client", client), ("batch", batch)):
            if value is not None:
                where.append(f"{name} = ?")
                values.append(value)
        return self._select(
            f"WHERE {' AND '.join(where)} ORDER BY number DESC LIMIT ?", (*values, limit)
        )

    def count(self, states: Sequence[str] = UNFINISHED, client: str | None = None) -> int:
        """The number of jobs in some states."""
        where, values = f"state IN ({', '.join('?' * len(states))})", [*states]
        if client is not None:
            where, values = f"{where} AND client = ?", [*values, client]
        with self._connection() as connection:
            (count,) = connection.execute(
                f"SELECT count(*) FROM jobs WHERE {where}", values
            ).fetchone()
        return int(count)

    def ahead_of(self, job: Job) -> int:
        """The number of unfinished jobs before a job."""
        with self._connection() as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running') AND number < ?",
                (job.number,),
            ).fetchone()
        return int(count)

    def report(self, job: Job, progress: Mapping[str, Any]) -> bool:
        """Write the progress of a running job. Returns False if the job must stop."""
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE jobs SET progress = ? WHERE id = ? AND state = 'running' AND worker = ? "
                "AND cancelled IS NULL",
                (json.dumps(progress), job.id, job.worker),
            ).rowcount
        return changed == 1

    def may_go_on(self, job: Job) -> bool:
        """Whether a running job is still that of its worker, and nobody cancelled it."""
        with self._connection() as connection:
            row = connection.execute(
                "SELECT 1 FROM jobs WHERE id = ? AND state = 'running' AND worker = ? "
                "AND cancelled IS NULL",
                (job.id, job.worker),
            ).fetchone()
        return row is not None

    def finish(
        self, job: Job, state: State, *, error: str = "", result: Mapping[str, Any] | None = None
    ) -> bool:
        """End a running job. Returns False, and changes nothing, if it is not its worker's any
        more."""
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE jobs SET state = ?, finished = ?, error = ?, result = ? "
                "WHERE id = ? AND state = 'running' AND worker = ?",
                (state, time.time(), error, json.dumps(result or {}), job.id, job.worker),
            ).rowcount
        return changed == 1

    def cancel(self, id: str) -> None:
        """Take a waiting job out of the queue, or ask a running one to stop."""
        now = time.time()
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET state = 'cancelled', finished = ?, cancelled = ? "
                "WHERE id = ? AND state IN ('queued', 'interrupted')",
                (now, now, id),
            )
            connection.execute(
                "UPDATE jobs SET cancelled = ? WHERE id = ? AND state = 'running' "
                "AND cancelled IS NULL",
                (now, id),
            )

    def interrupt(self, worker: str | None = None) -> list[Job]:
        """Mark the running jobs of a worker that has ended, or of all workers. A job that was asked
        to stop becomes cancelled. Returns the jobs as they were."""
        running = self.jobs(states=("running",))
        lost = [job for job in running if worker is None or job.worker == worker]
        for job in lost:
            self.finish(job, "interrupted" if job.cancelled is None else "cancelled")
        return lost

    def resume(self, id: str) -> None:
        """Queue an interrupted, failed or cancelled job again. Raises `BadCall` for another."""
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE jobs SET state = 'queued', cancelled = NULL, finished = NULL "
                "WHERE id = ? AND state IN ('interrupted', 'failed', 'cancelled')",
                (id,),
            ).rowcount
        if not changed:
            raise BadCall("only a job that was interrupted, stopped or failed can run again")

    def remove(self, id: str) -> None:
        """Remove a job that does not wait or run."""
        with self._transaction() as connection:
            connection.execute(
                "DELETE FROM jobs WHERE id = ? AND state NOT IN ('queued', 'running')", (id,)
            )

    def _select(self, clause: str, values: Sequence[Any]) -> list[Job]:
        with self._connection() as connection:
            rows = connection.execute(f"SELECT * FROM jobs {clause}", values).fetchall()
        return [_job(row) for row in rows]

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=_WAIT_SECONDS, isolation_level=None)
        connection.row_factory = sqlite3.Row
        try:
            connection.execute("PRAGMA synchronous=NORMAL")
            yield connection
        finally:
            connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")


def new_id() -> str:
    """A new id of a job."""
    return secrets.token_hex(12)


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    for name in ("request", "progress", "result"):
        values[name] = json.loads(values[name])
    return Job(**values)
