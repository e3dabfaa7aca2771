"""Postgres as the Sql port: one writer at a time over all processes, group commit, readers on a snapshot of their own.

Handlers are written for one writer at a time. Here a transaction-level advisory lock gives them that across processes:
each group takes it first, so groups are serial, in the order of their commits, and no handler ever runs twice.
The reasons, and the figures against SERIALIZABLE with retries, stand in docs/explanation/decisions.md.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import psycopg
import sqlalchemy as sa

from macadam.adapters.group_writer import GroupWriter, Work
from macadam.errors import (
    Busy,
    IntegrityError,
    InvalidInput,
    OutcomeUnknown,
    SettingInvalid,
    StorageFull,
    Temporary,
    Unavailable,
)
from macadam.migrations import is_current, upgrade
from macadam.settings import Sql as SqlSettings

T = TypeVar("T")
WRITER_LOCK = 0x6D61_6361_6461_6D01
"""The advisory lock that a writer holds from its first statement to its commit: 'macadam' and a number."""
OLDEST = 13
"""pg_current_xact_id and pg_xact_status, which tell what became of a commit, came with this version."""
_MOST_PIECES = 60
"""Savepoints in a group. From 64 on Postgres keeps them on disk, where each reader's snapshot has to look them up."""
_RETRY = 0.1  # s between two questions what became of a commit

# READ COMMITTED on purpose: each statement sees all that was committed before it, and as nobody else writes while the lock is
# held, that is one state. REPEATABLE READ would take its snapshot with the statement that waits for the lock, and so would not see
# what was committed meanwhile.
# Several statements at a time: each journey to the server costs more than what it does there.
_BEGIN = f"""BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
             SELECT pg_advisory_xact_lock({WRITER_LOCK}), pg_current_xact_id()::text;
             SAVEPOINT piece"""
_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_NEXT = "RELEASE SAVEPOINT piece; SAVEPOINT piece"
_UNDO = "ROLLBACK TO SAVEPOINT piece"
# A role or a server may say `off` or `local`; `remote_write` and `remote_apply` promise more than `on` and stay.
_DURABLE = """SELECT set_config('synchronous_commit', 'on', false)
              WHERE current_setting('synchronous_commit') IN ('off', 'local')"""
# The log's timeline changes when a standby takes over, or a backup is put back: transaction numbers before and after do not compare.
_SERVER = """SELECT CASE WHEN pg_is_in_recovery() THEN '' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END,
                    current_setting('server_encoding'), current_setting('fsync'), current_setting('server_version_num')"""

_log = logging.getLogger(__name__)


class _Mark(NamedTuple):
    """What tells a transaction's outcome after its connection is gone."""

    timeline: str
    xid: str


class Postgres:
    """One database of a Postgres server, from `OLDEST` on.

    url: postgresql://USER@HOST/DATABASE. A password or TLS comes in the URL or libpq's own variables and files
    (PGPASSWORD, PGPASSFILE, PGSSLMODE); it stands in no error and no log.
    Raises SettingInvalid for a URL that is none. The server is looked for when it is first needed.
    """

    def __init__(self, url: str, settings: SqlSettings) -> None:
        self._patience = settings.busy_timeout
        self._url = _parsed(url)
        self._engine = _engine(self._url, settings)
        limit = max(1, min(settings.group_limit, _MOST_PIECES))
        self._writer = GroupWriter("postgres-writer", limit, self._commit, self._translated)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with self._told(), self._reading() as connection:
            try:
                yield connection
            finally:
                _roll_back(connection)

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        return self._writer.write(work)

    def migrate(self) -> None:
        self.write(_migrate)

    def close(self) -> None:
        """Waits for the work handed in so far. Closing twice does nothing."""
        if self._writer.close():
            self._engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """A connection in a read transaction. One that died in the pool is replaced once: nothing was read on it yet."""
        connection = self._engine.connect()
        try:
            try:
                connection.exec_driver_sql(_READ)
            except sa.exc.DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                connection.close()
                connection = self._engine.connect()
                connection.exec_driver_sql(_READ)
            yield connection
        finally:
            connection.close()

    def _commit(self, group: list[Work]) -> None:
        """Runs a group in one transaction; answers are given only once it is known to be durable."""
        with self._beginning() as (connection, mark):
            try:
                done = _run(connection, group, self._translated)
            except BaseException:
                _roll_back(connection)
                raise
            try:
                _end(connection)
            except sa.exc.DBAPIError as error:
                if not error.connection_invalidated:
                    _roll_back(connection)
                    raise
                self._find_out(mark, error)  # returns if it was committed after all
        for answer, value in done:
            answer.set_result(value)

    @contextmanager
    def _beginning(self) -> Iterator[tuple[sa.Connection, _Mark]]:
        """A connection that holds the writers' lock. One that died in the pool is replaced once: no work ran on it."""
        connection = self._engine.connect()
        try:
            try:
                mark = _begin(connection)
            except psycopg.Error:
                lost = _lost(connection)
                _roll_back(connection)
                if not lost:
                    raise
                connection.close()
                self._engine.dispose()  # the others that lie in the pool died with it
                connection = self._engine.connect()
                mark = _begin(connection)
            yield connection, mark
        finally:
            connection.close()

    def _find_out(self, mark: _Mark, cut: sa.exc.DBAPIError) -> None:
        """What became of a commit whose answer was cut off. Returns if it is there.

        Raises Unavailable if it is not, OutcomeUnknown if the server cannot say so in time.
        """
        end = time.monotonic() + self._patience
        while True:
            status = self._status(mark)
            if status == "committed":
                return
            if status == "aborted":
                raise Unavailable(
                    "The connection to Postgres broke before the commit: nothing was changed.",
                    next_step="Run the same call again.",
                ) from cut
            if status == "lost" or time.monotonic() > end:
                raise OutcomeUnknown(
                    "The connection to Postgres broke while it committed: the change may be there or not.",
                    next_step="Run the same call again with the same Idempotency-Key, or look before you repeat it.",
                ) from cut
            time.sleep(_RETRY)

    def _status(self, mark: _Mark) -> str:
        """'committed', 'aborted', 'lost' if this server cannot know, '' if it may say later."""
        try:
            with self._engine.connect() as connection:
                if _timeline(connection) != mark.timeline:
                    # A standby took over and may lack the commit; while the old server starts, it has no timeline at all.
                    return "lost" if _timeline(connection) else ""
                # https://www.postgresql.org/docs/current/functions-info.html: made for exactly this question.
                found = connection.exec_driver_sql("SELECT pg_xact_status(%(xid)s::xid8)", {"xid": mark.xid}).scalar()
        except sa.exc.DBAPIError as error:
            _log.warning("postgres: what became of a commit is not known yet: %s", self._masked(str(error.orig)))
            return ""
        if found == "in progress":
            return ""
        return str(found) if found else "lost"

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns the driver's errors in the block into Macadam's."""
        try:
            yield
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            told = self._translated(error)
            if told is error:
                raise
            raise told from error

    def _translated(self, error: BaseException) -> BaseException:
        if isinstance(error, sa.exc.TimeoutError):  # the pool's: all connections are in use
            return Busy(
                "All of this process's connections to Postgres are in use.",
                next_step="Run the same call again in a moment, or raise MACADAM_SQL_CONNECTIONS.",
            )
        driver = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        if not isinstance(driver, psycopg.Error):
            return error
        found = _by_state(driver)
        return error if found is None else found(self._masked(str(driver).strip()))

    def _masked(self, text: str) -> str:
        """The server's and the driver's words with whatever was secret in the URL taken out."""
        for secret in _secrets(self._url):
            text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
        return text


def _parsed(url: str) -> sa.URL:
    """Raises SettingInvalid, which does not repeat the URL: it may hold a password."""
    scheme, _, rest = url.partition("://")
    try:
        parsed = sa.make_url(f"postgresql+psycopg://{rest}")
        whole = bool(rest) and bool(parsed.database)
    except (sa.exc.ArgumentError, ValueError):
        whole = False
    if scheme not in {"postgresql", "postgres"} or not whole:
        raise SettingInvalid(
            "MACADAM_DATABASE is no URL of a Postgres database.",
            next_step="Write it as postgresql://USER@HOST:5432/DATABASE, or unset it for SQLite under the home.",
        )
    return parsed


def _secrets(url: sa.URL) -> list[str]:
    given = [url.password, *(url.query.get(name) for name in ("password", "sslpassword"))]
    return [str(secret) for secret in given if secret]


def _engine(url: sa.URL, settings: SqlSettings) -> sa.Engine:
    kept = min(5, settings.connections)
    engine = sa.create_engine(
        url,
        # BEGIN is said in read() and in a group's own transaction, as the isolation differs.
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,  # what a caller sent belongs in no error
        execution_options={"preserve_rowcount": True},  # also of an INSERT, as SQLite's driver does
        pool_size=kept,
        max_overflow=settings.connections - kept,
        pool_timeout=settings.busy_timeout,
        connect_args={name: value for name, value in _session(settings).items() if name not in url.query},
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: "psycopg.Connection[Any]", record: sa.pool.ConnectionPoolEntry) -> None:
        row = connection.execute(_SERVER).fetchone()
        assert row is not None  # noqa: S101 - a SELECT without FROM has one row
        timeline, encoding, fsync, version = row
        _refuse_unfit(encoding, int(version) // 10_000)
        if fsync != "on":
            _log.warning(
                "postgres: the server runs with fsync=%s: a power cut can lose what it called committed", fsync
            )
        connection.execute(_DURABLE)
        record.info["timeline"] = timeline

    return engine


def _session(settings: SqlSettings) -> dict[str, object]:
    """What libpq is told for each connection. A dead server is noticed after about 30 s instead of TCP's two hours."""
    return {
        "application_name": "macadam",
        "connect_timeout": max(2, int(settings.busy_timeout)),  # s
        "options": f"-c lock_timeout={max(1, int(settings.busy_timeout * 1000))}",  # ms
        "keepalives_idle": 10,  # s
        "keepalives_interval": 5,  # s
        "keepalives_count": 4,
    }


def _refuse_unfit(encoding: str, version: int) -> None:
    if version < OLDEST:
        raise SettingInvalid(
            f"The server is Postgres {version}, Macadam needs {OLDEST} or later.", next_step="Upgrade the server."
        )
    if encoding != "UTF8":
        raise SettingInvalid(
            f"The database's encoding is {encoding}, Macadam needs UTF8.",
            next_step="Create one: createdb --template=template0 --encoding=UTF8 macadam",
        )


def _migrate(connection: sa.Connection) -> None:
    if is_current(connection):
        return
    before = set(sa.inspect(connection).get_table_names())
    upgrade(connection)
    _make_text_plain(connection, others=before)


# Text columns of the schema's tables, and whether they were made what Macadam makes of them.
_TEXT = """SELECT c.relname, a.attname, o.collname = 'C' AND a.atttypid = 'text'::regtype
           FROM pg_attribute a
           JOIN pg_class c ON c.oid = a.attrelid AND c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace
           JOIN pg_collation o ON o.oid = a.attcollation
           WHERE a.attnum > 0 AND NOT a.attisdropped AND a.atttypid IN ('text'::regtype, 'varchar'::regtype)
           ORDER BY 1, a.attnum"""


def _make_text_plain(connection: sa.Connection, *, others: set[str]) -> None:
    """Makes the text columns of Macadam's tables what SQLite's are: of any length, and ordered by their bytes.

    Lists so come out the same on both, an upgrade of the system's language tables cannot break an index, and lengths are
    what the code says they are. others: tables that were there before; of them only those are ours that have such a
    column already.
    """
    found = connection.exec_driver_sql(_TEXT).all()
    ours = {table for table, _, plain in found if plain or table not in others}
    quoted = connection.dialect.identifier_preparer.quote
    for table in sorted(ours):
        changes = [
            f'ALTER COLUMN {quoted(column)} TYPE text COLLATE "C"'
            for of, column, plain in found
            if of == table and not plain
        ]
        if changes:
            connection.exec_driver_sql(f"ALTER TABLE {quoted(table)} {', '.join(changes)}")


def _timeline(connection: sa.Connection) -> str:
    return str(connection.exec_driver_sql(_SERVER).one()[0])


def _begin(connection: sa.Connection) -> _Mark:
    """Waits for the writers' lock. It is let go by Postgres itself, after the commit can be seen, or with the connection."""
    cursor = connection.connection.cursor()
    cursor.execute(_BEGIN)
    cursor.nextset()
    row = cursor.fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has one row
    return _Mark(str(connection.info.get("timeline", "")), str(row[1]))


def _run(
    connection: sa.Connection, group: list[Work], translated: Callable[[BaseException], BaseException]
) -> "list[tuple[Future[Any], Any]]":
    """The futures to answer after the commit. Raises what no piece can be saved from: a lost connection."""
    done: list[tuple[Future[Any], Any]] = []
    say: Callable[[str], object] = connection.connection.cursor().execute  # half the time of SQLAlchemy's way
    for work, answer in group:
        try:
            value = work(connection)
            # A piece that swallowed an error of the database is refused here: its savepoint cannot be released.
            say(_NEXT)
        except Exception as error:
            if _lost(connection):
                raise
            say(_UNDO)
            answer.set_exception(translated(error))
        else:
            done.append((answer, value))
    return done


def _end(connection: sa.Connection) -> None:
    result = connection.exec_driver_sql("COMMIT")
    # COMMIT of a transaction that had failed is no error to Postgres: it answers ROLLBACK.
    said = getattr(result.cursor, "statusmessage", "COMMIT")
    if said != "COMMIT":
        raise RuntimeError(f"Postgres answered {said} to COMMIT")


def _lost(connection: sa.Connection) -> bool:
    return connection.invalidated or bool(getattr(connection.connection.dbapi_connection, "broken", True))


def _roll_back(connection: sa.Connection) -> None:
    """Ends the transaction; a connection that is gone has ended it, and leaves the pool."""
    if _lost(connection):
        connection.invalidate()
        return
    with suppress(sa.exc.DBAPIError):
        connection.exec_driver_sql("ROLLBACK")


def _by_state(error: psycopg.Error) -> "Callable[[str], BaseException] | None":
    """What makes Macadam's error of Postgres's, by SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html).

    None for a violated constraint or a wrong statement, which stay what they are.
    """
    state = error.sqlstate or ""
    if not state and isinstance(error, psycopg.DataError):
        return _unfitting  # the driver's own: NUL in a text
    if not state and isinstance(error, psycopg.OperationalError):
        # The driver's own: no connection, or none any more. While one is made, the server's words are all that there is.
        return _refused if any(words in str(error) for words in _REFUSALS) else _gone
    return _BY_STATE.get(state) or _BY_CLASS.get(state[:2])


def _gone(said: str) -> Unavailable:
    return Unavailable(
        f"Postgres does not answer: {said}.",
        next_step="Nothing was changed by this call. Look whether the server runs, then run the same call again.",
    )


def _full(said: str) -> StorageFull:
    return StorageFull(
        f"Postgres cannot write: {said}.", next_step="Free space on the server's disk and run the same call again."
    )


def _held(said: str) -> Busy:
    return Busy(f"The database is held: {said}.", next_step="Run the same call again in a moment.")


def _crowded(said: str) -> Temporary:
    return Temporary(
        f"Postgres has no room for this call: {said}.",
        next_step="Run it again in a moment; max_connections, memory and timeouts are the server's settings.",
    )


def _shut(said: str) -> Temporary:
    return Temporary(
        f"Postgres takes no writes: {said}.", next_step="Point MACADAM_DATABASE at the primary server, not a standby."
    )


def _unfitting(said: str) -> InvalidInput:
    return InvalidInput(
        f"A value does not fit into the database: {said}.", next_step="Shorten it, or take out what is no text."
    )


def _refused(said: str) -> SettingInvalid:
    return SettingInvalid(
        f"Postgres refuses MACADAM_DATABASE: {said}.",
        next_step="Check the user, its password (PGPASSWORD, PGPASSFILE), its rights, and that the database exists (createdb).",
    )


def _damaged(said: str) -> IntegrityError:
    return IntegrityError(
        f"The database is damaged: {said}.", next_step="Stop, keep the server's files, and restore a backup."
    )


_REFUSALS = (
    "authentication failed",
    "does not exist",  # the database, the role
    "no pg_hba.conf entry",
    "no password supplied",
    "permission denied for database",
)
_BY_STATE: dict[str, Callable[[str], BaseException]] = {
    "53100": _full,  # disk_full
    "58030": _full,  # io_error
    "55P03": _held,  # lock_not_available
    "40001": _held,  # serialization_failure
    "40P01": _held,  # deadlock_detected
    "57014": _crowded,  # query_canceled: statement_timeout, or a person
    "25006": _shut,  # read_only_sql_transaction
    "54000": _unfitting,  # program_limit_exceeded: an index entry that is too long
    "42501": _refused,  # insufficient_privilege
    "3D000": _refused,  # invalid_catalog_name
    "XX001": _damaged,  # data_corrupted
    "XX002": _damaged,  # index_corrupted
}
_BY_CLASS: dict[str, Callable[[str], BaseException]] = {
    "08": _gone,  # connection exception
    "22": _unfitting,  # data exception
    "28": _refused,  # invalid authorization
    "53": _crowded,  # insufficient resources
    "57": _gone,  # operator intervention: shutdown, crash, starting up
}
