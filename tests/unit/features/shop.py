"""A small service over made-up tables: orders with delivery times, and what is right for it, computed row by row."""

import math
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from macadam.features.define import Entity, FeatureService, Latest, Lookup, RequestFeature, Table, WindowAggregate

START = datetime(2024, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)

orders = Table(
    name="orders",
    row_id=("id",),
    derive={"late": "minutes > 30", "delivered_at": "ordered_at + to_minutes(minutes)"},
    known={"ordered_at": ("id", "shop", "item", "price", "ordered_at")},
    known_at="delivered_at",
)
items = Table(name="items", row_id=("item",))
shop = Entity(name="shop", keys=("shop",))
item = Entity(name="item", keys=("item",))
dish = Entity(name="dish", keys=("shop", "item"))

SERVICE = FeatureService(
    name="deliveries",
    table=orders,
    event_time="ordered_at",
    inputs={"shop": "category", "item": "number", "price": "number"},
    label="late",
    features=(
        WindowAggregate(
            name="shop_minutes",
            table=orders,
            entity=shop,
            value="minutes",
            functions=("mean", "count", "sum"),
            windows=("2h", "6h"),
        ),
        WindowAggregate(name="dish_late", table=orders, entity=dish, value="late", windows=("1d",)),
        Latest(name="last", table=orders, entity=shop, columns={"minutes": "minutes", "note": "note"}, age=True),
        Latest(name="recent", table=orders, entity=dish, columns={"minutes": "minutes"}, max_age="2h"),
        Lookup(name="item", table=items, entity=item, columns={"weight": "weight"}),
        RequestFeature(name="price"),
        RequestFeature(name="hour", function="hour_of_day", inputs=("event_time",), zone="Europe/Berlin"),
        RequestFeature(name="price_per_weight", function="ratio", inputs=("price", "item_weight")),
    ),
)

ORDERS = pa.schema(
    {
        "id": pa.int64(),
        "shop": pa.string(),
        "item": pa.int64(),
        "price": pa.float64(),
        "minutes": pa.int64(),
        "note": pa.string(),
        "ordered_at": pa.timestamp("us", tz="UTC"),
    }
)
ITEMS = pa.table({"item": [1, 2], "weight": [0.5, 0.0]})


def table(rows):
    return pa.Table.from_pylist(rows, schema=ORDERS)


def order(number, *, hours=0.0, minutes=20, shop="north", item=1, price=3.0, note="ok"):
    ordered_at = START + hours * HOUR
    return {
        "id": number,
        "shop": shop,
        "item": item,
        "price": price,
        "minutes": minutes,
        "note": note,
        "ordered_at": ordered_at,
    }


def request(row):
    return {name: row[name] for name in SERVICE.inputs}


def expected(row, rows):
    """The features of an order by the definitions' words, the slow way."""
    at = row["ordered_at"]
    known = [
        (r["ordered_at"] + timedelta(minutes=r["minutes"]), str(r["id"]), r) for r in rows if r["minutes"] is not None
    ]
    known = [k for k in known if k[2]["shop"] is not None and k[0] <= at]
    ours = [k for k in known if k[2]["shop"] == row["shop"]]
    dishes = [k for k in ours if k[2]["item"] == row["item"] and k[2]["item"] is not None]
    edge = at.replace(minute=0, second=0, microsecond=0)
    found = {}
    for function in ("mean", "count", "sum"):
        for hours in (2, 6):
            values = [k[2]["minutes"] for k in ours if edge - hours * HOUR <= k[0] < edge]
            found[f"shop_minutes_{function}_{hours}h"] = _aggregate(function, values)
    found["dish_late_mean_1d"] = _aggregate(
        "mean", [float(k[2]["minutes"] > 30) for k in dishes if edge - 24 * HOUR <= k[0] < edge]
    )
    newest = max(ours, key=lambda k: k[:2], default=None)
    found["last_minutes"] = newest and float(newest[2]["minutes"])
    found["last_note"] = newest and newest[2]["note"]
    found["last_age"] = newest and (at - newest[0]) / timedelta(seconds=1)
    recent = max(dishes, key=lambda k: k[:2], default=None)
    found["recent_minutes"] = float(recent[2]["minutes"]) if recent and at - recent[0] <= 2 * HOUR else None
    weight = {1: 0.5, 2: 0.0}.get(row["item"])
    found["item_weight"] = weight
    found["price"] = row["price"]
    found["hour"] = float((at + HOUR).hour)  # Berlin in January
    found["price_per_weight"] = row["price"] / weight if row["price"] is not None and weight else None
    if row["shop"] is None:
        found.update({n: None for n in found if n.startswith(("shop_", "dish_", "last_", "recent_"))})
    if row["item"] is None:
        found.update({n: None for n in found if n.startswith(("dish_", "recent_"))})
    return found


def _aggregate(function, values):
    if function == "count":
        return float(len(values))
    if function == "sum":
        return float(sum(values))
    return sum(values) / len(values) if values else None


def differences(found, wanted):
    assert set(found) >= set(wanted)
    return {n: (found[n], wanted[n]) for n in wanted if not _same(found[n], wanted[n])}


def _same(one, other):
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)
    return one == other and type(one) is type(other)
