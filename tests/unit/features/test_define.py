import msgspec
import pytest
from unit.features import flights
from unit.features.shop import SERVICE, items, orders, shop

from macadam.errors import InvalidInput
from macadam.features import define
from macadam.features.define import (
    Definitions,
    Entity,
    FeatureService,
    Latest,
    Lookup,
    RequestFeature,
    Table,
    WindowAggregate,
    fingerprint,
)

WINDOW = {"name": "w", "table": orders, "entity": shop, "value": "minutes"}
SMALL = {"name": "s", "table": orders, "event_time": "ordered_at", "inputs": {"shop": "category"}, "label": "late"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Entity(name="e", keys=()), "no keys"),
        (lambda: Entity(name="1e", keys=("a",)), "name is '1e'"),
        (lambda: Table(name="t", row_id=()), "no row_id"),
        (lambda: Table(name="t", row_id=("a",), known={"x": ("a",)}), "no known_at"),
        (lambda: Table(name="t", row_id=("a",), known_at="z", known={"x": ("a",), "y": ("a",)}), "two instants"),
        (lambda: WindowAggregate(**WINDOW, windows=()), "no windows"),
        (lambda: WindowAggregate(**WINDOW, windows=("90m",)), "not a multiple of its tile"),
        (lambda: WindowAggregate(**WINDOW, windows=("1y",)), "not a duration"),
        (lambda: WindowAggregate(name="w", table=items, entity=shop, value="1", windows=("1h",)), "does not say when"),
        (lambda: Latest(name="l", table=orders, entity=shop, columns={}), "no columns"),
        (lambda: Latest(name="l", table=orders, entity=shop, columns={"age": "1"}, age=True), "'age'"),
        (lambda: Lookup(name="l", table=orders, entity=shop, columns={"a": "price"}), "event's future"),
        (lambda: RequestFeature(name="r", function="eval"), "does not exist"),
        (lambda: RequestFeature(name="r", function="ratio", inputs=("a",)), "1 arguments to ratio, expected 2"),
        (lambda: RequestFeature(name="r", function="month", inputs=("event_time",), zone="Mars/Base"), "time zone"),
        (lambda: FeatureService(**SMALL, features=()), "no features"),
        (lambda: FeatureService(**SMALL, features=(RequestFeature(name="price"),)), "needs 'price', which is no input"),
        (lambda: FeatureService(**SMALL, features=(RequestFeature(name="shop"),)), "is a category, expected a number"),
        (
            lambda: FeatureService(**SMALL, features=(RequestFeature(name="h", function="month", inputs=("shop",)),)),
            "is a category, expected a time",
        ),
        (lambda: FeatureService(**SMALL, features=(RequestFeature(name="shop", function="category"),) * 2), "twice"),
        (
            lambda: FeatureService(
                **SMALL, features=(RequestFeature(name="label", function="category", inputs=("shop",)),)
            ),
            "reserved",
        ),
    ],
)
def test_what_cannot_be_meant_cannot_be_built(make, words):
    with pytest.raises(InvalidInput, match=words):
        make()


def test_names_say_the_view_function_and_window():
    assert SERVICE.features[0].feature_names[:3] == (
        "shop_minutes_mean_2h",
        "shop_minutes_mean_6h",
        "shop_minutes_count_2h",
    )
    assert SERVICE.features[2].feature_names == ("last_minutes", "last_note", "last_age")


@pytest.mark.parametrize("service", [SERVICE, flights.service()])
def test_definitions_survive_json_also_where_keys_are_sorted(service):
    definitions = Definitions(services=(service,))
    plain = msgspec.json.decode(msgspec.json.encode(definitions, order="sorted"))
    again = define.decode(plain)
    assert again == definitions
    assert again.digest == definitions.digest
    assert [fingerprint(v) for v in again.services[0].table_views] == [fingerprint(v) for v in service.table_views]


def test_the_order_in_which_columns_are_written_changes_nothing():
    one = Latest(name="l", table=orders, entity=shop, columns={"a": "minutes", "b": "price"})
    other = Latest(name="l", table=orders, entity=shop, columns={"b": "price", "a": "minutes"})
    assert one.feature_names == other.feature_names
    assert fingerprint(one) == fingerprint(other)


def test_a_fingerprint_follows_the_view_and_its_table():
    view = WindowAggregate(**WINDOW, windows=("1h",))
    table = msgspec.structs.replace(orders, derive={**orders.derive, "late": "minutes > 31"})
    assert fingerprint(view) != fingerprint(msgspec.structs.replace(view, windows=("2h",)))
    assert fingerprint(view) != fingerprint(msgspec.structs.replace(view, table=table))


def test_two_different_views_of_one_name_are_refused():
    view = SERVICE.features[0]
    other = msgspec.structs.replace(
        SERVICE, name="other", features=(msgspec.structs.replace(view, value="minutes + 1"),)
    )
    with pytest.raises(InvalidInput, match="Two different definitions of the view 'shop_minutes'"):
        Definitions(services=(SERVICE, other))


def test_an_unknown_service_is_answered_with_those_there_are():
    with pytest.raises(InvalidInput, match="Choose one of: deliveries"):
        Definitions(services=(SERVICE,)).service("x")
