"""One definition, three clocks: what is pushed as it becomes known reads as the training set says, on real flights."""

import math
import random
from datetime import timedelta
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from unit.features import flights
from unit.features.flights import utc

from macadam.adapters.lmdb import LmdbStore
from macadam.features import materialise, offline, online, push, relations
from macadam.features.online import EPOCH, OnlineService

SERVICE = flights.service()
EVENTS = 160


@pytest.fixture(scope="module")
def frame():
    """The offline truth: ten days of February, after a month of history."""
    return offline.build(SERVICE, flights.tables(), utc(2013, 2, 1), utc(2013, 2, 11)).rows


@pytest.fixture(scope="module")
def events(frame):
    """Random events of the frame with their requests, by event time."""
    chosen = sorted(random.Random(7).sample(range(frame.num_rows), EVENTS))
    rows = frame.take(pa.array(chosen)).to_pylist()
    by_text = {identity(r): r for r in flights.tables()["flights"].to_pylist()}
    return [(row, {name: by_text[row["_key_row"]][name] for name in SERVICE.inputs}) for row in rows]


def same(offline_value, online_value):
    if offline_value is None or online_value is None:
        return offline_value is online_value
    if isinstance(offline_value, str):
        return offline_value == online_value
    return math.isclose(offline_value, online_value, rel_tol=1e-9, abs_tol=1e-9)


def differences(service, store, events):
    for row, request in events:
        found = service.read(store, "p", request, row["_at"])
        assert list(found) == list(SERVICE.feature_names)
        for name, value in found.items():
            if not same(row[name], value):
                yield row["_at"], name, row[name], value


def as_known_at(table, instants, now):
    """The rows as they were known at `now`: what becomes known later is null."""
    columns = {}
    for name in table.column_names:
        known = instants["departed"] if name in {"dep_time", "dep_delay"} else instants["arrived"]
        early = name in {c for cs in SERVICE.table.known.values() for c in cs} - {"dep_time", "dep_delay"}
        column = table[name]
        columns[name] = column if early else pc.if_else(pc.less_equal(known, now), column, pa.scalar(None, column.type))
    return pa.table(columns)


def identity(row):
    """A flight's row identity as text, as in `_key_row`."""
    at = row["time_hour"].strftime("%Y-%m-%d %H:%M:%S+00")
    return "\x1f".join((at, row["carrier"], str(row["flight"]), row["origin"]))


def instants_of(table):
    """When each flight departed and arrived, in microseconds, by the features' own expressions."""
    with relations.connect() as connection:
        offline.register(connection, SERVICE, SERVICE.table, table)
        query = f"SELECT _rid, epoch_us(departed_at), epoch_us(arrived_at) FROM {offline.relation(SERVICE.table)}"
        found = {rid: (departed, arrived) for rid, departed, arrived in connection.execute(query).fetchall()}
    instants = [found[identity(row)] for row in table.to_pylist()]
    return pa.array([d for d, _ in instants]), pa.array([a for _, a in instants])


def test_rows_pushed_as_they_become_known_read_as_the_training_set_says(tmp_path, frame, events):
    """Departures are pushed without arrivals, landings when they happen, weather when its hour is over. Some batches
    come twice, and rows within one come in any order."""
    tables = flights.tables()
    chance = random.Random(1)
    table = tables["flights"]
    departed, arrived = instants_of(table)
    order = sorted(
        [(at.as_py(), "flights", i) for at, i in zip(departed, range(table.num_rows), strict=True)]
        + [(at.as_py(), "flights", i) for at, i in zip(arrived, range(table.num_rows), strict=True)]
        + [
            (online.microseconds(at.as_py() + timedelta(hours=1)), "weather", i)
            for i, at in enumerate(tables["weather"]["time_hour"])
        ]
    )
    service, store = OnlineService(SERVICE), LmdbStore(tmp_path)
    wrong, done = [], 0
    with push.Pusher([SERVICE]) as pusher:
        pusher.update(store, "p", "planes", tables["planes"])
        for row, request in events:
            now = online.microseconds(row["_at"])
            end = done
            while end < len(order) and order[end][0] <= now:
                end += 1
            for name in ("flights", "weather"):
                indices = [i for _, n, i in order[done:end] if n == name]
                if indices:
                    chance.shuffle(indices)
                    batch = tables[name].take(pa.array(indices))
                    if name == "flights":
                        at = pa.array(indices)
                        batch = as_known_at(batch, {"departed": departed.take(at), "arrived": arrived.take(at)}, now)
                    for _ in range(1 + (chance.random() < 0.1)):
                        pusher.update(store, "p", name, batch)
            done = end
            wrong += differences(service, store, [(row, request)])
    store.close()
    assert not wrong, "\n".join(map(str, wrong[:20]))


def test_a_store_materialised_at_an_instant_reads_as_the_training_set_says(tmp_path, frame, events):
    service, store = OnlineService(SERVICE), LmdbStore(tmp_path)
    wrong = []
    for (row, request), _ in list(pairwise([*events, (None, None)]))[:: EVENTS // 4]:
        until = online.microseconds(row["_at"])
        materialise.load(store, "p", SERVICE, flights.tables(), until)
        wrong += differences(service, store, [(row, request)])
    store.close()
    assert not wrong, "\n".join(map(str, wrong[:20]))


def test_a_store_materialised_long_after_the_data_end_answers_about_their_time(tmp_path, frame, events):
    service, store = OnlineService(SERVICE), LmdbStore(tmp_path)
    tables = flights.tables()
    last = utc(2013, 2, 8)
    history = {**tables, "flights": tables["flights"].filter(pc.less(tables["flights"]["time_hour"], last))}
    materialise.load(store, "p", SERVICE, history, online.microseconds(utc(2026, 1, 1)))
    near = [(r, q) for r, q in events if last - timedelta(hours=6) <= r["_at"] < last]
    assert len(near) > 2
    skewed = {name for _, name, _, _ in differences(service, store, near)}
    store.close()
    assert not skewed - {n for n in SERVICE.feature_names if n.startswith("weather")}  # its newest readings are later


def test_pushes_after_a_materialisation_go_on_where_it_stopped(tmp_path, frame, events):
    """What was loaded is pushed again from two days before: it must not count twice."""
    tables = flights.tables()
    service, store = OnlineService(SERVICE), LmdbStore(tmp_path)
    middle, end = utc(2013, 2, 6, 12), utc(2013, 2, 7)
    materialise.load(store, "p", SERVICE, tables, online.microseconds(middle))
    with push.Pusher([SERVICE]) as pusher:
        recent = tables["flights"].filter(pc.greater(tables["flights"]["time_hour"], middle - timedelta(days=2)))
        pusher.update(store, "p", "flights", recent.filter(pc.less(recent["time_hour"], end)))
        recent = tables["weather"].filter(pc.greater(tables["weather"]["time_hour"], middle - timedelta(days=2)))
        pusher.update(store, "p", "weather", recent.filter(pc.less(recent["time_hour"], middle + timedelta(hours=7))))
    near = [(r, q) for r, q in events if middle <= r["_at"] < middle + timedelta(hours=7)]
    assert len(near) > 3
    assert list(differences(service, store, near)) == []
    store.close()


def test_the_real_features_leave_few_values_unknown(frame):
    """Guards the tests above against comparing nothing with nothing."""
    for name in SERVICE.feature_names:
        unknown = frame[name].null_count / frame.num_rows
        limit = 0.95 if name == "weather_wind_gust" else 0.25
        assert unknown < limit, name
    assert frame["_at"][0].as_py() >= EPOCH
