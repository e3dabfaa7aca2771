"""An id is looked for only where it can be, however many segments overlap, and the database looks there by key."""

import importlib
from pathlib import Path

import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from macadam.adapters.sqlite import Sqlite
from macadam.journal import spans
from macadam.journal.schema import segments
from macadam.journal.schema import spans as table
from macadam.journal.service import holding
from macadam.settings import Settings
from macadam.values import utc_now

times = st.integers(0, 16**8 - 1)


def identity(head: int, rest: int = 0) -> str:
    digits = f"{head:08x}{rest:024x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


@given(one=times, other=times, asked=times)
def test_a_segment_stands_where_its_ids_are_looked_for_and_nowhere_else(one: int, other: int, asked: int) -> None:
    first, last = sorted((one, other))
    cover = spans.cover(identity(first), identity(last, 5))
    found = set(spans.prefixes(identity(asked))) & set(cover)
    assert len(found) == (first <= asked <= last)
    assert len(cover) <= 2 * 15 * spans.DIGITS


@given(start=times, seconds=st.integers(0, 60))
def test_a_segment_of_a_minute_stands_under_one_or_two_prefixes(start: int, seconds: int) -> None:
    first = min(start, 16**8 - 3)
    assert len(spans.cover(identity(first), identity(first + (seconds * 1000 >> 16) + 1))) <= 2
    assert spans.cover("", "") == []


def row(n: int, first: str, last: str) -> dict[str, object]:
    texts = dict.fromkeys(("gateway", "first_at", "last_at", "root", "archive", "places", "snapshot", "leaf"), "x")
    numbers = dict.fromkeys(("worker", "count", "answers", "torn"), 1)
    return {
        "id": identity(n, n),
        "project": "p",
        "first_id": first,
        "last_id": last,
        "sealed": utc_now(),
        **texts,
        **numbers,
    }


def test_among_thousands_of_overlapping_segments_the_look_up_is_by_key(tmp_path: Path) -> None:
    sql = Sqlite(tmp_path / "m.sqlite", Settings.load({}, home=tmp_path).sql)
    sql.migrate()
    some = [row(n, identity(n // 4), identity(n // 4 + 1, 9)) for n in range(4000)]

    def fill(connection: sa.Connection) -> None:
        connection.execute(sa.insert(segments), some)
        under = [
            {"project": "p", "prefix": prefix, "segment": one["id"]}
            for one in some
            for prefix in spans.cover(str(one["first_id"]), str(one["last_id"]))
        ]
        connection.execute(sa.insert(table), under)

    sql.write(fill)
    asked: list[str] = []
    with sql.read() as connection:
        sa.event.listen(connection, "before_cursor_execute", lambda *given: asked.append(given[2:4]))
        found = holding(connection, "p", identity(500, 7))
        assert {one.id for one in found} == {identity(n, n) for n in range(1996, 2004)}
        text, values = asked[0]
        plan = [line.detail for line in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values)]
    sql.close()
    assert not any(line.startswith("SCAN") for line in plan)
    assert any("journal_spans" in line and "prefix=?" in line for line in plan)


@given(one=times, other=times)
def test_segments_that_were_sealed_before_are_brought_where_new_ones_go(one: int, other: int) -> None:
    step = importlib.import_module("macadam.migrations.versions.0014_journal")
    first, last = sorted((one, other))
    assert step._cover(identity(first), identity(last)) == spans.cover(identity(first), identity(last))
    assert step._cover("", "") == []
