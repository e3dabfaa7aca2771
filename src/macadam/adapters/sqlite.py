"""SQLite as the Sql port: WAL, synchronous=FULL, and one writer thread that commits in groups.

Callers from any thread hand their work to the writer. It opens one IMMEDIATE transaction, runs each piece in
a savepoint, commits once and only then answers them: many callers share one fsync, and an error undoes
only its own piece. Several processes may open the same file; SQLite's lock orders their groups.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from macadam.adapters.group_writer import GroupWriter, Work
from macadam.errors import Busy, IntegrityError, StorageFull, Temporary
from macadam.migrations import upgrade
from macadam.settings import Sql as SqlSettings

T = TypeVar("T")
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_HELD = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SHUT = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}
# After these SQLite may have rolled back the whole transaction, so that no piece of a group can be saved alone.
_FATAL = _FULL | _HELD | _DAMAGED | _SHUT


class Sqlite:
    """One SQLite file. path: created for its owner alone; its directory must exist."""

    def __init__(self, path: Path, settings: SqlSettings) -> None:
        self._engine = _engine(path, settings.busy_timeout)
        self._writer = GroupWriter("sqlite-writer", settings.group_limit, self._commit, _translated)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with _told(), self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            try:
                yield connection
            finally:
                connection.exec_driver_sql("ROLLBACK")

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        return self._writer.write(work)

    def migrate(self) -> None:
        self.write(upgrade)

    def close(self) -> None:
        """Waits for the work handed in so far. Closing twice does nothing."""
        if self._writer.close():
            self._engine.dispose()

    def _commit(self, group: list[Work]) -> None:
        with self._engine.connect() as connection:  # from the pool: opening failed or not, each group tries anew
            _commit(connection, group)


def _engine(path: Path, busy_timeout: float) -> sa.Engine:
    with suppress(OSError):  # SQLite says better what is wrong with the path
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # the files beside it take its mode over
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        connect_args={"timeout": busy_timeout, "check_same_thread": False},
        poolclass=sa.pool.QueuePool,
        pool_size=8,
        max_overflow=64,
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        # The driver must not open transactions by itself: BEGIN is said in read() and _commit().
        connection.isolation_level = None
        _use_wal(connection, busy_timeout)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


def _use_wal(connection: sqlite3.Connection, busy_timeout: float) -> None:
    """SQLite's busy timeout does not cover the change to WAL, which processes that open a fresh file race for."""
    end = time.monotonic() + busy_timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if _code(error) not in _HELD or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def _commit(connection: sa.Connection, group: list[Work]) -> None:
    """Runs a group in one transaction. Answers are given only after the commit has returned.

    Raises what made the whole group fail, with nothing of it in the database.
    """
    done: list[tuple[Future[Any], Any]] = []
    try:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        for work, answer in group:
            value = _run_one(connection, work, answer)
            if not answer.done():
                done.append((answer, value))
        connection.exec_driver_sql("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise
    finally:
        # exec_driver_sql autobegins SQLAlchemy's own transaction state; end it without a statement of its own.
        connection.rollback()
    for answer, value in done:
        answer.set_result(value)


def _run_one(connection: sa.Connection, work: Callable[[sa.Connection], T], answer: "Future[T]") -> T | None:
    connection.exec_driver_sql("SAVEPOINT piece")
    try:
        value = work(connection)
    except Exception as error:
        if isinstance(error, sa.exc.DatabaseError) and _code(error.orig) in _FATAL:
            raise
        connection.exec_driver_sql("ROLLBACK TO piece")
        connection.exec_driver_sql("RELEASE piece")
        answer.set_exception(error)
        return None
    connection.exec_driver_sql("RELEASE piece")
    return value


def _roll_back(connection: sa.Connection) -> None:
    try:
        connection.exec_driver_sql("ROLLBACK")
    except sa.exc.OperationalError as error:
        # SQLite rolls back by itself on some errors (disk full); then there is nothing left to undo.
        if "no transaction is active" not in str(error):
            raise


@contextmanager
def _told() -> Iterator[None]:
    """Turns the driver's errors in the block into Macadam's."""
    try:
        yield
    except sa.exc.DatabaseError as error:
        told = _translated(error)
        if told is error:
            raise
        raise told from error


def _code(error: object) -> int:
    """SQLite's primary result code (https://sqlite.org/rescode.html), 0 if the error has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _translated(error: BaseException) -> BaseException:
    code = _code(error.orig) if isinstance(error, sa.exc.DatabaseError) else 0
    if code in _FULL:
        return StorageFull(
            "The database's disk is full or does not take writes.",
            next_step="Free space on the disk of the home directory and run the same call again.",
        )
    if code in _HELD:
        return Busy("Another process holds the database.", next_step="Run the same call again in a moment.")
    if code in _DAMAGED:
        return IntegrityError(
            f"The database is damaged: {error}.", next_step="Stop, keep the file, and restore a backup of the home."
        )
    if code in _SHUT:
        return Temporary(
            f"The database cannot be opened for writing: {error}.", next_step="Look at the home's disk and permissions."
        )
    return error
