import hashlib
import io
import threading
from datetime import timedelta

import msgspec
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from unit.features import shop
from unit.features.shop import HOUR, ITEMS, SERVICE, START, order, table

from macadam.access.types import CreateProject
from macadam.data.types import Ingest, RegisterContract, RegisterSource
from macadam.errors import ChecksFailed, Conflict, InvalidInput, NotFound
from macadam.features import define, push, registry
from macadam.features.define import Definitions, RequestFeature, encode
from macadam.features.online import compile_service
from macadam.features.types import (
    BuildTrainingSet,
    ListOnline,
    ListTrainingSets,
    ListViews,
    MaterialiseOnline,
    PushRows,
    RegisterViews,
)
from macadam.ledger import service as ledger
from macadam.models import training_sets
from macadam.testing import open_platform

PROJECT = "shop"
CONTRACT = """
apiVersion: v3.2.0
kind: DataContract
id: {name}
version: 1.0.0
status: active
schema:
  - name: {name}
    properties:
{properties}
"""
TYPES = {
    "id": "logicalType: integer, physicalType: bigint, required: true, primaryKey: true",
    "shop": "logicalType: string, physicalType: varchar",
    "item": "logicalType: integer, physicalType: bigint",
    "price": "logicalType: number, physicalType: double",
    "minutes": "logicalType: integer, physicalType: bigint",
    "note": "logicalType: string, physicalType: varchar",
    "ordered_at": "logicalType: timestamp, physicalType: timestamptz",
    "weight": "logicalType: number, physicalType: double",
}
ROWS = [
    order(i, hours=i / 4, minutes=10 + 7 * (i % 6), price=float(i % 5), item=1 + i % 2, note=f"n{i % 3}")
    for i in range(120)
]
END = START + 100 * HOUR


def definitions(service=SERVICE):
    return msgspec.json.decode(encode(Definitions(services=(service,))))


def add_table(platform, folder, name, rows):
    properties = "\n".join(f"      - {{name: {c}, {TYPES[c]}}}" for c in rows.column_names)
    text = CONTRACT.format(name=name, properties=properties)
    platform.call(RegisterContract(project=PROJECT, text=text))
    folder.mkdir(exist_ok=True)
    platform.call(
        RegisterSource(
            project=PROJECT, source=name, directory=str(folder), path=f"{name}-{{n}}.csv", contract=name, table=name
        )
    )
    ingest(platform, folder, name, "1", rows)


def ingest(platform, folder, name, number, rows):
    at = rows.schema.get_field_index("ordered_at")
    if at >= 0:
        texts = [t.strftime("%Y-%m-%dT%H:%M:%SZ") for t in rows["ordered_at"].to_pylist()]
        rows = rows.set_column(at, "ordered_at", [texts])
    pyarrow.csv.write_csv(rows, folder / f"{name}-{number}.csv")
    platform.call(Ingest(project=PROJECT, source=name))


@pytest.fixture(scope="module")
def drop(tmp_path_factory):
    return tmp_path_factory.mktemp("drop")


@pytest.fixture(scope="module")
def platform(tmp_path_factory, drop):
    """One for all tests, as ingesting takes a second: a test looks at what is its own."""
    with open_platform(tmp_path_factory.mktemp("home")) as opened:
        opened.call(CreateProject(project=PROJECT, owner="principal:local"))
        add_table(opened, drop, "orders", table(ROWS))
        add_table(opened, drop, "items", ITEMS)
        opened.call(RegisterViews(project=PROJECT, definitions=definitions()))
        yield opened


def build(platform, **changed):
    given = {"name": "train", "service": "deliveries", "start": START, "end": END}
    return platform.call(BuildTrainingSet(project=PROJECT, **(given | changed)))


def leaf(platform, **wanted):
    with platform.ports.sql.read() as sql:
        found = ledger.find(sql, project=PROJECT, outcome="done", **wanted)
    return found[0].leaf


def test_views_are_registered_once_under_the_digest_of_their_definitions(platform):
    first = platform.call(RegisterViews(project=PROJECT, definitions=definitions()))
    assert platform.call(ListViews(project=PROJECT)).count(first) == 1
    assert first.ref == f"views:shop@{first.digest[7:19]}"
    assert first.digest == "sha256:" + hashlib.sha256(encode(Definitions(services=(SERVICE,)))).hexdigest()
    assert first.services == {"deliveries": SERVICE.feature_names}
    assert leaf(platform, subject=first.ref).body == {"digest": first.digest}


def test_definitions_that_leak_are_refused_before_anything_is_kept(platform):
    leaky = msgspec.structs.replace(
        SERVICE, inputs={**SERVICE.inputs, "minutes": "number"}, features=(RequestFeature(name="minutes"),)
    )
    before = platform.call(ListViews(project=PROJECT))
    with pytest.raises(InvalidInput, match="'minutes' is made from minutes, which the label is made from"):
        platform.call(RegisterViews(project=PROJECT, definitions=definitions(leaky)))
    with pytest.raises(InvalidInput, match="do not fit"):
        platform.call(RegisterViews(project=PROJECT, definitions={"services": [{"name": "x"}]}))
    assert platform.call(ListViews(project=PROJECT)) == before


def test_a_training_set_is_one_parquet_object_that_describes_itself(platform):
    built = build(platform)
    rows = pq.read_table(io.BytesIO(platform.ports.objects.get(built.digest)))
    assert rows.num_rows == built.rows == 120
    names = (*SERVICE.feature_names, "label", "_at", "_key_row", "_key_shop", "_key_item")
    assert tuple(rows.column_names) == names
    about = msgspec.json.decode(rows.schema.metadata[b"macadam"])
    assert [f["name"] for f in about["features"]] == list(SERVICE.feature_names)
    assert about["service"] == "deliveries"
    assert about["start"] == "2024-01-01T00:00:00.000000Z"
    by_id = {str(r["id"]): r for r in ROWS}
    for values in rows.slice(60, 30).to_pylist():
        assert shop.differences(values, shop.expected(by_id[values["_key_row"]], ROWS)) == {}


def test_the_leaf_names_the_snapshots_and_the_views(platform):
    built = build(platform)
    found = leaf(platform, subject=built.ref)
    assert found.uses == [*built.snapshots, built.views]
    assert [s.partition("@")[0] for s in built.snapshots] == ["table:items", "table:orders"]
    assert found.body["digest"] == built.digest
    with platform.ports.sql.read() as sql:
        assert training_sets.find(sql, PROJECT, built.ref).digest == built.digest


def test_the_same_input_gives_the_same_bytes_and_the_same_reference(platform):
    one, other = build(platform, name="twice"), build(platform, name="twice")
    assert one == other
    assert platform.call(ListTrainingSets(project=PROJECT)).count(one) == 1
    assert build(platform, name="other").digest == one.digest


def test_a_training_set_keeps_to_its_snapshots_when_new_rows_come(platform, drop):
    before = build(platform, end=START + 20 * HOUR)
    ingest(platform, drop, "orders", "2", table([order(500, hours=3, shop="far")]))
    after = build(platform, end=START + 20 * HOUR)
    assert after.rows == before.rows + 1
    assert after.snapshots != before.snapshots
    assert platform.ports.objects.get(before.digest)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"service": "x"}, InvalidInput, "Choose one of: deliveries"),
        ({"views": "0" * 12}, NotFound, "no feature definitions 000000000000"),
        ({"end": START}, InvalidInput, "is empty"),
        ({"start": END, "end": END + HOUR}, ChecksFailed, "no labelled event"),
    ],
)
def test_a_wrong_request_leaves_nothing_behind(platform, changed, error, words):
    before = platform.call(ListTrainingSets(project=PROJECT))
    with pytest.raises(error, match=words):
        build(platform, **changed)
    assert platform.call(ListTrainingSets(project=PROJECT)) == before
    assert list((platform.settings.home / "work").glob("training-set-*")) == []


def test_a_table_that_was_never_ingested_is_not_found(tmp_path):
    with open_platform(tmp_path / "home") as platform:
        platform.call(CreateProject(project=PROJECT, owner="principal:local"))
        platform.call(RegisterViews(project=PROJECT, definitions=definitions()))
        with pytest.raises(NotFound, match="no table 'items'"):
            build(platform)


def materialise(platform, until):
    return platform.call(MaterialiseOnline(project=PROJECT, service="deliveries", until=until))


def read(platform, row):
    with platform.ports.sql.read() as sql:
        reader = compile_service(registry.service_spec(sql, PROJECT, "deliveries"))
    return reader.read(platform.ports.online, PROJECT, shop.request(row), row["ordered_at"])


def plain(rows):
    return msgspec.to_builtins(rows)


def test_the_online_store_goes_on_from_a_materialisation_by_pushes(platform):
    middle = START + 10 * HOUR
    done = materialise(platform, middle)
    assert done in platform.call(ListOnline(project=PROJECT))
    assert leaf(platform, subject=done.ref).uses == [*done.snapshots, done.views]
    since = [r for r in ROWS if middle - HOUR <= r["ordered_at"] + timedelta(minutes=r["minutes"]) <= middle + 5 * HOUR]
    report = platform.call(PushRows(project=PROJECT, table="orders", rows=plain(since)))
    assert report.duplicates > 0
    assert report.applied > 0
    asked = order(-1, hours=15)
    known = [r for r in ROWS if r["ordered_at"] + timedelta(minutes=r["minutes"]) <= asked["ordered_at"]]
    assert shop.differences(read(platform, asked), shop.expected(asked, known)) == {}
    before = dict(platform.ports.online.scan(b""))
    again = platform.call(PushRows(project=PROJECT, table="orders", rows=plain(since)))
    assert (again.applied, again.duplicates + again.late) == (0, 4 * len(since))
    assert dict(platform.ports.online.scan(b"")) == before
    found = leaf(platform, subject="online:orders")
    assert found.body["digest"] == report.digest


def test_a_push_that_nothing_reads_is_refused(platform):
    with pytest.raises(NotFound, match="Nothing in the online store"):
        platform.call(PushRows(project=PROJECT, table="weather", rows=[{"id": 1}]))


def test_pushed_rows_of_a_wrong_shape_are_refused_and_change_nothing(platform):
    materialise(platform, START)
    before = dict(platform.ports.online.scan(b""))
    wrong = [({"id": "x"}, "'id' is no int64"), ({"colour": 1}, "no column colour"), ({"shop": "a"}, "Row 1 has no id")]
    for row, words in [*wrong, ({"id": 1}, "waiting")]:
        if words == "waiting":
            assert platform.call(PushRows(project=PROJECT, table="orders", rows=[row])).waiting == 4
        else:
            with pytest.raises(ChecksFailed, match=words):
                platform.call(PushRows(project=PROJECT, table="orders", rows=[row]))
    with pytest.raises(InvalidInput, match="rows"):
        platform.call(PushRows(project=PROJECT, table="orders", rows=[]))
    assert dict(platform.ports.online.scan(b"")) == before


def test_concurrent_pushes_lose_nothing(platform):
    materialise(platform, START - HOUR)
    batches = [ROWS[i : i + 10] for i in range(0, 40, 10)]
    reports = []

    def send(rows):
        reports.append(platform.call(PushRows(project=PROJECT, table="orders", rows=plain(rows))))

    threads = [threading.Thread(target=send, args=(b,)) for b in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(r.applied + r.late for r in reports) == 160
    asked = order(-1, hours=10)
    assert shop.differences(read(platform, asked), shop.expected(asked, ROWS[:40])) == {}


def test_a_push_that_crossed_a_materialisation_is_sent_again(platform, monkeypatch):
    materialise(platform, START - HOUR)
    crossed = push.Pusher.update

    def update(self, *arguments):
        monkeypatch.undo()
        counts = crossed(self, *arguments)
        # As another process would that took its turn right after this one's rows were applied.
        with platform.ports.sql.read() as sql:
            held, schemas = registry.materialised(sql, PROJECT)[0]
        later = msgspec.structs.replace(held, at=held.at + HOUR)
        platform.ports.sql.write(lambda sql: registry.keep_materialisation(sql, later, schemas))
        return counts

    monkeypatch.setattr(push.Pusher, "update", update)
    with pytest.raises(Conflict, match="materialised while"):
        platform.call(PushRows(project=PROJECT, table="orders", rows=plain(ROWS[:5])))
    assert platform.call(PushRows(project=PROJECT, table="orders", rows=plain(ROWS[:5]))).duplicates == 20


def test_two_services_are_both_kept_up_to_date(platform):
    other = msgspec.structs.replace(SERVICE, name="more", features=SERVICE.features[:1])
    both = Definitions(services=(SERVICE, other))
    materialise(platform, START)
    platform.call(RegisterViews(project=PROJECT, definitions=msgspec.json.decode(encode(both))))
    materialise(platform, START)
    platform.call(MaterialiseOnline(project=PROJECT, service="more", until=START))
    report = platform.call(PushRows(project=PROJECT, table="orders", rows=plain(ROWS[:3])))
    assert report.applied == 12  # the view that both have is one, and counts once
    assert {m.service for m in platform.call(ListOnline(project=PROJECT))} == {"deliveries", "more"}


def test_a_service_as_plain_values_is_complete(platform):
    built = build(platform)
    with platform.ports.sql.read() as sql:
        assert registry.training_set(sql, PROJECT, built.ref) == built
        spec = registry.service_spec(sql, PROJECT, "deliveries", built.views)
    assert msgspec.convert(spec, define.FeatureService) == SERVICE
