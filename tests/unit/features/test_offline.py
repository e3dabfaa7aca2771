from datetime import timedelta

import msgspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.features import shop
from unit.features.shop import HOUR, ITEMS, SERVICE, START, order, table

from macadam.errors import ChecksFailed, StorageFull
from macadam.features import offline

END = START + 90 * HOUR


def build(rows, service=SERVICE, start=START, end=END):
    return offline.build(service, {"orders": table(rows), "items": ITEMS}, start, end)


orders = st.lists(
    st.builds(
        lambda hours, minutes, shop, item, price: {
            "hours": hours, "minutes": minutes, "shop": shop, "item": item, "price": price
        },
        # Whole hours and halves, so that rows fall on the edges of tiles and become known at the same instant.
        hours=st.integers(0, 120).map(lambda h: h / 2),
        minutes=st.sampled_from([1, 20, 30, 60, 60, 90, 240, None]),
        shop=st.sampled_from(["north", "south", None]),
        item=st.sampled_from([1, 2, 3, None]),
        price=st.sampled_from([1.5, 3.0, None]),
    ),
    min_size=1,
    max_size=40,
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(orders)
def test_each_event_has_the_values_that_the_definitions_say_in_words(given_orders):
    rows = [order(i, **o) for i, o in enumerate(given_orders)]
    labelled = [r for r in rows if r["minutes"] is not None]
    if not labelled:
        return
    frame = build(rows)
    assert frame.rows.num_rows == len(labelled)
    assert frame.unlabelled == len(rows) - len(labelled)
    by_id = {str(r["id"]): r for r in rows}
    found = frame.rows.to_pylist()
    assert sorted(f["_key_row"] for f in found) == sorted(str(r["id"]) for r in labelled)
    for values in found:
        row = by_id[values["_key_row"]]
        assert shop.differences(values, shop.expected(row, rows)) == {}
        assert values["label"] == int(row["minutes"] > 30)
        assert values["_at"] == row["ordered_at"]


def test_the_order_of_rows_and_threads_change_no_byte():
    rows = [order(i, hours=i % 7 + i / 10, minutes=10 + i % 50, price=0.1 * i) for i in range(200)]
    one, other = build(rows).rows, build(rows[::-1]).rows
    assert one.equals(other)
    assert one.schema == other.schema


def test_only_events_of_the_range_are_taken_but_all_history_counts():
    rows = [order(1, hours=1), order(2, hours=5), order(3, hours=9)]
    frame = build(rows, start=START + 5 * HOUR, end=START + 9 * HOUR)
    assert frame.rows["_key_row"].to_pylist() == ["2"]
    assert frame.rows["last_minutes"].to_pylist() == [20.0]


def test_kinds_follow_the_data():
    kinds = build([order(1)]).kinds
    assert kinds["last_note"] == "category"
    assert kinds["last_minutes"] == kinds["hour"] == "number"
    assert list(kinds) == list(SERVICE.feature_names)


def test_a_range_without_events_is_refused():
    with pytest.raises(ChecksFailed, match="no labelled event"):
        build([order(1)], start=END, end=END + HOUR)


def test_a_row_identity_that_is_not_unique_is_refused():
    with pytest.raises(ChecksFailed, match="1 rows have the identity"):
        build([order(1), order(1, hours=2)])


def test_a_column_that_the_table_lacks_is_named():
    rows = table([order(1)]).drop_columns("note")
    with pytest.raises(ChecksFailed, match="has no column note"):
        offline.build(SERVICE, {"orders": rows, "items": ITEMS}, START, END)


def test_a_derived_column_that_hides_a_stored_one_is_refused():
    rows = table([order(1)]).append_column("late", pa.array([True]))
    with pytest.raises(ChecksFailed, match="already has the column late"):
        offline.build(SERVICE, {"orders": rows, "items": ITEMS}, START, END)


def test_a_value_that_cannot_be_aggregated_names_its_view():
    views = (msgspec.structs.replace(SERVICE.features[0], value="note"),)
    with pytest.raises(ChecksFailed, match=r"'shop_minutes'.*VARCHAR"):
        build([order(1)], msgspec.structs.replace(SERVICE, features=views))


def test_a_lookup_that_finds_two_rows_is_refused():
    items = pa.table({"item": [1, 1], "weight": [0.5, 0.6], "extra": [1, 2]})
    lookup = SERVICE.features[4]
    both = msgspec.structs.replace(lookup, table=msgspec.structs.replace(lookup.table, row_id=("item", "extra")))
    with pytest.raises(ChecksFailed, match="'item' finds more than one row"):
        offline.build(
            msgspec.structs.replace(SERVICE, features=(both,)),
            {"orders": table([order(1)]), "items": items},
            START,
            END,
        )


def test_numbers_that_are_not_finite_count_as_unknown():
    rows = [order(1, price=float("nan")), order(2, hours=1, price=float("inf"))]
    assert build(rows).rows["price"].to_pylist() == [None, None]


def test_a_join_may_overflow_to_disk_within_its_own_folder(tmp_path):
    rows = [order(i, hours=i / 100, shop=f"shop-{i % 50}") for i in range(5000)]
    frame = offline.build(SERVICE, {"orders": table(rows), "items": ITEMS}, START, END, spill=tmp_path / "spill")
    assert frame.rows.num_rows == 5000
    assert frame.rows["_at"][-1].as_py() - frame.rows["_at"][0].as_py() == timedelta(hours=49.99)


def test_an_expression_that_fails_on_some_row_names_its_feature():
    view = msgspec.structs.replace(SERVICE.features[2], columns={"number": "CAST(note AS BIGINT)"})
    with pytest.raises(ChecksFailed, match="Feature 'last' cannot be computed from these rows"):
        build([order(1), order(2, hours=1, note="7")], msgspec.structs.replace(SERVICE, features=(view,)))


def test_running_out_of_memory_and_disk_is_said(monkeypatch):
    rows = [order(i, hours=i / 1000, shop=f"shop-{i}" * 20) for i in range(60_000)]
    connect = offline.relations.connect
    monkeypatch.setattr(offline.relations, "connect", lambda **_: connect(memory="12MB"))
    with pytest.raises(StorageFull, match="needs more memory"):
        build(rows)
