"""The queue of jobs, in one SQLite file: a closed page, a lost connection and a restart leave it as it is.

Pages put jobs in and look at them; the worker process takes them out, one at a time, in their order. A job
carries its own request, which nobody changes afterwards, and belongs to one owner.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from difflora import DiffloraError

State = Literal["waiting", "running", "done", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")
MAX_WAITING = 64  # of one owner
POLL = 0.02  # seconds between two looks at a job that is followed
PATIENT = 0.2  # the same while it has waited for longer than a second
SECOND = 1.0  # after which the seconds of a job that runs have changed
_FILE = "jobs.sqlite"
_LOCK = "server.lock"
_COLUMNS = (
    "number, owner, kind, request, state, done, total, note, files, result, error, created, started, ended"
)
_SCHEMA = """
create table if not exists jobs (
    number integer primary key autoincrement,
    owner text not null,
    kind text not null,
    request text not null,
    state text not null default 'waiting',
    done integer not null default 0,
    total integer not null default 0,
    note text not null default '',
    files text not null default '[]',
    result text not null default '{}',
    error text not null default '',
    created real not null,
    started real,
    ended real,
    stop integer not null default 0
);
create index if not exists by_state on jobs (state, number);
create index if not exists by_owner on jobs (owner, number);
"""


class JobError(DiffloraError):
    """A job that is not there, is somebody else's, or cannot be taken."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job as it was when it was looked at.

    `request` and `result` are JSON; `files` are names below the job's folder. `done` of `total` steps are
    made, `note` says in words what is going on, and `error` why it failed.
    """

    number: int
    owner: str
    kind: str
    request: str
    state: State
    done: int
    total: int
    note: str
    files: tuple[str, ...]
    result: str
    error: str
    created: float
    started: float | None
    ended: float | None

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.state in ENDED

    @property
    def seconds(self) -> float:
        """How long it has run, or ran."""
        return 0.0 if self.started is None else (self.ended or time.time()) - self.started


class Jobs:
    """The queue in a folder; any number of processes and threads may have it open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with closing(self._open()) as database:
            database.execute("pragma journal_mode = wal")  # readers and the writer do not wait for each other
            database.executescript(_SCHEMA)

    def place(self, job: Job) -> Path:
        """The folder of a job's files."""
        return self.folder / f"{job.number:06d}"

    def submit(self, owner: str, kind: str, request: str) -> Job:
        """Puts a job at the end. Raises JobError if its owner has too many waiting."""
        with closing(self._open()) as database, database:
            database.execute("begin immediate")
            (waiting,) = database.execute(
                "select count(*) from jobs where owner = ? and state = 'waiting'", (owner,)
            ).fetchone()
            if waiting >= MAX_WAITING:
                raise JobError(
                    f"{waiting} of your jobs are waiting already, at most {MAX_WAITING} may. Cancel some, or "
                    "wait for them."
                )
            number = database.execute(
                "insert into jobs (owner, kind, request, created) values (?, ?, ?, ?)",
                (owner, kind, request, time.time()),
            ).lastrowid
        assert number is not None, "a row that was inserted has a number"
        return self.get(number, owner)

    def get(self, number: int, owner: str) -> Job:
        """A job of `owner`. Raises JobError if there is none of that number, or it is somebody else's."""
        found = self._select("where number = ? and owner = ?", (number, owner))
        if not found:
            raise JobError(f"there is no job {number} of yours.")
        return found[0]

    def of(self, owner: str, *, limit: int | None = 50, kind: str | None = None) -> list[Job]:
        """The newest jobs of `owner`, the newest first; all of them without a limit."""
        where = "where owner = ?" + ("" if kind is None else " and kind = ?")
        values = (owner,) if kind is None else (owner, kind)
        return self._select(
            f"{where} order by number desc limit ?", (*values, -1 if limit is None else limit)
        )

    def before(self, job: Job) -> Job:
        """The oldest of the owner's jobs of the same kind that is not over, up to this one; it itself if none
        is."""
        where = "where owner = ? and kind = ? and number < ? and state in ('waiting', 'running')"
        found = self._select(f"{where} order by number limit 1", (job.owner, job.kind, job.number))
        return found[0] if found else job

    def behind(self, job: Job) -> int:
        """How many of the owner's jobs of the same kind wait behind a job."""
        with closing(self._open()) as database:
            (count,) = database.execute(
                "select count(*) from jobs where owner = ? and kind = ? and number > ? and state = 'waiting'",
                (job.owner, job.kind, job.number),
            ).fetchone()
        return int(count)

    def ahead(self, job: Job) -> int:
        """How many jobs are made before a waiting one, the running one counted."""
        if job.state != "waiting":
            return 0
        with closing(self._open()) as database:
            (count,) = database.execute(
                "select count(*) from jobs where state = 'running' or (state = 'waiting' and number < ?)",
                (job.number,),
            ).fetchone()
        return int(count)

    def cancel(self, number: int, owner: str) -> Job:
        """Ends a waiting job at once; asks a running one to end at its next step. An ended one stays as it
        is."""
        self.get(number, owner)
        with closing(self._open()) as database, database:
            database.execute(
                "update jobs set state = 'cancelled', ended = ? where number = ? and state = 'waiting'",
                (time.time(), number),
            )
            database.execute("update jobs set stop = 1 where number = ? and state = 'running'", (number,))
        return self.get(number, owner)

    def follow(self, job: Job) -> Iterator[Job]:
        """The job whenever something about it changes, and every second while it runs, until it is over."""
        yield job
        told = time.monotonic()
        while not job.is_over:
            waits = job.state == "waiting" and time.monotonic() - told >= SECOND
            time.sleep(PATIENT if waits else POLL)
            now = self.get(job.number, job.owner)
            if now != job or (now.state == "running" and time.monotonic() - told >= SECOND):
                job, told = now, time.monotonic()
                yield job

    # What follows is the server's and its worker's.

    def hold(self) -> sqlite3.Connection:
        """Makes this process the only server of the queue, until what is returned is closed or it ends.

        Raises JobError if another one is.
        """
        lock = sqlite3.connect(self.folder / _LOCK, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            lock.execute("begin exclusive")
        except sqlite3.OperationalError as error:
            lock.close()
            raise JobError(
                f"another page works in {self.folder.parent} already. Use that one, end it first, or give "
                "another folder with --output."
            ) from error
        return lock

    def claim(self) -> Job | None:
        """Takes the first waiting job to run it; None if none waits."""
        if not self._select("where state = 'waiting' limit 1", ()):
            return None  # without a lock, for this is asked many times a second
        with closing(self._open()) as database, database:
            database.execute("begin immediate")
            row = database.execute(
                "update jobs set state = 'running', started = ?, note = '' where number = "
                "(select number from jobs where state = 'waiting' order by number limit 1) "
                f"returning {_COLUMNS}",
                (time.time(),),
            ).fetchone()
        return None if row is None else _job(row)

    def running(self) -> Job | None:
        """The job that is said to run."""
        return next(iter(self._select("where state = 'running' limit 1", ())), None)

    def report(self, job: Job, *, done: int, total: int, note: str = "", files: Sequence[str] = ()) -> bool:
        """Says how far a running job is; returns whether it is asked to end, as one is that does not run any
        more."""
        with closing(self._open()) as database, database:
            row = database.execute(
                "update jobs set done = ?, total = ?, note = ?, files = ? "
                "where number = ? and state = 'running' returning stop",
                (done, total, note, json.dumps(list(files)), job.number),
            ).fetchone()
        return row is None or bool(row[0])

    def finish(self, job: Job, *, files: Sequence[str], result: str = "{}") -> None:
        """A running job is done."""
        self._end(job, "done", files=files, result=result)

    def fail(self, job: Job, error: str) -> None:
        """A running job has failed, `error` says why and what to do. What it has made so far stays."""
        self._end(job, "failed", error=error)

    def end_cancelled(self, job: Job, *, note: str, files: Sequence[str] = ()) -> None:
        """A running job has ended because it was asked to."""
        self._end(job, "cancelled", files=files, note=note)

    def put_back(self, job: Job) -> None:
        """A running job waits again, at its old place."""
        with closing(self._open()) as database, database:
            database.execute(
                "update jobs set state = 'waiting' where number = ? and state = 'running'", (job.number,)
            )

    def _end(
        self,
        job: Job,
        state: State,
        *,
        files: Sequence[str] | None = None,
        result: str = "{}",
        error: str = "",
        note: str = "",
    ) -> None:
        names = None if files is None else json.dumps(list(files))
        with closing(self._open()) as database, database:
            database.execute(
                "update jobs set state = ?, files = coalesce(?, files), result = ?, error = ?, note = ?, "
                "ended = ? where number = ? and state = 'running'",
                (state, names, result, error, note, time.time(), job.number),
            )

    def _select(self, where: str, values: tuple[object, ...]) -> list[Job]:
        with closing(self._open()) as database:
            return [_job(row) for row in database.execute(f"select {_COLUMNS} from jobs {where}", values)]

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.folder / _FILE, timeout=20)
        database.execute("pragma synchronous = normal")  # with a write-ahead log only a power cut can undo
        return database


def _job(row: tuple) -> Job:
    number, owner, kind, request, state, done, total, note, files, *rest = row
    return Job(number, owner, kind, request, state, done, total, note, tuple(json.loads(files)), *rest)
