"""Registering contracts and sources, and ingesting: what is published, refused, recorded and never doubled."""

from datetime import UTC, datetime

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from unit.data import orders

from macadam import catalog
from macadam.access import service as access
from macadam.access.types import CreateProject
from macadam.data import ingest as ingesting
from macadam.data import registry, service
from macadam.data.types import (
    Ingest,
    ListContracts,
    ListQuarantine,
    ListSnapshots,
    ListSources,
    ListTables,
    PreviewTable,
    RegisterContract,
    RegisterSource,
    ShowContract,
)
from macadam.errors import (
    ChecksFailed,
    Conflict,
    ContractInvalid,
    IntegrityError,
    InvalidInput,
    MacadamError,
    NotAuthorised,
    NotFound,
    SourceInvalid,
)
from macadam.ledger import service as ledger
from macadam.testing import open_platform, token_of

PROJECT = orders.PROJECT


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "drop"


@pytest.fixture
def platform(tmp_path, folder):
    with open_platform(tmp_path / "home") as opened:
        orders.register(opened, folder)
        yield opened


def source(**changed):
    given = {"source": "more", "directory": "/tmp", "path": "*.csv", "contract": "orders", "table": "orders"}  # noqa: S108
    return RegisterSource(project=PROJECT, **(given | changed))


def leaves(platform, **wanted):
    with platform.ports.sql.read() as sql:
        return [entry.leaf for entry in ledger.find(sql, project=PROJECT, **wanted)]


# Contracts


def test_registering_the_same_contract_twice_gives_the_same_version(platform):
    again = platform.call(RegisterContract(project=PROJECT, text=orders.contract() + "\n# a comment\n"))
    assert again == platform.call(ListContracts(project=PROJECT))[0]
    assert len(leaves(platform, kind="data.register_contract", subject="contract:orders@1.0.0")) == 1


def test_another_document_under_a_registered_version_is_refused(platform):
    with pytest.raises(Conflict, match="another document") as caught:
        platform.call(RegisterContract(project=PROJECT, text=orders.contract(purpose="Other.")))
    assert "version" in caught.value.next_step


def test_without_a_version_the_newest_contract_is_shown_with_its_text(platform):
    text = orders.contract("1.1.0")
    platform.call(RegisterContract(project=PROJECT, text=text))
    page = platform.call(ShowContract(project=PROJECT, contract="orders"))
    assert (page.contract.ref, page.text) == ("contract:orders@1.1.0", text)
    old = platform.call(ShowContract(project=PROJECT, contract="orders", version="1.0.0"))
    assert old.contract.ref == "contract:orders@1.0.0"
    with pytest.raises(NotFound):
        platform.call(ShowContract(project=PROJECT, contract="orders", version="9"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id: [", "line"),
        ("kind: DataContract\n", "apiVersion"),
        (orders.contract().replace("id: orders", "id: a/b"), "'/'"),
        (orders.contract().replace("name: city", "name: _file"), "'_file'"),
        (
            orders.contract().replace(
                "metric: rowCount, mustBeGreaterOrEqualTo: 1", "type: sql, query: 'f(((', mustBe: true"
            ),
            "some_rows is not",
        ),
    ],
)
def test_a_contract_that_does_not_parse_is_refused_and_leaves_nothing(platform, text, said):
    with pytest.raises(ContractInvalid, match=said) as caught:
        platform.call(RegisterContract(project=PROJECT, text=text))
    assert caught.value.next_step
    assert len(platform.call(ListContracts(project=PROJECT))) == 1


# Sources


@pytest.mark.parametrize(
    "changed",
    [
        {"directory": "relative"},
        {"directory": "/tmp/../etc"},  # noqa: S108
        {"path": "../*.csv"},
        {"path": "/etc/*.csv"},
        {"path": ""},
        {"path": "*.txt"},
        {"table": "predictions", "schema": "orders"},
        {"table": "orders__quarantine", "schema": "orders"},
        {"schema": "nothing"},
    ],
)
def test_a_source_that_leads_elsewhere_or_goes_into_a_table_of_the_platform_is_refused(platform, changed):
    with pytest.raises(InvalidInput) as caught:
        platform.call(source(**changed))
    assert caught.value.next_step


def test_a_source_in_the_home_which_holds_keys_is_refused(platform):
    with pytest.raises(InvalidInput, match="home"):
        platform.call(source(directory=str(platform.settings.home / "keys")))


def test_a_project_with_a_folder_of_its_own_takes_sources_only_from_there(platform, tmp_path):
    inside = tmp_path / "own"
    platform.call(CreateProject(project="own", owner="principal:local", location=str(inside)))
    platform.call(RegisterContract(project="own", text=orders.contract()))
    given = {"project": "own", "source": "x", "path": "*.csv", "contract": "orders", "table": "orders"}
    assert platform.call(RegisterSource(**given, directory=str(inside / "drop"))).name == "x"
    (inside / "drop").mkdir(parents=True)
    (inside / "out").symlink_to(tmp_path)
    for elsewhere in (tmp_path, inside / "out"):
        with pytest.raises(InvalidInput, match="outside of"):
            platform.call(RegisterSource(**given, directory=str(elsewhere)))


def test_files_of_the_home_are_not_read_through_a_folder_around_it(platform):
    inside = platform.settings.home / "x.csv"
    inside.write_text(orders.HEADER)
    platform.call(source(directory=str(inside.parent.parent), path="*/x.csv"))
    with pytest.raises(SourceInvalid, match="own file"):
        platform.call(Ingest(project=PROJECT, source="more"))


def test_a_source_keeps_its_table_but_may_take_a_newer_contract(platform, folder):
    platform.call(RegisterContract(project=PROJECT, text=orders.contract("1.1.0")))
    given = {"source": "orders", "directory": str(folder), "path": "{n}.csv"}
    assert platform.call(source(**given)).contract == "contract:orders@1.1.0"
    with pytest.raises(Conflict, match="goes into table"):
        platform.call(source(**given, table="others", schema="orders"))
    assert [s.name for s in platform.call(ListSources(project=PROJECT))] == ["orders"]


def test_a_missing_contract_or_source_is_named(platform):
    with pytest.raises(NotFound, match="nothing"):
        platform.call(source(contract="nothing"))
    with pytest.raises(NotFound, match="no source 'more'"):
        platform.call(Ingest(project=PROJECT, source="more"))


# Ingesting


def test_good_rows_are_published_refused_ones_are_kept_with_reasons_and_the_leaf_says_it_all(platform, folder):
    orders.write(folder, "a.csv", range(10), bad=2)
    report = orders.ingest(platform)
    assert (report.rows_in, report.published, report.quarantined, report.rows) == (12, 10, 2, 10)
    assert report.by_rule == {"amount.minimum": 2}
    assert report.not_evaluated == ("at.latency",)
    assert orders.published(platform).column("id").to_pylist() == list(range(10))
    made = platform.call(ListSnapshots(project=PROJECT, table="orders"))[0]
    leaf = leaves(platform, subject=report.snapshot)[0]
    assert leaf.kind == "data.ingest"
    assert leaf.uses == ["contract:orders@1.0.0", "source:orders"]
    expected = {
        "digest": made.digest,
        "rows": 10,
        "rows_in": 12,
        "published": 10,
        "quarantined": 2,
        "by_rule": {"amount.minimum": 2},
        "metadata_location": made.metadata_location,
        "snapshot_id": made.snapshot_id,
        "offsets": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in report.files],
    }
    assert leaf.body == expected
    assert orders.problems(platform) == ()


def test_quarantine_shows_values_as_they_came_newest_first_and_by_rule(platform, folder):
    orders.write(folder, "a.csv", range(3), bad=1)
    (folder / "b.csv").write_text(orders.HEADER + "7,1,x,\n7,2,y,\nno,3,z,\n1,4,q,\n")
    orders.ingest(platform)
    found = platform.call(ListQuarantine(project=PROJECT, table="orders"))
    assert found.total == 4
    assert [(r.file, r.row, r.reasons) for r in found.rows] == [
        ("b.csv", 3, ("id.unique.published",)),
        ("b.csv", 2, ("id.type",)),
        ("b.csv", 1, ("id.unique",)),
        ("a.csv", 3, ("amount.minimum",)),
    ]
    assert found.rows[1].values == {"id": "no", "amount": "3", "city": "z", "at": ""}
    assert found.rows[1].contract == "contract:orders@1.0.0"
    one = platform.call(ListQuarantine(project=PROJECT, table="orders", rule="id.type"))
    assert (one.total, len(one.rows)) == (1, 1)
    assert one.by_rule == found.by_rule
    assert platform.call(ListQuarantine(project=PROJECT, table="orders", limit=1)).rows == found.rows[:1]


def test_all_new_files_become_one_snapshot_and_nothing_new_changes_nothing(platform, folder):
    for n in range(4):
        orders.write(folder, f"{n}.csv", range(n * 10, n * 10 + 10))
    first = orders.ingest(platform)
    assert (len(first.files), first.rows) == (4, 40)
    again = orders.ingest(platform)
    assert (again.snapshot, again.files, again.skipped, again.rows_in) == (first.snapshot, (), 4, 0)
    assert len(platform.call(ListSnapshots(project=PROJECT, table="orders"))) == 1


def test_rows_beyond_the_memory_bound_are_staged_in_steps_that_become_one_snapshot(platform, folder, monkeypatch):
    monkeypatch.setattr(ingesting, "STAGE_BYTES", 1)
    for n in range(3):
        orders.write(folder, f"{n}.csv", range(n * 10, n * 10 + 10), bad=1)
    report = orders.ingest(platform)
    assert (report.rows, report.quarantined) == (30, 3)
    assert orders.published(platform).column("id").to_pylist() == list(range(30))
    (made,) = platform.call(ListSnapshots(project=PROJECT, table="orders"))
    assert made.added == 30
    assert orders.published(platform, "orders__quarantine").num_rows == 3
    assert orders.problems(platform) == ()


def test_files_that_do_not_fit_one_leaf_are_left_for_the_next_call(platform, folder, monkeypatch):
    monkeypatch.setattr(ingesting, "LEAF_BYTES", 300)
    for n in range(3):
        orders.write(folder, f"{n}.csv", range(n * 10, n * 10 + 10))
    assert [(len(r.files), r.remaining) for r in (orders.ingest(platform), orders.ingest(platform))] == [(2, 1), (1, 0)]


def test_one_file_can_be_named_and_an_unknown_one_is_refused(platform, folder):
    for n in range(3):
        orders.write(folder, f"{n}.csv", range(n * 10, n * 10 + 10))
    assert [f.path for f in orders.ingest(platform, "1.csv").files] == ["1.csv"]
    assert orders.ingest(platform, "1.csv").files == ()
    for name in ("9.csv", "../1.csv", "/etc/passwd"):
        with pytest.raises(SourceInvalid, match="no file") as caught:
            orders.ingest(platform, name)
        assert "2.csv" in caught.value.next_step


def test_a_file_that_changed_after_it_was_taken_is_refused_and_nothing_is_doubled(platform, folder):
    orders.write(folder, "a.csv", range(10))
    before = orders.ingest(platform)
    orders.write(folder, "a.csv", range(20))
    with pytest.raises(Conflict, match="other content") as caught:
        orders.ingest(platform)
    assert "new file name" in caught.value.next_step
    orders.write(folder, "b.csv", range(10, 20))
    assert orders.ingest(platform, "b.csv").rows == 20
    assert before.rows == 10


def test_a_copy_of_a_file_is_skipped_and_reported(platform, folder):
    orders.write(folder, "a.csv", range(10))
    orders.write(folder, "b.csv", range(10))
    report = orders.ingest(platform)
    assert (report.published, report.quarantined, report.skipped) == (10, 0, 1)
    assert "same bytes as a.csv" in report.warnings[0]


def test_a_table_without_a_key_is_not_doubled_by_another_source_of_the_same_files(platform, folder):
    text = orders.contract("2.0.0").replace(", primaryKey: true, primaryKeyPosition: 1", "")
    platform.call(RegisterContract(project=PROJECT, text=text))
    orders.write(folder, "a.csv", range(10))
    for name in ("one", "two"):
        platform.call(source(source=name, directory=str(folder), table="keyless", schema="orders"))
    reports = [platform.call(Ingest(project=PROJECT, source=name)) for name in ("one", "two")]
    assert [(r.published, r.skipped, r.rows) for r in reports] == [(10, 0, 10), (0, 1, 10)]
    assert "same bytes as a.csv" in reports[1].warnings[0]
    assert orders.ingest(platform).published == 10  # into another table


def test_a_broken_table_rule_publishes_nothing_and_says_what_to_do(platform, folder):
    orders.write(folder, "a.csv", range(10))
    orders.ingest(platform)
    orders.write(folder, "b.csv", range(0), bad=3)
    with pytest.raises(ChecksFailed, match=r"b\.csv was not published: some_rows: got 0, expected >= 1"):
        orders.ingest(platform)
    assert orders.published(platform).num_rows == 10
    assert platform.call(ListQuarantine(project=PROJECT, table="orders")).total == 0
    orders.write(folder, "b.csv", range(10, 12))
    assert orders.ingest(platform).rows == 12


def test_freshness_is_judged_only_against_a_given_instant(platform, folder):
    orders.write(folder, "a.csv", range(10))
    stale = Ingest(project=PROJECT, source="orders", at=datetime(2026, 12, 1, tzinfo=UTC))
    with pytest.raises(ChecksFailed, match="latency"):
        platform.call(stale)
    fresh = msgspec.structs.replace(stale, at=datetime(2026, 11, 21, tzinfo=UTC))
    assert platform.call(fresh).not_evaluated == ()


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.csv", "", "empty"),
        ("a.csv", orders.HEADER + "1,2", "half-written"),
        ("a.csv", "id,amount,town,at\n1,2,x,\n", "lacks 'city', 'at'|lacks 'city'"),
        ("a.csv", orders.HEADER + "1,2\n", "wrong shape"),
        ("a.csv", None, "No file matches|does not exist"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_and_nothing_of_it_is_taken(platform, folder, name, data, said):
    folder.mkdir()
    if data is not None:
        (folder / name).write_text(data)
    with pytest.raises(SourceInvalid, match=said) as caught:
        orders.ingest(platform)
    assert caught.value.next_step
    assert platform.call(ListTables(project=PROJECT)) == ()
    orders.write(folder, name, range(5))
    assert orders.ingest(platform).rows == 5


def test_two_sources_of_one_table_share_its_keys(platform, folder):
    orders.write(folder, "a.csv", range(10))
    orders.ingest(platform)
    orders.write(folder / "other", "b.csv", range(5, 15))
    platform.call(source(directory=str(folder / "other")))
    report = platform.call(Ingest(project=PROJECT, source="more"))
    assert (report.published, report.quarantined, report.rows) == (5, 5, 15)
    assert report.by_rule == {"id.unique.published": 5}


def test_parquet_rows_are_refused_into_the_same_quarantine_as_text(platform, folder):
    orders.write(folder, "a.csv", range(3), bad=1)
    orders.ingest(platform)
    at = pa.array([datetime(2026, 11, 20, tzinfo=UTC)] * 2, pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({"id": [7, 8], "amount": [1.5, -2.5], "city": ["x", None], "at": at}), folder / "p.parquet")
    platform.call(source(directory=str(folder), path="*.parquet"))
    assert platform.call(Ingest(project=PROJECT, source="more")).quarantined == 1
    newest = platform.call(ListQuarantine(project=PROJECT, table="orders", limit=1)).rows[0]
    assert (newest.values["id"], newest.values["amount"], newest.values["city"]) == ("8", "-2.5", None)


# Races


def test_a_table_that_moved_while_a_snapshot_was_prepared_is_a_conflict_and_the_same_call_works(
    platform, folder, monkeypatch
):
    orders.write(folder, "a.csv", range(10))
    orders.write(folder, "b.csv", range(10, 20))
    ahead = []

    def slow(*arguments, keys=ingesting._published_keys):
        if not ahead:
            ahead.append(True)
            orders.ingest(platform, "b.csv")
        return keys(*arguments)

    monkeypatch.setattr(ingesting, "_published_keys", slow)
    with pytest.raises(Conflict, match="another snapshot") as caught:
        orders.ingest(platform, "a.csv")
    assert "again" in caught.value.next_step
    assert orders.ingest(platform, "a.csv").rows == 20
    assert orders.problems(platform) == ()


def test_a_file_that_another_ingest_took_meanwhile_is_a_conflict_not_a_double(platform, folder, monkeypatch):
    orders.write(folder, "a.csv", range(10))
    ahead = []

    def slow(*arguments, keys=ingesting._published_keys):
        if not ahead:
            ahead.append(True)
            orders.ingest(platform)
        return keys(*arguments)

    monkeypatch.setattr(ingesting, "_published_keys", slow)
    with pytest.raises(Conflict, match=r"a\.csv was taken by another ingest"):
        orders.ingest(platform)
    assert orders.ingest(platform).rows == 10


def test_an_error_in_the_transaction_leaves_no_pointer_no_offset_and_no_leaf(platform, folder, monkeypatch):
    orders.write(folder, "a.csv", range(10), bad=1)

    def broken(*_args):
        raise MacadamError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(service, "_publish_refused", broken)
        with pytest.raises(MacadamError, match="broken"):
            orders.ingest(platform)
    assert platform.call(ListTables(project=PROJECT)) == ()
    assert leaves(platform, kind="data.ingest") == []
    assert orders.ingest(platform).rows == 10


# Reading


def test_tables_snapshots_and_previews_show_what_was_published_when(platform, folder):
    orders.write(folder, "a.csv", range(3), bad=1)
    first = orders.ingest(platform)
    orders.write(folder, "b.csv", range(3, 5))
    second = orders.ingest(platform)
    tables = {t.name: t.snapshot for t in platform.call(ListTables(project=PROJECT))}
    assert {name: s.rows for name, s in tables.items()} == {"orders": 5, "orders__quarantine": 1}
    listed = platform.call(ListSnapshots(project=PROJECT, table="orders"))
    assert [(s.ref, s.rows, s.added, s.published) for s in listed] == [
        (second.snapshot, 5, 2, True),
        (first.snapshot, 3, 3, False),
    ]
    now = platform.call(PreviewTable(project=PROJECT, table="orders", limit=1))
    assert now.rows == [{"id": 0, "amount": 0.5, "city": "Uppsala", "at": "2026-11-20T10:00:00.000000Z"}]
    assert (now.total, now.columns["id"]) == (5, "int64")
    for ref in (first.snapshot, first.snapshot.partition("@")[2]):
        assert platform.call(PreviewTable(project=PROJECT, table="orders", snapshot=ref)).total == 3
    refused = platform.call(PreviewTable(project=PROJECT, table="orders__quarantine"))
    assert refused.rows[0]["_reasons"] == ["amount.minimum"]
    msgspec.json.encode(refused)


def test_a_table_that_other_rooms_write_is_listed_and_shown_but_has_no_ingested_snapshot(platform):
    staged = platform.ports.tables.stage(f"{PROJECT}.predictions", pa.table({"x": [float("nan"), 1.0]}), current="")
    platform.ports.sql.write(lambda sql: catalog.publish(sql, PROJECT, "predictions", staged))
    (only,) = platform.call(ListTables(project=PROJECT))
    assert (only.name, only.snapshot) == ("predictions", None)
    assert platform.call(PreviewTable(project=PROJECT, table="predictions")).rows == [{"x": None}, {"x": 1.0}]
    with platform.ports.sql.read() as sql, pytest.raises(NotFound, match="not written by ingesting"):
        service.snapshot(sql, PROJECT, "predictions")


def test_another_project_sees_nothing_of_it(platform, folder):
    orders.write(folder, "a.csv", range(3))
    made = orders.ingest(platform)
    platform.call(CreateProject(project="other", owner="principal:local"))
    assert platform.call(ListTables(project="other")) == ()
    with platform.ports.sql.read() as sql, pytest.raises(NotFound):
        registry.snapshot(sql, "other", "orders", made.snapshot)
    with pytest.raises(NotFound):
        platform.call(PreviewTable(project="other", table="orders"))
    with platform.ports.sql.read() as sql, pytest.raises(NotFound):
        registry.snapshot(sql, PROJECT, "orders", "table:others@1")


def test_a_viewer_reads_but_neither_registers_nor_ingests(platform, folder):
    orders.write(folder, "a.csv", range(3))
    orders.ingest(platform)
    viewer = token_of(platform, "principal:viewer", {PROJECT: "viewer"})
    assert platform.call(PreviewTable(project=PROJECT, table="orders"), token=viewer).total == 3
    for request in (
        RegisterContract(project=PROJECT, text=orders.contract("2.0.0")),
        source(),
        Ingest(project=PROJECT, source="orders"),
    ):
        with pytest.raises(NotAuthorised):
            platform.call(request, token=viewer)


def test_a_changed_byte_in_a_published_file_is_found_by_verification_and_stops_the_next_ingest(tmp_path, folder):
    with open_platform(tmp_path / "home") as platform:
        orders.register(platform, folder)
        orders.write(folder, "a.csv", range(100), bad=3)
        orders.ingest(platform)
        assert orders.problems(platform) == ()
    home = tmp_path / "home"
    (good,) = (home / "warehouse" / PROJECT / "orders" / "data").iterdir()
    (refused,) = (home / "warehouse" / PROJECT / "orders__quarantine" / "data").iterdir()
    for file in (good, refused):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with open_platform(home) as platform:
        found = orders.problems(platform)
        assert any(good.name in problem for problem in found)
        assert any(refused.name in problem for problem in found)
        orders.write(folder, "b.csv", range(100, 110))
        with pytest.raises(IntegrityError, match=good.name):
            orders.ingest(platform)


def test_policies_are_told_what_a_contract_says_of_its_table(tmp_path, platform):
    text = orders.contract().replace("name: city,", "name: city, classification: pii,")
    platform.call(RegisterContract(project=orders.PROJECT, text=text.replace("version: 1.0.0", "version: 9.0.0")))
    wanted = {"project": orders.PROJECT, "directory": str(tmp_path), "path": "{n}.csv", "contract": "orders"}
    platform.call(RegisterSource(**wanted, source="people", table="people", schema="orders"))
    with platform.ports.sql.read() as sql:
        told = access.snapshot(sql).projects[orders.PROJECT].assets
    tables = ("people", "people__quarantine", "orders", "orders__quarantine")
    assert {name: asset.classification for name, asset in told.items()} == {f"table:{t}": "personal" for t in tables}, (
        "the source of orders is checked against an older version of the contract, which said nothing"
    )
