"""The behaviour of every Sql adapter; what only SQLite promises says so in its name."""

import contextlib
import multiprocessing
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from databases import KINDS, server

from macadam.adapters.postgres import Postgres
from macadam.adapters.sqlite import Sqlite
from macadam.catalog import iceberg_tables
from macadam.errors import Busy, Conflict, IntegrityError, StorageFull, Temporary, Unavailable
from macadam.migrations import HEAD
from macadam.ports import Sql
from macadam.settings import Sql as SqlSettings

notes = sa.Table("notes", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("text", sa.Text))


Open = Callable[..., Sql]


@pytest.fixture(params=KINDS)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the test's own database, again and again if it likes. Keywords are settings."""
    url = server().database() if request.param == "postgres" else ""
    made: list[Sql] = []

    def open_it(**settings: Any) -> Sql:
        chosen = SqlSettings(**settings)
        made.append(Postgres(url, chosen) if url else Sqlite(tmp_path / "m.sqlite", chosen))
        return made[-1]

    yield open_it
    for sql in made:
        sql.close()


@pytest.fixture
def sql(opened: Open) -> Sql:
    fresh = opened()
    fresh.write(notes.create)
    return fresh


def add(number: int, text: str = "") -> sa.Insert:
    return sa.insert(notes).values(id=number, text=text)


def count(sql: Sql) -> int:
    with sql.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(notes)).scalar_one()


def test_a_sqlite_file_is_its_owners_alone_whatever_its_folder_allows(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    opened = Sqlite(tmp_path / "own.sqlite", SqlSettings())
    opened.write(notes.create)
    opened.write(lambda connection: connection.execute(add(1)))
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.glob("own.sqlite*")}
    opened.close()
    assert set(modes.values()) == {"0o600"}, modes


def test_a_write_returns_its_value_once_others_can_read_it(sql: Sql) -> None:
    assert sql.write(lambda c: c.execute(add(1)).rowcount) == 1
    assert count(sql) == 1


def test_an_error_undoes_its_own_work_and_no_other(sql: Sql) -> None:
    gate = threading.Event()

    def bad(number: int) -> None:
        def work(connection: sa.Connection) -> None:
            connection.execute(add(number))
            raise Conflict("taken")

        sql.write(work)

    with ThreadPoolExecutor(12) as pool:
        blocker = pool.submit(sql.write, lambda _c: gate.wait(10))
        good = [pool.submit(sql.write, lambda c, n=n: c.execute(add(n))) for n in range(5)]
        wrong = [pool.submit(bad, 100 + n) for n in range(3)]
        clash = pool.submit(sql.write, lambda c: (c.execute(add(200)), c.execute(add(200))))
        typo = pool.submit(sql.write, lambda c: c.exec_driver_sql("SELECT * FROM no_such_table"))
        time.sleep(0.1)
        gate.set()
        blocker.result()
        assert [f.result().rowcount for f in good] == [1] * 5
        assert all(isinstance(f.exception(), Conflict) for f in wrong)
        assert isinstance(clash.exception(), sa.exc.IntegrityError)
        assert isinstance(typo.exception(), (sa.exc.OperationalError, sa.exc.ProgrammingError))
    assert count(sql) == 5


def test_a_reader_sees_one_snapshot_for_its_whole_life(sql: Sql) -> None:
    with sql.read() as connection:
        before = connection.execute(sa.select(sa.func.count()).select_from(notes)).scalar_one()
        sql.write(lambda c: c.execute(add(1)))
        assert connection.execute(sa.select(sa.func.count()).select_from(notes)).scalar_one() == before
    assert count(sql) == before + 1


def test_a_reader_cannot_leave_a_change_behind(sql: Sql) -> None:
    with contextlib.suppress(Temporary), sql.read() as connection:  # refused, or undone
        connection.execute(add(1))
    assert count(sql) == 0


def test_writing_inside_a_write_is_a_programming_error_and_not_a_deadlock(sql: Sql) -> None:
    with pytest.raises(RuntimeError, match="inside a write"):
        sql.write(lambda _c: sql.write(lambda c: c.execute(add(1))))


def test_concurrent_callers_share_commits_and_lose_nothing(sql: Sql) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: sql.write(lambda c: c.execute(add(n))), range(400)))
    assert count(sql) == 400


def test_a_closed_database_refuses_instead_of_waiting_for_ever(sql: Sql) -> None:
    sql.close()
    sql.close()
    with pytest.raises(Unavailable, match="closed"):
        sql.write(lambda c: c.execute(add(1)))


def test_closing_finishes_what_was_handed_in(sql: Sql, opened: Open) -> None:
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(sql.write, lambda c, n=n: c.execute(add(n))) for n in range(50)]
        time.sleep(0.01)
        sql.close()
    done = [f for f in waiting if f.exception() is None]
    assert count(opened()) == len(done)


def test_migrating_twice_takes_the_schema_to_this_release_once(opened: Open) -> None:
    sql = opened()
    sql.migrate()
    sql.migrate()
    with sql.read() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").all() == [(HEAD,)]


def test_sqlite_says_that_a_home_cannot_be_written_and_does_not_wait(tmp_path: Path) -> None:
    sql = Sqlite(tmp_path / "no" / "such" / "m.sqlite", SqlSettings())
    with pytest.raises(Temporary, match="cannot be opened"):
        sql.write(notes.create)
    (tmp_path / "no" / "such").mkdir(parents=True)
    sql.write(notes.create)  # and once it can, it is
    sql.close()


def test_sqlite_full_disk_fails_the_group_and_leaves_the_state_as_before(tmp_path: Path) -> None:
    sql = Sqlite(tmp_path / "m.sqlite", SqlSettings())
    sql.write(notes.create)
    sql.write(lambda c: c.execute(add(1)))
    pages = sql.write(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar_one())
    sql.write(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages + 1}").scalar_one())
    with pytest.raises(StorageFull, match="disk is full"):
        sql.write(lambda c: [c.execute(add(n, "x" * 3000)) for n in range(2, 50)])
    assert count(sql) == 1
    sql.write(lambda c: c.exec_driver_sql("PRAGMA max_page_count=100000").scalar_one())
    sql.write(lambda c: c.execute(add(2)))
    assert count(sql) == 2
    sql.close()


def test_sqlite_says_busy_when_another_process_keeps_the_lock(tmp_path: Path) -> None:
    sql = Sqlite(tmp_path / "m.sqlite", SqlSettings(busy_timeout=0.1))
    sql.write(notes.create)
    other = sqlite3.connect(tmp_path / "m.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Busy, match="Another process"):
        sql.write(lambda c: c.execute(add(1)))
    other.execute("ROLLBACK")
    other.close()
    sql.write(lambda c: c.execute(add(1)))
    assert count(sql) == 1
    sql.close()


def test_sqlite_names_damage_as_damage(tmp_path: Path) -> None:
    (tmp_path / "m.sqlite").write_bytes(b"this is no database" * 500)
    sql = Sqlite(tmp_path / "m.sqlite", SqlSettings())
    with pytest.raises(IntegrityError, match="damaged"):
        sql.write(notes.create)
    with pytest.raises(IntegrityError, match="damaged"), sql.read():
        pass
    sql.close()


def test_sqlite_commits_reach_the_disk_before_the_answer(tmp_path: Path) -> None:
    sql = Sqlite(tmp_path / "m.sqlite", SqlSettings())
    with sql.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def _open_and_add(where: str, first: int) -> None:
    sql: Sql = Postgres(where, SqlSettings()) if where.startswith("postgresql:") else Sqlite(Path(where), SqlSettings())
    sql.migrate()
    for number in range(first, first + 20):
        row = sa.insert(iceberg_tables).values(catalog_name="c", table_namespace="n", table_name=str(number))
        sql.write(lambda c, row=row: c.execute(row).rowcount)
    sql.close()


@pytest.mark.parametrize("kind", KINDS)
def test_processes_that_open_a_fresh_database_at_once_all_succeed(kind: str, tmp_path: Path) -> None:
    where = server().database() if kind == "postgres" else str(tmp_path / "m.sqlite")
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_open_and_add, args=(where, n * 100)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [p.exitcode for p in processes] == [0, 0, 0]
    sql: Sql = Postgres(where, SqlSettings()) if kind == "postgres" else Sqlite(Path(where), SqlSettings())
    with sql.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(iceberg_tables)).scalar() == 60
    sql.close()
