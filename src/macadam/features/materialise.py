"""Loading the online store from published snapshots, so that it answers as a training set would at one instant.

The new values, and an empty value in place of every old one that has no successor, are written in one atomic put:
a reader sees the store before or after, and a crash leaves one or the other.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.features import offline, online, push, relations
from macadam.features.define import FeatureService, Lookup, TableView, WindowAggregate
from macadam.features.online import LatestRow
from macadam.features.tiles import SLACK, Prefix
from macadam.ports import OnlineStore

# ruff: noqa: S608 - names are quoted and expressions parsed (`expressions.columns`) before they meet SQL

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb
    import pyarrow as pa

_BATCH = 10_000
"""Rows that are Python values at one time."""


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """keys: values written. rows: source rows that they came from, counted once per view."""

    keys: int
    rows: int


def load(
    store: OnlineStore,
    project: str,
    service: FeatureService,
    tables: "dict[str, pa.Table]",
    until: int,
    *,
    spill: "Path | None" = None,
) -> Loaded:
    """Replaces what the store holds for a service's views by the rows known at `until` (microseconds since 1970).

    The caller is the only writer. Raises ChecksFailed.
    """
    new: dict[bytes, bytes] = {}
    old: list[bytes] = []
    total = 0
    with relations.connect(spill=spill) as connection, relations.explained(f"Service {service.name!r}"):
        for table in service.tables.values():
            offline.register(connection, service, table, tables[table.name])
        for view in service.table_views:
            old += [k for start in _prefixes(project, view) for k, _ in store.scan(start)]
            source = relations.source(connection, view, offline.relation(view.table))
            there = " AND ".join(f"{c} IS NOT NULL" for c in relations.key_columns(view))
            connection.execute(
                f"CREATE OR REPLACE TEMP TABLE source AS SELECT * FROM ({source}) WHERE _known <= {until} AND {there}"
            )
            rows, newest = connection.sql("SELECT count(*), max(_known) FROM source").fetchall()[0]
            total += rows
            if rows:
                new.update(_state(connection, project, view, newest))
    gone = [k for k in dict.fromkeys(old) if k not in new]
    store.put([*new.items(), *((k, b"") for k in gone)])
    if gone:
        store.delete(gone)
    return Loaded(keys=len(new), rows=total)


def _prefixes(project: str, view: TableView) -> tuple[bytes, bytes]:
    return online.prefix(project, view), push.mark_prefix(project, view)


def _state(
    connection: "duckdb.DuckDBPyConnection", project: str, view: TableView, newest: int
) -> Iterator[tuple[bytes, bytes]]:
    """newest: when the last of all rows became known. What is old is judged by the data's clock, not by `until`:
    data that end last year are asked about last year.
    """
    if isinstance(view, WindowAggregate):
        yield from _windows(connection, project, view, newest // view.tile_us)
        yield from _marks(connection, project, view, newest // view.tile_us)
    else:
        yield from _newest(connection, project, view)


def _windows(
    connection: "duckdb.DuckDBPyConnection", project: str, view: WindowAggregate, newest: int
) -> Iterator[tuple[bytes, bytes]]:
    start = online.prefix(project, view)
    keys = ", ".join(relations.key_columns(view))
    query = (
        f"SELECT {keys}, list(tile ORDER BY tile), list(n ORDER BY tile), list(s ORDER BY tile)"
        f" FROM ({offline.running_sums(view)}) GROUP BY {keys}"
    )
    for *parts, tiles, counts, sums in _rows(connection, query):
        prefix = Prefix.of(tiles, counts, sums)
        prefix.trim(max(view.tiles), newest=newest)
        yield start + online.entity_key(parts), prefix.pack()


def _marks(
    connection: "duckdb.DuckDBPyConnection", project: str, view: WindowAggregate, newest: int
) -> Iterator[tuple[bytes, bytes]]:
    """A mark for each row that a window can still see; an older one changes nothing if it is pushed again."""
    start = push.mark_prefix(project, view)
    horizon = (newest - max(view.tiles) - SLACK) * view.tile_us
    for (row_id,) in _rows(connection, f"SELECT _rid FROM source WHERE _known >= {horizon} AND _v0 IS NOT NULL"):
        yield start + push.mark(row_id), push.MARK


def _newest(connection: "duckdb.DuckDBPyConnection", project: str, view: TableView) -> Iterator[tuple[bytes, bytes]]:
    start = online.prefix(project, view)
    keys, values = relations.key_columns(view), relations.value_columns(view)
    kept = 1 if isinstance(view, Lookup) else online.HISTORY
    query = (
        f"SELECT {', '.join(keys)}, _known, _rid, {', '.join(values)} FROM source"
        f" QUALIFY row_number() OVER (PARTITION BY {', '.join(keys)} ORDER BY _known DESC, _rid DESC) <= {kept}"
        f" ORDER BY {', '.join(keys)}, _known, _rid"
    )
    held: list[LatestRow] = []
    entity: list[str] = []
    for row in _rows(connection, query):
        parts, (known, row_id), found = row[: len(keys)], row[len(keys) : len(keys) + 2], row[len(keys) + 2 :]
        if list(parts) != entity:
            if held:
                yield start + online.entity_key(entity), online.pack_rows(held)
            entity, held = list(parts), []
        held.append(LatestRow(known, row_id, tuple(found)))
    if held:
        yield start + online.entity_key(entity), online.pack_rows(held)


def _rows(connection: "duckdb.DuckDBPyConnection", query: str) -> Iterator[tuple[Any, ...]]:
    result = connection.execute(query)
    while batch := result.fetchmany(_BATCH):
        yield from batch
