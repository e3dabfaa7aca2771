"""SQLite as the Sql port: WAL, synchronous=FULL, and one writer thread that commits in groups.

Callers from any thread hand their work to the writer. It opens one IMMEDIATE transaction, runs each piece in
a savepoint, commits once and only then answers them: many callers share one fsync, and an error undoes
only its own piece. Several processes may open the same file; SQLite's lock orders their groups.
"""

import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from macadam.errors import Busy, MacadamError, StorageFull, Temporary
from macadam.migrations import upgrade
from macadam.settings import Sql as SqlSettings

T = TypeVar("T")
_Work = tuple[Callable[[sa.Connection], Any], "Future[Any]"]


class Sqlite:
    """One SQLite file. path: created with its parent's permissions; its directory must exist."""

    def __init__(self, path: Path, settings: SqlSettings) -> None:
        self._path = path
        self._limit = settings.group_limit
        self._engine = _engine(path, settings.busy_timeout)
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._closed = threading.Lock()
        self._writer = threading.Thread(target=self._write_groups, name="sqlite-writer", daemon=True)
        self._writer.start()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            try:
                yield connection
            finally:
                connection.exec_driver_sql("ROLLBACK")

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        if threading.current_thread() is self._writer:
            raise RuntimeError("write() was called from inside a write: use the transaction's connection")
        answer: Future[T] = Future()
        self._queue.put((work, answer))
        return answer.result()

    def migrate(self) -> None:
        self.write(upgrade)

    def close(self) -> None:
        """Waits for the work handed in so far. Closing twice does nothing."""
        if self._closed.acquire(blocking=False):
            self._queue.put(None)
            self._writer.join()
            self._engine.dispose()

    def _write_groups(self) -> None:
        with self._engine.connect() as connection:
            while (first := self._queue.get()) is not None:
                group, last = self._gather(first)
                _commit(connection, group)
                if last:
                    return

    def _gather(self, first: _Work) -> tuple[list[_Work], bool]:
        group = [first]
        while len(group) < self._limit:
            try:
                piece = self._queue.get_nowait()
            except queue.Empty:
                break
            if piece is None:
                return group, True
            group.append(piece)
        return group, False


def _engine(path: Path, busy_timeout: float) -> sa.Engine:
    engine = sa.create_engine(
        f"sqlite:///{path}",
        connect_args={"timeout": busy_timeout, "check_same_thread": False},
        poolclass=sa.pool.QueuePool,
        pool_size=8,
        max_overflow=64,
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        # The driver must not open transactions by itself: BEGIN is said in read() and _commit().
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


def _commit(connection: sa.Connection, group: list[_Work]) -> None:
    """Runs a group in one transaction. Answers are given only after the commit has returned."""
    done: list[tuple[Future[Any], Any]] = []
    try:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        for work, answer in group:
            value = _run_one(connection, work, answer)
            if not answer.done():
                done.append((answer, value))
        connection.exec_driver_sql("COMMIT")
    except BaseException as error:  # the writer thread must outlive any error: every caller is told of it
        _roll_back(connection)
        for _, answer in group:
            if not answer.done():
                answer.set_exception(_translated(error))
        return
    finally:
        # exec_driver_sql autobegins SQLAlchemy's own transaction state; end it without a statement of its own.
        connection.rollback()
    for answer, value in done:
        answer.set_result(value)


def _run_one(connection: sa.Connection, work: Callable[[sa.Connection], T], answer: "Future[T]") -> T | None:
    connection.exec_driver_sql("SAVEPOINT piece")
    try:
        value = work(connection)
    except MacadamError as error:
        connection.exec_driver_sql("ROLLBACK TO piece")
        connection.exec_driver_sql("RELEASE piece")
        answer.set_exception(error)
        return None
    except sa.exc.OperationalError:
        raise  # disk full, locked, damaged: the whole group fails
    except Exception as error:  # noqa: BLE001 - handed to the caller whose work raised it
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


def _translated(error: BaseException) -> BaseException:
    text = str(error)
    if isinstance(error, sa.exc.OperationalError):
        if "disk is full" in text or "disk I/O error" in text:
            return StorageFull(
                "The database's disk is full or does not take writes.",
                next_step="Free space on the disk of the home directory and run the same call again.",
            )
        if "locked" in text or "busy" in text:
            return Busy("Another process holds the database.", next_step="Run the same call again in a moment.")
        return Temporary(f"The database refused the work: {text}", next_step="Look at the home's disk and permissions.")
    return error
