"""Planted leaks: each must be refused, and the error must name the feature."""

import msgspec
import pytest
from unit.features import flights, shop
from unit.features.shop import HOUR, ITEMS, SERVICE, START, order, table

from macadam.errors import ChecksFailed, InvalidInput
from macadam.features import leakage, offline
from macadam.features.define import FeatureService, Latest, RequestFeature, Table, WindowAggregate

ROWS = [
    order(i, hours=i / 2, minutes=10 + 7 * (i % 6), price=float(i % 5), item=1 + i % 2, note=f"n{i % 3}")
    for i in range(300)
]


def changed(value, **fields):
    return msgspec.structs.replace(value, **fields)


def with_feature(feature, **fields) -> FeatureService:
    return changed(SERVICE, features=(*SERVICE.features, feature), **fields)


def build(service, rows=ROWS):
    return offline.build(service, {"orders": table(rows), "items": ITEMS}, START, START + 400 * HOUR)


def names(error) -> object:
    return error.value.details["feature"]


def test_the_honest_service_passes():
    assert build(SERVICE).rows.num_rows == 300


def test_an_input_that_the_label_is_made_from_is_refused():
    leaky = with_feature(RequestFeature(name="minutes"), inputs={**SERVICE.inputs, "minutes": "number"})
    with pytest.raises(InvalidInput, match="which the label is made from") as error:
        leakage.check(leaky)
    assert names(error) == "minutes"


def test_an_input_derived_from_the_outcome_is_refused():
    leaky = with_feature(RequestFeature(name="late"), inputs={**SERVICE.inputs, "late": "number"})
    with pytest.raises(InvalidInput, match="is made from minutes") as error:
        leakage.check(leaky)
    assert names(error) == "late"


def test_an_input_that_nobody_declared_as_known_early_is_refused():
    leaky = with_feature(
        RequestFeature(name="note", function="category"), inputs={**SERVICE.inputs, "note": "category"}
    )
    with pytest.raises(InvalidInput, match="does not declare as known before") as error:
        leakage.check(leaky)
    assert names(error) == "note"


def test_a_departure_delay_is_no_input_at_the_scheduled_departure():
    """dep_delay predicts well and is known early, but not as early as the question."""
    service = flights.service()
    leaky = changed(
        service,
        inputs={**service.inputs, "dep_delay": "number"},
        features=(*service.features, RequestFeature(name="dep_delay")),
    )
    with pytest.raises(ChecksFailed, match=r"'dep_delay' uses columns at scheduled_at that are known only") as error:
        offline.build(leaky, flights.tables(), flights.utc(2013, 1, 1), flights.utc(2013, 1, 3))
    assert names(error) == "dep_delay"


def test_an_arrival_delay_is_no_input_at_the_scheduled_departure():
    service = flights.service()
    leaky = changed(service, inputs={**service.inputs, "arr_delay": "number"})
    with pytest.raises(InvalidInput, match="label is made from") as error:
        leakage.check(leaky)
    assert names(error) == "arr_delay"


@pytest.mark.parametrize(
    "view",
    [
        Latest(
            name="early", table=shop.orders, entity=shop.shop, columns={"minutes": "minutes"}, known_at="ordered_at"
        ),
        WindowAggregate(
            name="early", table=shop.orders, entity=shop.shop, value="late", windows=("6h",), known_at="ordered_at"
        ),
        WindowAggregate(
            name="early",
            table=shop.orders,
            entity=shop.shop,
            value="minutes",
            windows=("6h",),
            known_at="delivered_at - INTERVAL 1 MINUTE",
        ),
    ],
)
def test_a_view_that_counts_rows_before_they_were_known_is_refused(view):
    with pytest.raises(
        ChecksFailed, match=r"View 'early'.* uses columns at .* that are known only at delivered_at"
    ) as e:
        build(with_feature(view))
    assert names(e) == "early"


def lying(known_at: str, early: str = "ordered_at") -> Table:
    """The table itself says that whole rows are known too early."""
    return changed(shop.orders, known_at=known_at, known={early: ("id", "shop", "item", "price", "ordered_at")})


def test_a_table_that_lies_about_when_its_rows_are_known_is_found_by_the_label():
    table_ = lying("ordered_at + INTERVAL 1 SECOND")
    view = Latest(name="own", table=table_, entity=shop.shop, columns={"minutes": "minutes"})
    leaky = changed(SERVICE, table=table_, features=(view,), label_known_at="delivered_at")
    with pytest.raises(ChecksFailed, match=r"'own', made from what the label is made from, .* too early") as error:
        build(leaky)
    assert names(error) == "own"


@pytest.mark.parametrize(
    ("known_at", "early", "view"),
    [
        (
            "ordered_at + INTERVAL 0 HOUR",
            "ordered_at",
            Latest(name="own", table=shop.orders, entity=shop.shop, columns={"note": "note"}),
        ),
        (
            "ordered_at - INTERVAL 2 HOUR",
            "ordered_at - INTERVAL 3 HOUR",
            WindowAggregate(name="own", table=shop.orders, entity=shop.shop, value="length(note)", windows=("6h",)),
        ),
    ],
)
def test_a_view_in_which_an_event_sees_its_own_late_columns_is_refused(known_at, early, view):
    """Whatever was declared: a row that an event finds, and that is its own, was not complete at the event."""
    table_ = lying(known_at, early)
    leaky = changed(SERVICE, table=table_, features=(changed(view, table=table_),), label_known_at="delivered_at")
    with pytest.raises(ChecksFailed, match="'own' lets 300 events see their own row") as error:
        build(leaky)
    assert names(error) == "own"


def test_a_view_of_early_columns_may_count_the_event_itself():
    """How many orders came in is known when they come in."""
    view = WindowAggregate(
        name="incoming",
        table=shop.orders,
        entity=shop.shop,
        value="price",
        functions=("count",),
        windows=("6h",),
        known_at="ordered_at",
    )
    assert build(with_feature(view)).rows["incoming_count_6h"][-1].as_py() == 12.0


def test_a_label_that_is_known_at_the_event_already_is_refused():
    with pytest.raises(ChecksFailed, match="nothing to predict"):
        build(changed(SERVICE, event_time="delivered_at + INTERVAL 1 DAY"))


def test_a_label_known_earlier_than_its_columns_is_refused():
    with pytest.raises(ChecksFailed, match="The label uses columns at"):
        build(changed(SERVICE, label_known_at="ordered_at + INTERVAL 1 MINUTE"))


def outcome_in_disguise(column: str, kind: str) -> FeatureService:
    """A column that is wrongly declared as known early, and tells the outcome."""
    known = {"ordered_at": ("id", "shop", "item", "price", "ordered_at", "note")}
    table_ = changed(shop.orders, known=known)
    views = tuple(changed(f, table=table_) if getattr(f, "table", None) == shop.orders else f for f in SERVICE.features)
    function = "number" if kind == "number" else "category"
    feature = RequestFeature(name="told", function=function, inputs=(column,))
    return changed(SERVICE, table=table_, features=(*views, feature), inputs={**SERVICE.inputs, column: kind})


def test_a_number_that_alone_separates_the_labels_is_refused():
    rows = [{**r, "price": r["minutes"] * 2.0 + 1} for r in ROWS]
    with pytest.raises(ChecksFailed, match="alone tells every label") as error:
        build(outcome_in_disguise("price", "number"), rows)
    assert names(error) == "price"  # the plain feature comes first


def test_a_category_that_alone_separates_the_labels_is_refused():
    rows = [{**r, "note": "late" if r["minutes"] > 30 else f"fine{i % 4}"} for i, r in enumerate(ROWS)]
    with pytest.raises(ChecksFailed, match="'told' alone tells every label"):
        build(outcome_in_disguise("note", "category"), rows)


def test_being_missing_only_for_one_label_is_refused():
    rows = [{**r, "note": None if r["minutes"] > 30 else "fine"} for r in ROWS]
    with pytest.raises(ChecksFailed, match="'told' alone tells every label"):
        build(outcome_in_disguise("note", "category"), rows)


def test_a_perfect_feature_passes_where_its_owner_says_that_it_is_honest():
    rows = [{**r, "note": "late" if r["minutes"] > 30 else "fine"} for r in ROWS]
    service = changed(outcome_in_disguise("note", "category"), perfect=("told",))
    assert build(service, rows).rows.num_rows == 300


def test_a_category_that_hardly_repeats_separates_by_chance_and_passes():
    rows = [{**r, "note": f"once {i}"} for i, r in enumerate(ROWS)]
    assert build(outcome_in_disguise("note", "category"), rows).rows.num_rows == 300


def test_a_number_that_repeats_a_numeric_label_is_refused():
    rows = [{**r, "price": r["minutes"] * 2.0} for r in ROWS]
    with pytest.raises(ChecksFailed, match="'price' alone tells every label"):
        build(changed(SERVICE, label="minutes"), rows)
