"""Training sets: every event of the spine with its features as they were known at the event's own time.

Each view is joined on its own, point in time, and its rows are counted against the spine: none is lost or doubled.
The result depends on the rows alone, not on their order in files or on the number of threads.
"""

# ruff: noqa: S608 - names are quoted and expressions parsed (`expressions.columns`) before they meet SQL

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.errors import ChecksFailed, IntegrityError
from macadam.features import expressions, functions, leakage, relations
from macadam.features.define import (
    EVENT_TIME,
    FeatureService,
    Kind,
    Latest,
    RequestFeature,
    Table,
    TableView,
    WindowAggregate,
)
from macadam.features.online import EPOCH, microseconds
from macadam.lazy import lazy

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    import pyarrow.compute as pc
else:
    duckdb = lazy("duckdb")
    pa = lazy("pyarrow")
    pc = lazy("pyarrow.compute")

_CHUNK = 65_536  # rows whose request features are Python values at one time

Progress = Callable[[str, int, int], None]


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """A training set in memory.

    rows: features in the service's order (float64 or text), 'label', '_at' (timestamp, µs, UTC), '_key_…' (text);
    sorted by event time, then row identity. kinds: of each feature. unlabelled: events left out as their label is
    null.
    """

    rows: "pa.Table"
    kinds: dict[str, Kind]
    unlabelled: int


def build(
    service: FeatureService,
    tables: "Mapping[str, pa.Table]",
    start: datetime,
    end: datetime,
    *,
    spill: Path | None = None,
    progress: Progress = lambda _what, _done, _total: None,
) -> Frame:
    """Joins the events with start <= event time < end. tables: stored rows by name, whole snapshots.

    Raises ChecksFailed if definitions do not fit the data, a row identity is not unique, or a feature leaks; naming
    the feature.
    """
    leakage.check(service)
    with relations.connect(spill=spill) as connection, relations.explained(f"Service {service.name!r}"):
        for table in service.tables.values():
            register(connection, service, table, tables[table.name])
        unlabelled = _make_spine(connection, service, start, end)
        leakage.check_instants(connection, service, relation)
        order = connection.sql("SELECT _n FROM spine ORDER BY _n").to_arrow_table()["_n"]
        columns: dict[str, pa.ChunkedArray[Any]] = {}
        for done, feature in enumerate(service.features):
            progress(feature.name, done, len(service.features))
            with relations.explained(f"Feature {feature.name!r}"):
                if isinstance(feature, RequestFeature):
                    columns[feature.name] = _requested(connection, feature, columns)
                else:
                    columns |= _joined(connection, feature, service, order)
        rows = _assembled(connection, service, columns)
        leakage.check_separation(connection, service, rows)
    kinds: dict[str, Kind] = {n: "category" if pa.types.is_string(columns[n].type) else "number" for n in columns}
    return Frame(rows=rows, kinds=kinds, unlabelled=unlabelled)


def relation(table: Table) -> str:
    """The SQL name of a table's rows with their derived columns."""
    return relations.name("rows " + table.name)


def stored_columns(service: FeatureService, table: Table) -> frozenset[str]:
    """The stored columns of a table, in lower case, that a service reads."""
    more = [service.event_time, service.label, *map(relations.name, service.inputs)] if table == service.table else []
    wanted = relations.used_columns(table, service.table_views, more)
    return wanted.union(*(expressions.base_columns(table, i) for i in leakage.instants_of(table, service)))


def register(connection: "duckdb.DuckDBPyConnection", service: FeatureService, table: Table, rows: "pa.Table") -> None:
    """Makes a table's rows, with their derived columns, available as `relation(table)`, in no particular order.

    Raises ChecksFailed.
    """
    relations.refuse_ambiguous(rows)
    connection.register("stored", relations.narrow(table, rows, stored_columns(service, table)))
    # Once for all views: time zone arithmetic costs more than the joins.
    with relations.explained(f"A derived column of table {table.name!r}"):
        connection.execute(f"CREATE TEMP TABLE {relation(table)} AS {relations.derived(table, 'stored')}")
    connection.unregister("stored")
    twice = connection.sql(f"SELECT count(*) - count(DISTINCT _rid) FROM {relation(table)}").fetchall()[0][0]
    if twice:
        raise ChecksFailed(
            f"In table {table.name!r} {twice} rows have the identity ({', '.join(table.row_id)}) of another row.",
            next_step="Make it unique in the contract, or give the table a row_id that is.",
        )


def _make_spine(
    connection: "duckdb.DuckDBPyConnection", service: FeatureService, start: datetime, end: datetime
) -> int:
    """Creates the table `spine`; returns how many events had no label."""
    rows = relation(service.table)
    label = _label(connection, service, rows)
    fields = [
        "_rid",
        f"{relations.instant(service.event_time)} AS _at",
        f"{relations.instant(service.known_label)} AS _label_known",
        f"{label} AS _label",
        *(f"CAST({relations.name(n)} AS VARCHAR) AS {key_of(n)}" for n in _keys(connection, service, rows)),
        *_inputs(connection, service, rows),
    ]
    low, high = microseconds(start), microseconds(end)
    connection.execute(
        f"CREATE TEMP TABLE events AS SELECT {', '.join(fields)} FROM {rows}"
        f" WHERE {relations.instant(service.event_time)} >= {low} AND {relations.instant(service.event_time)} < {high}"
    )
    connection.execute(
        "CREATE TEMP TABLE spine AS SELECT row_number() OVER (ORDER BY _at, _rid) - 1 AS _n, * FROM events"
        " WHERE _label IS NOT NULL"
    )
    counts = "SELECT count(*) FILTER (_label IS NULL), count(*) FROM events"
    unlabelled, found = connection.sql(counts).fetchall()[0]
    connection.execute("DROP TABLE events")
    if found == unlabelled:
        raise ChecksFailed(
            f"Table {service.table.name!r} has no labelled event from {start.isoformat()} to {end.isoformat()}.",
            next_step="Ingest that time, or choose another range.",
        )
    return int(unlabelled)


def key_of(name: str) -> str:
    return relations.name("key " + name)


def input_of(name: str) -> str:
    return relations.name("input " + name)


def entity_keys(service: FeatureService) -> list[str]:
    """The inputs that some entity is found by, in order of first use."""
    return list(dict.fromkeys(k for v in service.table_views for k in v.entity.keys))


def _keys(connection: "duckdb.DuckDBPyConnection", service: FeatureService, rows: str) -> list[str]:
    keys = entity_keys(service)
    if keys:
        types = relations.describe(connection, {k: relations.name(k) for k in keys}, rows, f"Service {service.name!r}")
        for key, kind in types.items():
            if not relations.is_key(kind):
                raise ChecksFailed(
                    f"The key {key!r} of service {service.name!r} is {kind}, and keys are text or whole numbers.",
                    next_step="Cast it in the table's derived columns.",
                )
    return keys


def _inputs(connection: "duckdb.DuckDBPyConnection", service: FeatureService, rows: str) -> Iterator[str]:
    if not service.inputs:
        return
    fields = {n: relations.name(n) for n in service.inputs}
    types = relations.describe(connection, fields, rows, f"Service {service.name!r}")
    for name, kind in service.inputs.items():
        if kind == "number" and not relations.is_number(types[name]):
            raise ChecksFailed(
                f"The input {name!r} of service {service.name!r} is {types[name]}, expected a number.",
                next_step="Declare it as a category, or cast it in the table's derived columns.",
            )
        number = f"CAST({relations.name(name)} AS DOUBLE)"
        value = f"CASE WHEN isfinite({number}) THEN {number} END"
        yield f"{value if kind == 'number' else f'CAST({relations.name(name)} AS VARCHAR)'} AS {input_of(name)}"


def _label(connection: "duckdb.DuckDBPyConnection", service: FeatureService, rows: str) -> str:
    kind = relations.describe(connection, {"label": service.label}, rows, f"The label of {service.name!r}")["label"]
    if kind == "VARCHAR":
        return f"({service.label}\n)"
    if not relations.is_number(kind):
        raise ChecksFailed(
            f"The label {service.label!r} of service {service.name!r} is {kind}, expected a number, boolean or text.",
            next_step="Cast it.",
        )
    fractional = kind in {"FLOAT", "DOUBLE"} or kind.startswith("DECIMAL")
    return f"CAST(({service.label}\n) AS {'DOUBLE' if fractional else 'BIGINT'})"


def _joined(
    connection: "duckdb.DuckDBPyConnection", view: TableView, service: FeatureService, order: "pa.ChunkedArray[Any]"
) -> "dict[str, pa.ChunkedArray[Any]]":
    """A view's features, one value for each event, in the spine's order."""
    connection.execute(
        f"CREATE TEMP TABLE source AS SELECT * FROM ({relations.source(connection, view, relation(view.table))})"
        f" WHERE _known IS NOT NULL AND {_present(relations.key_columns(view))}"
    )
    leakage.check_own_row(connection, service, view)
    if isinstance(view, WindowAggregate):
        query = _windows(connection, view)
    elif isinstance(view, Latest):
        query = _latest(connection, view)
    else:
        query = _lookup(connection, view)
    found = connection.sql(f"{query} ORDER BY _n").to_arrow_table()
    for table in ("source", "sums", "edges"):
        connection.execute(f"DROP TABLE IF EXISTS {table}")
    if found.num_rows != len(order) or not found["_n"].equals(order):
        raise IntegrityError(
            f"The join of view {view.name!r} gave {found.num_rows} rows for {len(order)} events.",
            next_step="Report this: no training set was written.",
        )
    return {n: found.column(i + 1) for i, n in enumerate(view.feature_names)}


def _present(columns: Sequence[str]) -> str:
    return " AND ".join(f"{c} IS NOT NULL" for c in columns)


def match(view: TableView, left: str, right: str) -> str:
    """SQL that a spine row's keys are those of a source row."""
    pairs = zip(view.entity.keys, relations.key_columns(view), strict=True)
    return " AND ".join(f"{left}.{key_of(k)} = {right}.{c}" for k, c in pairs)


def _windows(connection: "duckdb.DuckDBPyConnection", view: WindowAggregate) -> str:
    """Prefix sums over tiles; a window is the difference of two. Edges are looked up once per (entity, tile)."""
    keys = relations.key_columns(view)
    connection.execute(f"CREATE TEMP TABLE sums AS {running_sums(view)}")
    at = relations.floor("_at", view.tile_us)
    spine_keys = [f"{key_of(k)} AS {c}" for k, c in zip(view.entity.keys, keys, strict=True)]
    query = f"SELECT DISTINCT {', '.join(spine_keys)}, {at} AS edge FROM spine WHERE " + _present(
        [key_of(k) for k in view.entity.keys]
    )
    for i, length in enumerate((0, *view.tiles)):
        on = " AND ".join(f"p.{c} = q.{c}" for c in keys)
        query = (
            f"SELECT p.*, coalesce(q.n, 0) AS n{i}, coalesce(q.s, 0) AS s{i} FROM ({query}) p"
            f" ASOF LEFT JOIN sums q ON {on} AND p.edge - {length} > q.tile"
        )
    connection.execute(f"CREATE TEMP TABLE edges AS {query}")
    values = [_aggregate(f, i) for f in view.functions for i in range(1, len(view.windows) + 1)]
    return (
        f"SELECT p._n, {', '.join(values)} FROM spine p LEFT JOIN edges e"
        f" ON {match(view, 'p', 'e')} AND {relations.floor('p._at', view.tile_us)} = e.edge"
    )


def running_sums(view: WindowAggregate) -> str:
    """SELECT of the running count and sum up to each tile of each entity, from the view's `source`."""
    keys = ", ".join(relations.key_columns(view))
    # Sums in a fixed order: floating point addition is not associative, and the result must not depend on threads.
    return (
        f"WITH tiles AS (SELECT {keys}, {relations.floor('_known', view.tile_us)} AS tile, count(_v0) AS n,"
        f" sum(_v0 ORDER BY _known, _rid) AS s FROM source WHERE _v0 IS NOT NULL GROUP BY ALL)"
        f" SELECT {keys}, tile, CAST(sum(n) OVER w AS DOUBLE) AS n, sum(s) OVER w AS s FROM tiles"
        f" WINDOW w AS (PARTITION BY {keys} ORDER BY tile ROWS UNBOUNDED PRECEDING)"
    )


def _aggregate(function: str, i: int) -> str:
    count, total = f"(e.n0 - e.n{i})", f"(e.s0 - e.s{i})"
    if function == "count":
        return count
    if function == "sum":
        return total
    return f"CASE WHEN {count} > 0 THEN {total} / {count} END"


def _latest(connection: "duckdb.DuckDBPyConnection", view: Latest) -> str:
    keys = ", ".join(relations.key_columns(view))
    connection.execute(
        "CREATE TEMP TABLE sums AS SELECT * FROM source"
        f" QUALIFY row_number() OVER (PARTITION BY {keys}, _known ORDER BY _rid DESC) = 1"
    )
    fresh = f"p._at - q._known <= {view.max_age_us}" if view.max_age_us else "true"
    values = [f"CASE WHEN {fresh} THEN q.{c} END" for c in relations.value_columns(view)]
    if view.age:
        values.append(f"CASE WHEN {fresh} THEN (p._at - q._known) / 1e6 END")
    on = f"{match(view, 'p', 'q')} AND p._at >= q._known"
    return f"SELECT p._n, {', '.join(values)} FROM spine p ASOF LEFT JOIN sums q ON {on}"


def _lookup(connection: "duckdb.DuckDBPyConnection", view: TableView) -> str:
    keys = ", ".join(relations.key_columns(view))
    twice = connection.sql(f"SELECT count(*) - count(DISTINCT ({keys})) FROM source").fetchall()[0][0]
    if twice:
        raise ChecksFailed(
            f"Lookup {view.name!r} finds more than one row for {twice} keys of table {view.table.name!r}.",
            next_step="Look up by a key that is unique, or use Latest.",
            details={"feature": view.name},
        )
    values = [f"q.{c}" for c in relations.value_columns(view)]
    return f"SELECT p._n, {', '.join(values)} FROM spine p LEFT JOIN source q ON {match(view, 'p', 'q')}"


def _requested(
    connection: "duckdb.DuckDBPyConnection", feature: RequestFeature, done: "Mapping[str, pa.ChunkedArray[Any]]"
) -> "pa.ChunkedArray[Any]":
    """A request feature by the function that serving calls, value by value."""
    arguments = [_argument(connection, a, done) for a in feature.arguments]
    category = functions.FUNCTIONS[feature.function].category
    if feature.function in {"number", "category"} and pa.types.is_string(arguments[0].type) == category:
        return arguments[0]
    function = functions.compiled(feature.name, feature.function, feature.zone)
    kind = pa.string() if category else pa.float64()
    clocked = [a == EVENT_TIME for a in feature.arguments]
    try:
        if len(arguments) == 1:  # once per distinct value
            coded = arguments[0].combine_chunks().dictionary_encode()
            values = _python(coded.dictionary, clock=clocked[0])
            return pa.chunked_array([pa.array(map(function, values), kind).take(coded.indices)])
        pieces = []
        for offset in range(0, len(arguments[0]), _CHUNK):
            columns = [_python(c.slice(offset, _CHUNK), clock=t) for c, t in zip(arguments, clocked, strict=True)]
            pieces.append(pa.array(map(function, *columns), kind))
        return pa.chunked_array(pieces, kind)
    except (TypeError, ValueError, ArithmeticError, pa.ArrowException) as error:
        raise ChecksFailed(
            f"Request feature {feature.name!r} does not fit its inputs: {error}.",
            next_step="See macadam.features.functions for what each function takes.",
            details={"feature": feature.name},
        ) from error


def _argument(
    connection: "duckdb.DuckDBPyConnection", name: str, done: "Mapping[str, pa.ChunkedArray[Any]]"
) -> "pa.ChunkedArray[Any]":
    """An earlier feature hides an input of the same name, as it does when serving."""
    if name in done:
        return done[name]
    column = "_at" if name == EVENT_TIME else input_of(name)
    rows: pa.Table = connection.sql(f"SELECT {column} AS x FROM spine ORDER BY _n").to_arrow_table()
    return rows["x"]


def _python(column: "pa.Array[Any] | pa.ChunkedArray[Any]", *, clock: bool) -> list[object]:
    values: list[object] = column.to_pylist()
    return [EPOCH + timedelta(microseconds=v) for v in values if isinstance(v, int)] if clock else values


def _assembled(
    connection: "duckdb.DuckDBPyConnection", service: FeatureService, columns: "Mapping[str, pa.ChunkedArray[Any]]"
) -> "pa.Table":
    keys = entity_keys(service)
    fields = [
        "_label AS label",
        "_at",
        "_rid AS _key_row",
        *(f"{key_of(k)} AS {relations.name('_key_' + k)}" for k in keys),
    ]
    rest = connection.sql(f"SELECT {', '.join(fields)} FROM spine ORDER BY _n").to_arrow_table()
    at = pc.cast(rest["_at"], pa.timestamp("us", tz="UTC"))
    rest = rest.set_column(1, "_at", at)
    arrays = [*columns.values(), *rest.columns]
    return pa.table(dict(zip([*columns, *rest.column_names], arrays, strict=True)))
