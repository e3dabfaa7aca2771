"""The behaviour of every Tables adapter; what only Iceberg promises says so in its name."""

import errno
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa
from databases import KINDS, server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from macadam import catalog
from macadam.adapters import iceberg
from macadam.adapters.iceberg import IcebergTables
from macadam.adapters.postgres import Postgres
from macadam.adapters.sqlite import Sqlite
from macadam.errors import Conflict, IntegrityError, InvalidInput, NotFound, StorageFull
from macadam.ports import Sql, StagedSnapshot, Tables
from macadam.settings import Sql as SqlSettings

MIDNIGHT = datetime(2013, 1, 1, tzinfo=UTC)


def rows(first: int, count: int) -> pa.Table:
    return pa.table(
        {
            "id": pa.array(range(first, first + count), pa.int64()),
            "name": pa.array([f"n{i}" for i in range(first, first + count)], pa.string()),
            "at": pa.array([MIDNIGHT + timedelta(minutes=i) for i in range(count)], pa.timestamp("us", tz="UTC")),
        }
    )


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return IcebergTables(tmp_path / "warehouse")


def test_what_is_staged_can_be_scanned_with_the_same_types(tables: Tables) -> None:
    staged = tables.stage("p.flights", rows(0, 10), current="")
    assert (staged.rows_added, staged.rows_total, staged.previous_location) == (10, 10, "")
    assert tables.scan(staged.metadata_location).equals(rows(0, 10))


def test_an_append_keeps_what_was_there_and_its_order(tables: Tables) -> None:
    one = tables.stage("p.flights", rows(0, 10), current="")
    two = tables.stage("p.flights", rows(10, 5), current=one.metadata_location)
    assert (two.rows_added, two.rows_total, two.previous_location) == (5, 15, one.metadata_location)
    assert tables.scan(two.metadata_location).column("id").to_pylist() == list(range(15))


def test_an_earlier_snapshot_stays_readable_by_its_id(tables: Tables) -> None:
    one = tables.stage("p.flights", rows(0, 10), current="")
    two = tables.stage("p.flights", rows(10, 5), current=one.metadata_location)
    assert tables.scan(two.metadata_location, snapshot_id=one.snapshot_id).num_rows == 10
    with pytest.raises(NotFound, match="no snapshot 7"):
        tables.scan(two.metadata_location, snapshot_id="7")


def test_an_overwrite_replaces_all_rows(tables: Tables) -> None:
    one = tables.stage("p.flights", rows(0, 10), current="")
    two = tables.stage("p.flights", rows(50, 2), current=one.metadata_location, mode="overwrite")
    assert two.rows_total == 2
    assert tables.scan(two.metadata_location).column("id").to_pylist() == [50, 51]
    tables.verify(two.metadata_location, two.snapshot_id, two.digest)


def test_a_table_may_be_empty(tables: Tables) -> None:
    one = tables.stage("p.flights", rows(0, 0), current="")
    assert tables.scan(one.metadata_location).schema == rows(0, 0).schema
    assert tables.scan(one.metadata_location, where="id > 3", columns=["id"]).num_rows == 0
    two = tables.stage("p.flights", rows(0, 3), current=one.metadata_location)
    three = tables.stage("p.flights", rows(0, 0), current=two.metadata_location)
    assert three.digest == two.digest
    assert tables.scan(three.metadata_location).num_rows == 3


def test_a_scan_chooses_columns_and_rows(tables: Tables) -> None:
    one = tables.stage("p.flights", rows(0, 10), current="")
    found = tables.scan(
        one.metadata_location,
        columns=["at", "id"],
        where="id % 2 = 1 AND \"at\" < TIMESTAMP '2013-01-01 00:05:00'",
    )
    assert found.schema == pa.schema([("at", pa.timestamp("us", tz="UTC")), ("id", pa.int64())])
    assert found.column("id").to_pylist() == [1, 3]
    with pytest.raises(InvalidInput, match="no column 'delay'"):
        tables.scan(one.metadata_location, columns=["delay"])
    with pytest.raises(InvalidInput, match="does not fit the table"):
        tables.scan(one.metadata_location, where="delay > 3")


def test_the_digest_depends_on_content_and_order_only_through_files(tables: Tables, tmp_path: Path) -> None:
    other = IcebergTables(tmp_path / "other")
    same = [t.stage("p.flights", rows(0, 10), current="") for t in (tables, other)]
    assert same[0].digest.startswith("sha256:")
    assert same[0].digest != same[1].digest  # file names are new each time: a digest names one writing


def test_a_new_column_reads_as_null_in_old_rows_and_a_left_out_one_in_new_rows(tables: Tables) -> None:
    one = tables.stage("p.flights", rows(0, 2), current="")
    wider = rows(2, 1).append_column("seats", pa.array([180], pa.int32())).drop_columns(["name"])
    two = tables.stage("p.flights", wider, current=one.metadata_location)
    found = tables.scan(two.metadata_location)
    assert found.column_names == ["id", "name", "at", "seats"]
    assert found.column("seats").to_pylist() == [None, None, 180]
    assert found.column("name").to_pylist() == ["n0", "n1", None]
    assert tables.scan(two.metadata_location, snapshot_id=one.snapshot_id).column_names == ["id", "name", "at"]
    tables.verify(two.metadata_location, two.snapshot_id, two.digest)


def test_a_column_that_changes_its_type_is_refused_and_leaves_nothing(tables: Tables, tmp_path: Path) -> None:
    one = tables.stage("p.flights", rows(0, 2), current="")
    before = sorted((tmp_path / "warehouse").rglob("*"))
    changed = rows(2, 1).set_column(0, "id", pa.array(["x"]))
    with pytest.raises(InvalidInput, match=r"'id' of table p\.flights is int64, got string"):
        tables.stage("p.flights", changed, current=one.metadata_location)
    assert sorted((tmp_path / "warehouse").rglob("*")) == before


def test_narrow_and_odd_arrow_types_fit_the_tables_types(tables: Tables) -> None:
    one = tables.stage("p.t", pa.table({"n": pa.array([1], pa.int64()), "s": pa.array(["a"])}), current="")
    odd = pa.table(
        {"n": pa.array([2], pa.int16()), "s": pa.array(["b"], pa.large_string()).dictionary_encode()},
    )
    two = tables.stage("p.t", odd, current=one.metadata_location)
    nothing = pa.table({"n": pa.nulls(1), "s": pa.array(["c"], pa.string_view())})
    three = tables.stage("p.t", nothing, current=two.metadata_location)
    assert tables.scan(three.metadata_location).to_pylist() == [
        {"n": 1, "s": "a"},
        {"n": 2, "s": "b"},
        {"n": None, "s": "c"},
    ]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (pa.table({"a": pa.nulls(2)}), "has no type"),
        (pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), "column a twice"),
        (pa.table({}), "no columns"),
        (pa.table({"a": pa.array([1], pa.timestamp("ns"))}), "does not fit timestamp"),
    ],
)
def test_rows_that_no_table_can_hold_are_refused_in_words(tables: Tables, table: pa.Table, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        tables.stage("p.t", table, current="")


@pytest.mark.parametrize("name", ["flights", "../x.y", "a.b.c", "p.", "p./etc"])
def test_a_name_that_is_no_table_is_refused(tables: Tables, name: str) -> None:
    with pytest.raises(InvalidInput, match="does not name a table"):
        tables.stage(name, rows(0, 1), current="")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_appended_parts_read_back_as_their_concatenation(tmp_path: Path, sizes: list[int]) -> None:
    tables, location, parts = IcebergTables(tmp_path / "w"), "", []
    for size in sizes:
        parts.append(rows(sum(p.num_rows for p in parts), size))
        location = tables.stage("p.t", parts[-1], current=location).metadata_location
    assert tables.scan(location).equals(pa.concat_tables(parts))
    assert tables.scan(location, where="true").equals(pa.concat_tables(parts))


def three_parts(tables: Tables) -> StagedSnapshot:
    staged = tables.stage("p.flights", rows(0, 10), current="")
    for part in (1, 2):
        staged = tables.stage("p.flights", rows(part * 10, 10), current=staged.metadata_location)
    return staged


def data_files(warehouse: Path) -> list[Path]:
    return sorted((warehouse / "p" / "flights" / "data").glob("*.parquet"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


def test_verify_accepts_every_snapshot_as_recorded(tables: Tables) -> None:
    one = tables.stage("p.flights", rows(0, 10), current="")
    two = tables.stage("p.flights", rows(10, 10), current=one.metadata_location)
    tables.verify(two.metadata_location, one.snapshot_id, one.digest)
    tables.verify(two.metadata_location, two.snapshot_id, two.digest)
    with pytest.raises(IntegrityError, match="other files"):
        tables.verify(two.metadata_location, two.snapshot_id, one.digest)


@pytest.mark.parametrize("at", [0, 4, 200, -1])
def test_one_changed_byte_is_found_by_verify_and_by_a_new_readers_scan(tables: Tables, tmp_path: Path, at: int) -> None:
    staged = three_parts(tables)
    assert tables.scan(staged.metadata_location).num_rows == 30
    victim = data_files(tmp_path / "warehouse")[1]
    flip(victim, at)
    for check in (
        lambda: tables.verify(staged.metadata_location, staged.snapshot_id, staged.digest),
        lambda: tables.scan(staged.metadata_location),
        lambda: IcebergTables(tmp_path / "warehouse").scan(staged.metadata_location),
    ):
        with pytest.raises(IntegrityError, match=victim.name):
            check()


def test_a_deleted_file_is_found(tables: Tables, tmp_path: Path) -> None:
    staged = three_parts(tables)
    victim = data_files(tmp_path / "warehouse")[0]
    victim.unlink()
    with pytest.raises(IntegrityError, match=f"{victim.name} of table p.flights is missing"):
        tables.verify(staged.metadata_location, staged.snapshot_id, staged.digest)
    with pytest.raises(IntegrityError, match="is missing"):
        tables.scan(staged.metadata_location)


def test_two_swapped_files_are_found(tables: Tables, tmp_path: Path) -> None:
    staged = three_parts(tables)
    one, two, _ = data_files(tmp_path / "warehouse")
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)
    with pytest.raises(IntegrityError, match="no longer has the bytes"):
        tables.verify(staged.metadata_location, staged.snapshot_id, staged.digest)


def test_iceberg_finds_a_reordered_or_shortened_file_list(tables: Tables, tmp_path: Path) -> None:
    staged = three_parts(tables)
    listed = next((tmp_path / "warehouse").rglob(f"files-{staged.snapshot_id}-*.json"))
    text = listed.read_text()
    start = text.index("[[") + 1
    end = text.index("]]") + 1
    files = text[start:end].replace("],[", "]|[").split("|")
    for order in ((1, 0, 2), (0, 1)):
        listed.write_text(text[:start] + ",".join(files[i] for i in order) + text[end:])
        with pytest.raises(IntegrityError, match="file list"):
            tables.verify(staged.metadata_location, staged.snapshot_id, staged.digest)
        with pytest.raises(IntegrityError, match="file list"):
            tables.scan(staged.metadata_location)


def test_iceberg_finds_any_flipped_byte_of_its_manifests_or_reads_the_same_rows(tables: Tables, tmp_path: Path) -> None:
    staged = three_parts(tables)
    for manifest in (tmp_path / "warehouse").rglob("*.avro"):
        if manifest.name.startswith("snap-") and staged.snapshot_id not in manifest.name:
            continue  # of an earlier snapshot
        whole = manifest.read_bytes()
        manifest.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(IntegrityError, match="manifests"):
            tables.verify(staged.metadata_location, staged.snapshot_id, staged.digest)
        manifest.write_bytes(whole)
    tables.verify(staged.metadata_location, staged.snapshot_id, staged.digest)


def test_broken_metadata_is_an_integrity_error_and_missing_metadata_is_not_found(tables: Tables) -> None:
    staged = three_parts(tables)
    path = Path(staged.metadata_location)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(IntegrityError, match="cannot be read"):
        tables.scan(staged.metadata_location)
    path.unlink()
    with pytest.raises(NotFound, match="no table metadata"):
        tables.scan(staged.metadata_location)


def test_a_full_disk_leaves_nothing_and_the_old_snapshot_stays(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tables.stage("p.flights", rows(0, 10), current="")
    before = sorted((tmp_path / "warehouse").rglob("*"))

    def full(_path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(iceberg, "_sync", full)
    with pytest.raises(StorageFull, match=r"no snapshot of p\.flights"):
        tables.stage("p.flights", rows(10, 10), current=one.metadata_location)
    assert sorted((tmp_path / "warehouse").rglob("*")) == before
    assert tables.scan(one.metadata_location).num_rows == 10


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What an outside client calls the database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/macadam.sqlite"
    return server().database().replace("postgresql:", "postgresql+psycopg:")


@pytest.fixture
def sql(database: str, tmp_path: Path) -> Iterator[Sql]:
    on_postgres = database.startswith("postgresql")
    settings = SqlSettings()
    opened: Sql = (
        Postgres(database.replace("+psycopg", ""), settings)
        if on_postgres
        else Sqlite(tmp_path / "macadam.sqlite", settings)
    )
    opened.migrate()
    yield opened
    opened.close()


def test_an_ordinary_pyiceberg_catalog_reads_what_is_published_and_only_that(
    tables: Tables, sql: Sql, database: str
) -> None:
    from pyiceberg.catalog.sql import SqlCatalog  # noqa: PLC0415 - slow to import, for this test only

    one = tables.stage("p.flights", rows(0, 10), current="")
    sql.write(lambda tx: catalog.publish(tx, "p", "flights", one))
    two = tables.stage("p.flights", rows(10, 5).append_column("x", pa.array(range(5))), current=one.metadata_location)

    outside = SqlCatalog("macadam", uri=database, init_catalog_tables="false")
    assert outside.list_tables("p") == [("p", "flights")]
    assert outside.load_table("p.flights").scan().to_arrow().num_rows == 10
    sql.write(lambda tx: catalog.publish(tx, "p", "flights", two))
    loaded = outside.load_table("p.flights")
    assert sorted(loaded.scan().to_arrow().column("id").to_pylist()) == list(range(15))
    assert loaded.current_snapshot().summary["macadam.digest"] == two.digest
    assert [str(s.snapshot_id) for s in loaded.snapshots()] == [one.snapshot_id, two.snapshot_id]
    assert loaded.scan(snapshot_id=int(one.snapshot_id)).to_arrow().num_rows == 10
    outside.close()


def test_publishing_on_a_base_that_moved_is_refused(tables: Tables, sql: Sql) -> None:
    one = tables.stage("p.flights", rows(0, 10), current="")
    sql.write(lambda tx: catalog.publish(tx, "p", "flights", one))
    two = tables.stage("p.flights", rows(10, 5), current=one.metadata_location)
    late = tables.stage("p.flights", rows(20, 5), current=one.metadata_location)
    sql.write(lambda tx: catalog.publish(tx, "p", "flights", two))
    for twin in (late, tables.stage("p.flights", rows(0, 1), current="")):
        with pytest.raises(Conflict):
            sql.write(lambda tx, twin=twin: catalog.publish(tx, "p", "flights", twin))
    with sql.read() as tx:
        assert catalog.location(tx, "p", "flights") == two.metadata_location
        assert tx.execute(sa.select(catalog.iceberg_tables.c.previous_metadata_location)).scalar() == (
            one.metadata_location
        )


def test_a_moved_home_still_reads(tables: Tables, tmp_path: Path) -> None:
    staged = three_parts(tables)
    shutil.move(tmp_path / "warehouse", tmp_path / "moved")
    there = staged.metadata_location.replace(f"{tmp_path}/warehouse", f"{tmp_path}/moved")
    moved = IcebergTables(tmp_path / "moved")
    assert moved.scan(there).num_rows == 30
