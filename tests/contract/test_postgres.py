"""What Postgres alone can do to a caller: cut connections, cut commits, other writers, secrets, other orders of text."""

import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import sqlalchemy as sa
from databases import Server, server, wait_until

from macadam import ports
from macadam.adapters.postgres import Postgres
from macadam.errors import (
    Busy,
    IntegrityError,
    InvalidInput,
    MacadamError,
    OutcomeUnknown,
    SettingInvalid,
    StorageFull,
    Temporary,
    Unavailable,
)
from macadam.settings import Sql as SqlSettings

notes = sa.Table("notes", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("text", sa.String(9)))


@pytest.fixture
def url() -> str:
    return server().database()


@pytest.fixture
def sql(url: str) -> Iterator[Postgres]:
    opened = Postgres(url, SqlSettings(busy_timeout=5))
    opened.write(notes.create)
    yield opened
    opened.close()


def add(number: int, text: str = "") -> sa.Insert:
    return sa.insert(notes).values(id=number, text=text)


def insert(sql: Postgres, number: int) -> None:
    sql.write(lambda c: c.execute(add(number)).rowcount)


def there(sql: Postgres) -> list[int]:
    with sql.read() as connection:
        return list(connection.execute(sa.select(notes.c.id).order_by(notes.c.id)).scalars())


def name(url: str) -> str:
    return url.rpartition("@/")[2].partition("?")[0]


def end_connections(url: str) -> None:
    server().execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name(url)}'")


# --- One writer at a time ------------------------------------------------------------------------------------------


def test_a_writer_that_waited_sees_what_was_committed_meanwhile(url: str, sql: Postgres) -> None:
    """Two processes that each read, add one and write: no count is lost, though nothing in the rows conflicts."""
    other = Postgres(url, SqlSettings())

    def count_up(connection: sa.Connection) -> None:
        highest = connection.execute(sa.select(sa.func.max(notes.c.id))).scalar() or 0
        connection.execute(add(highest + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: (sql, other)[n % 2].write(count_up), range(200)))
    other.close()
    assert there(sql) == list(range(1, 201))


def test_whoever_waits_too_long_for_another_writer_is_told_so(url: str, sql: Postgres) -> None:
    hasty = Postgres(url, SqlSettings(busy_timeout=0.2))
    inside, leave = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(sql.write, lambda _c: (inside.set(), leave.wait(10)))
        inside.wait(10)
        with pytest.raises(Busy, match="held"):
            insert(hasty, 1)
        leave.set()
        slow.result()
    insert(hasty, 2)
    assert there(hasty) == [2]
    hasty.close()


def test_all_connections_in_use_is_said(url: str, sql: Postgres) -> None:
    small = Postgres(url, SqlSettings(busy_timeout=0.2, connections=1))
    with small.read(), pytest.raises(Busy, match="connections"), small.read():
        pass
    assert there(small) == []
    small.close()


def test_a_piece_that_hides_an_error_of_the_database_is_not_called_done(sql: Postgres) -> None:
    def hides(connection: sa.Connection) -> str:
        connection.execute(add(1))
        with suppress(sa.exc.IntegrityError):
            connection.execute(add(1))
        return "done"

    with pytest.raises(Exception, match="aborted"):
        sql.write(hides)
    insert(sql, 2)
    assert there(sql) == [2]


def test_one_statement_may_be_repeated_until_the_driver_prepares_it(sql: Postgres) -> None:
    for number in range(40):
        insert(sql, number)
        with suppress(MacadamError, sa.exc.IntegrityError):
            insert(sql, number)
    assert there(sql) == list(range(40))


# --- Durable, whatever a role or the server says --------------------------------------------------------------------


def test_commits_wait_for_the_disk_also_where_the_database_says_otherwise(url: str) -> None:
    server().execute(f'ALTER DATABASE "{name(url)}" SET synchronous_commit = off')
    server().execute(f"ALTER DATABASE \"{name(url)}\" SET default_transaction_isolation = 'serializable'")
    opened = Postgres(url, SqlSettings())
    seen = opened.write(
        lambda c: [
            c.exec_driver_sql(f"SHOW {what}").scalar_one() for what in ("synchronous_commit", "transaction_isolation")
        ]
    )
    assert seen == ["on", "read committed"]
    opened.close()


# --- Connections that are cut -----------------------------------------------------------------------------------------


def test_idle_connections_that_were_cut_are_replaced_unseen(url: str, sql: Postgres) -> None:
    insert(sql, 1)
    with sql.read(), sql.read(), sql.read():  # several lie in the pool afterwards
        assert there(sql) == [1]
    end_connections(url)
    insert(sql, 2)
    end_connections(url)
    assert there(sql) == [1, 2]


def test_work_that_was_cut_off_is_undone_and_said_to_be(url: str, sql: Postgres) -> None:
    def cut(connection: sa.Connection) -> None:
        connection.execute(add(1))
        end_connections(url)
        connection.execute(add(2))

    with pytest.raises(Unavailable, match="Nothing was changed"):
        sql.write(cut)
    insert(sql, 3)
    assert there(sql) == [3]


def test_a_read_that_was_cut_off_says_so(url: str, sql: Postgres) -> None:
    def read() -> None:
        with sql.read() as connection:
            connection.exec_driver_sql("SELECT 1")
            end_connections(url)
            connection.exec_driver_sql("SELECT 1")

    with pytest.raises(Unavailable, match="does not answer"):
        read()
    assert there(sql) == []


@pytest.fixture
def own() -> Iterator[Server]:
    """A server that a test may kill or set up."""
    made = Server()
    yield made
    made.remove()


def wait_for_a_standby(own: Server, *, waits: bool) -> None:
    """A commit is then on the disk, but its answer waits for a standby that there is not."""
    own.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{'nobody' if waits else ''}'")
    own.execute("SELECT pg_reload_conf()")
    wait_until(lambda: own.execute("SHOW synchronous_standby_names") == [("nobody" if waits else "",)])


def in_commit(own: Server) -> bool:
    return bool(own.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))


def test_a_commit_whose_answer_was_cut_off_is_found_to_be_there_or_not_to_be_known(own: Server) -> None:
    url = own.database()
    sql = Postgres(url, SqlSettings(busy_timeout=10))
    hasty = Postgres(url, SqlSettings(busy_timeout=0.5))
    sql.write(notes.create)
    insert(hasty, 0)
    wait_for_a_standby(own, waits=True)
    with ThreadPoolExecutor(2) as pool:
        # 1. the connection is cut after the commit: asked afterwards, the server knows that it is there.
        first = pool.submit(insert, sql, 1)
        wait_until(lambda: in_commit(own))
        own.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        first.result(20)
        # 2. the whole server is killed and does not come back in time: nobody can say.
        second = pool.submit(insert, hasty, 2)
        wait_until(lambda: in_commit(own))
        own.kill()
        with pytest.raises(OutcomeUnknown, match="may be there or not") as unknown:
            second.result(20)
        assert "Idempotency-Key" in unknown.value.next_step
        own.start()
        wait_for_a_standby(own, waits=False)
        # 3. and both adapters go on as if nothing had been.
        insert(sql, 3)
        insert(hasty, 4)
    assert there(sql) == [0, 1, 2, 3, 4]
    sql.close()
    hasty.close()


def test_a_commit_that_was_cut_off_before_it_happened_is_known_not_to_be_there(url: str, sql: Postgres) -> None:
    sql.write(
        lambda c: c.exec_driver_sql(
            """CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(30); RETURN NULL; END';
               CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED
               FOR EACH ROW EXECUTE FUNCTION slow()"""
        )
    )
    with ThreadPoolExecutor(1) as pool:
        cut = pool.submit(insert, sql, 1)
        asleep = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{name(url)}' AND wait_event = 'PgSleep'"
        wait_until(lambda: server().execute(asleep))
        end_connections(url)
        with pytest.raises(Unavailable, match="nothing was changed"):
            cut.result(20)
    assert there(sql) == []


def test_a_server_that_is_killed_while_many_write_loses_and_doubles_nothing(own: Server) -> None:
    sql = Postgres(own.database(), SqlSettings(busy_timeout=15))
    sql.write(notes.create)
    said: dict[int, str] = {}
    done = threading.Event()

    def write(first: int) -> None:
        number = first
        while not done.is_set():
            number += 10
            try:
                insert(sql, number)
                said[number] = "there"
            except OutcomeUnknown:
                said[number] = "unknown"
            except Temporary:
                said[number] = "not there"
                time.sleep(0.02)

    with ThreadPoolExecutor(8) as pool:
        writing = [pool.submit(write, first) for first in range(8)]
        for _ in range(2):
            before = len(said)
            wait_until(lambda before=before: len(said) > before + 50)
            own.kill()
            own.start()
        before = len(said)
        wait_until(lambda: len(said) > before + 50)
        done.set()
        for one in writing:
            one.result(20)
    found = set(there(sql))
    assert {number for number, what in said.items() if what == "there"} <= found
    assert not {number for number, what in said.items() if what == "not there"} & found
    assert found <= said.keys()
    sql.close()


# --- Errors in Macadam's words, without secrets -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("53100", StorageFull),
        ("53200", Temporary),
        ("57014", Temporary),
        ("40P01", Busy),
        ("40001", Busy),
        ("25006", Temporary),
        ("XX001", IntegrityError),
        ("42501", SettingInvalid),
        ("22001", InvalidInput),
    ],
)
def test_what_the_server_says_is_told_in_macadams_errors(sql: Postgres, state: str, kind: type[MacadamError]) -> None:
    raising = f"DO $$ BEGIN RAISE EXCEPTION 'so it is' USING ERRCODE = '{state}'; END $$"
    with pytest.raises(kind, match="so it is"):
        sql.write(lambda c: c.exec_driver_sql(raising))
    with pytest.raises(kind, match="so it is"), sql.read() as connection:
        connection.exec_driver_sql(raising)
    insert(sql, 1)
    assert there(sql) == [1]


@pytest.mark.parametrize("text", ["longer than nine", "\x00"])
def test_text_that_does_not_fit_is_the_callers_mistake_and_undoes_only_itself(sql: Postgres, text: str) -> None:
    with pytest.raises(InvalidInput, match="does not fit"):
        sql.write(lambda c: c.execute(add(1, text)))
    assert there(sql) == []


def test_a_password_stands_in_no_error_on_no_level() -> None:
    secret = "s3cr/t%pass"
    for url in (
        "postgresql://bob:s3cr%2Ft%25pass@127.0.0.1:1/m",
        "postgresql://bob@127.0.0.1:1/m?password=s3cr%2Ft%25pass",
        "postgresql://bob:s3cr%2Ft%25pass@127.0.0.1:notaport/m",
        "mysql://bob:s3cr%2Ft%25pass@127.0.0.1/m",
    ):
        with pytest.raises(MacadamError) as told:
            Postgres(url, SqlSettings(busy_timeout=0.1)).write(lambda c: c.exec_driver_sql("SELECT 1"))
        words = "".join(traceback.format_exception(told.value)) + repr(told.value) + str(told.value.details)
        assert secret not in words
        assert "s3cr" not in words, words
        assert told.value.next_step


def test_values_of_rows_stand_in_no_error(sql: Postgres) -> None:
    insert(sql, 1)
    with pytest.raises(sa.exc.IntegrityError) as told:
        sql.write(lambda c: c.execute(add(1, "personal")))
    assert "personal" not in str(told.value)


@pytest.mark.parametrize("path", ["no_such_database", ""])
def test_a_database_that_is_not_there_is_a_wrong_setting(path: str) -> None:
    with pytest.raises(SettingInvalid):
        Postgres(server().url(path), SqlSettings()).migrate()


def test_an_unknown_user_is_a_wrong_setting() -> None:
    with pytest.raises(SettingInvalid, match="nobody"):
        Postgres(server().url().replace("postgres@", "nobody@"), SqlSettings()).migrate()


def test_a_database_of_another_encoding_is_refused() -> None:
    server().execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    with pytest.raises(SettingInvalid, match="LATIN1"):
        Postgres(server().url("latin"), SqlSettings()).migrate()


def test_the_adapter_is_found_by_its_name() -> None:
    assert ports.load("postgres") is Postgres


# --- The order of text ------------------------------------------------------------------------------------------------


def test_text_is_ordered_by_bytes_and_the_tables_of_others_stay(url: str) -> None:
    server().execute("CREATE TABLE theirs (name text)", name(url))
    sql = Postgres(url, SqlSettings())
    sql.migrate()
    words = ["Zebra", "a-b", "aa", "ab", "a_b", "Ärger", "é"]
    for word in words:
        row = sa.text("INSERT INTO iceberg_tables VALUES ('c', 'n', :word, '', '', '')").bindparams(word=word)
        sql.write(lambda c, row=row: c.execute(row))
    with sql.read() as connection:
        ordered = (
            connection.exec_driver_sql("SELECT table_name FROM iceberg_tables ORDER BY table_name").scalars().all()
        )
    assert ordered == sorted(words, key=str.encode)
    sql.migrate()
    # This server knows no order of a language, so the columns are asked: the database's own is C.UTF-8.
    left = """SELECT c.relname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
              JOIN pg_collation o ON o.oid = a.attcollation
              WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND o.collname <> 'C'"""
    assert server().execute(left, name(url)) == [("theirs",)]
    sql.close()
