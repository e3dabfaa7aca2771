"""Applying rows to the online store as they become known: in any order, each once, all of a batch or none.

Rows are evaluated by the same SQL as training sets. What a batch changes is read, changed and written in one atomic
put, together with a mark for each row and window view, so that a row pushed again is not counted again, also after a
crash in between. Two batches at once would lose one's changes: callers hold the store's lock (see `service`).
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self

import msgspec

from macadam.errors import ChecksFailed, MacadamError
from macadam.features import online, relations
from macadam.features.define import FeatureService, Latest, Lookup, Table, TableView, WindowAggregate, fingerprint
from macadam.features.online import LatestRow
from macadam.features.tiles import Prefix
from macadam.lazy import lazy
from macadam.ports import OnlineStore
from macadam.values import parse_instant

# ruff: noqa: S608 - names are quoted and expressions parsed (`expressions.columns`) before they meet SQL

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
else:
    duckdb = lazy("duckdb")
    pa = lazy("pyarrow")

MARK = b"1"


class Counts(msgspec.Struct, kw_only=True):
    """Rows by view: what became of them. See `PushReport`."""

    applied: int = 0
    duplicates: int = 0
    waiting: int = 0
    late: int = 0


class SourceRow(msgspec.Struct, frozen=True, array_like=True):
    """One row of a view's source: see `relations`. key: None if a part of it is missing."""

    key: bytes | None
    row_id: str
    known: int | None
    values: tuple[Any, ...]


class Evaluator:
    """Computes the source rows of some views of one table. Keeps a database, since opening one takes longer than a push."""

    def __init__(self, table: Table, views: Sequence[TableView]) -> None:
        self.table = table
        self.views = list(views)
        self._needed = relations.used_columns(table, views)
        # A push is a few rows: planning would cost ten times what running does, so plans are prepared, unoptimised.
        self._connection = relations.connect(threads=1, memory="256MB", optimise=False)
        self._turn = threading.Lock()
        self._plans: dict[str, str] = {}

    def run(self, rows: "pa.Table") -> dict[str, list[SourceRow]]:
        """Source rows by view name. Raises ChecksFailed if a column is missing or of the wrong type."""
        rows = relations.narrow(self.table, rows, self._needed)
        with self._turn:
            self._connection.register("incoming", rows)
            try:
                plan = self._plan(rows)
                self._connection.execute(f"DELETE FROM pushed_{plan}")
                self._connection.execute(f"INSERT INTO pushed_{plan} SELECT * FROM incoming")
                found = self._connection.execute(f"EXECUTE plan_{plan}").fetchall()
            except duckdb.Error as error:
                raise ChecksFailed(
                    f"The rows do not fit the features of table {self.table.name!r}: {error}.",
                    next_step="Compare the rows with the table's contract.",
                ) from error
            finally:
                self._connection.unregister("incoming")
        return self._split(found)

    def _plan(self, rows: "pa.Table") -> str:
        """The number of the prepared plan for rows of this shape."""
        shape = str(rows.schema)
        if shape not in self._plans:
            plan = str(len(self._plans))
            self._connection.execute(f"CREATE TABLE pushed_{plan} AS SELECT * FROM incoming WHERE false")
            derived = f"({relations.derived(self.table, f'pushed_{plan}')})"
            fields: list[str] = []
            for view in self.views:
                fields += relations.source_fields(self._connection, view, derived).values()
            self._connection.execute(f"PREPARE plan_{plan} AS SELECT {', '.join(fields)} FROM {derived}")
            self._plans[shape] = plan
        return self._plans[shape]

    def _split(self, found: list[tuple[Any, ...]]) -> dict[str, list[SourceRow]]:
        answer: dict[str, list[SourceRow]] = {}
        at = 0
        for view in self.views:
            keys, values = len(view.entity.keys), len(relations.value_columns(view))
            rows = []
            for row in found:
                parts = row[at : at + keys]
                rest = at + keys
                key = None if None in parts else online.entity_key(parts)
                rows.append(SourceRow(key, row[rest], row[rest + 1], tuple(row[rest + 2 : rest + 2 + values])))
            answer[view.name] = rows
            at += keys + 2 + values
        return answer

    def close(self) -> None:
        self._connection.close()


class Pusher:
    """Applies rows to every view of the given services. Close it, or use it as a context manager."""

    def __init__(self, services: Iterable[FeatureService]) -> None:
        views = {fingerprint(v): v for s in services for v in s.table_views}
        self._by_table: dict[str, list[Evaluator]] = {}
        # Two versions of the definitions may see one table differently: an evaluator for each.
        tables: dict[bytes, list[TableView]] = {}
        for view in views.values():
            tables.setdefault(msgspec.json.encode(view.table, order="deterministic"), []).append(view)
        for group in tables.values():
            named = self._by_table.setdefault(group[0].table.name, [])
            named.append(Evaluator(group[0].table, group))

    @property
    def tables(self) -> frozenset[str]:
        return frozenset(self._by_table)

    def update(self, store: OnlineStore, project: str, table: str, rows: "pa.Table") -> Counts:
        """Applies rows of a table, all or none. The caller is the only writer. Raises ChecksFailed."""
        counts = Counts()
        puts: list[tuple[bytes, bytes]] = []
        for evaluator in self._by_table.get(table, ()):
            _require_identity(evaluator.table, rows)
            sources = evaluator.run(rows)
            for view in evaluator.views:
                puts += apply(store, project, view, sources[view.name], counts)
        if puts:
            store.put(puts)
        return counts

    def close(self) -> None:
        for evaluators in self._by_table.values():
            for evaluator in evaluators:
                evaluator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _require_identity(table: Table, rows: "pa.Table") -> None:
    """Raises ChecksFailed: rows without any part of what tells rows apart would pass for repetitions of one another."""
    stored = [column for column in table.row_id if column in rows.column_names]
    if len(stored) < len(table.row_id) or not all(rows.column(column).null_count for column in stored):
        return
    for number, parts in enumerate(zip(*(rows.column(column).to_pylist() for column in stored), strict=True), 1):
        if all(part is None for part in parts):
            raise ChecksFailed(
                f"Row {number} has no {', '.join(stored)}, which tells the rows of table {table.name!r} apart.",
                next_step="Push each row with its identity: a row is applied once, however often it is pushed.",
                details={"row": number, "columns": stored},
            )


def mark_prefix(project: str, view: TableView) -> bytes:
    return f"r\x00{project}\x00{fingerprint(view)}\x00".encode()


def mark(row_id: str) -> bytes:
    """The rest of a mark's key: 16 bytes of hash, so that 10^12 rows collide with a chance of 10^-15."""
    return hashlib.blake2b(row_id.encode(), digest_size=16).digest()


def apply(
    store: OnlineStore, project: str, view: TableView, rows: list[SourceRow], counts: Counts
) -> list[tuple[bytes, bytes]]:
    """What has to be put for a view's rows; adds to `counts`."""
    ready = [r for r in rows if r.known is not None and r.key is not None]
    counts.waiting += len(rows) - len(ready)
    ready.sort(key=lambda r: (r.known, r.row_id))
    if isinstance(view, WindowAggregate):
        return _windows(store, project, view, ready, counts)
    return _newest(store, project, view, ready, counts)


def _windows(
    store: OnlineStore, project: str, view: WindowAggregate, rows: list[SourceRow], counts: Counts
) -> list[tuple[bytes, bytes]]:
    # A row whose value is still missing is not marked: it counts once the value is there.
    counted = [r for r in rows if r.values[0] is not None]
    counts.waiting += len(rows) - len(counted)
    start = mark_prefix(project, view)
    marks = [start + mark(r.row_id) for r in counted]
    fresh: dict[bytes, SourceRow] = {}
    for key, row, seen in zip(marks, counted, store.get(marks) if marks else (), strict=True):
        if not seen:  # none, or emptied by a materialisation
            fresh.setdefault(key, row)
    counts.duplicates += len(counted) - len(fresh)
    before = online.prefix(project, view)
    changed = _stored(store, [before + r.key for r in fresh.values() if r.key is not None], Prefix)
    tile_us = view.tile_us
    for row in fresh.values():
        prefix = changed[before + (row.key or b"")]
        if prefix.add((row.known or 0) // tile_us, 1.0, row.values[0]):
            counts.applied += 1
        else:
            counts.late += 1
    for prefix in changed.values():
        prefix.trim(max(view.tiles))
    return [(k, p.pack()) for k, p in changed.items()] + [(k, MARK) for k in fresh]


def _newest(
    store: OnlineStore, project: str, view: Latest | Lookup, rows: list[SourceRow], counts: Counts
) -> list[tuple[bytes, bytes]]:
    """Keeps the newest rows of each entity. A row that is there already, or too old to be kept, changes nothing."""
    before = online.prefix(project, view)
    changed = _stored(store, [before + r.key for r in rows if r.key is not None], online.unpack_rows)
    kept: dict[bytes, list[LatestRow]] = {}
    for row in rows:
        key = before + (row.key or b"")
        held = changed[key]
        new = LatestRow(row.known or 0, row.row_id, row.values)
        if new in held:
            counts.duplicates += 1
            continue
        # The same row again with other values, such as one that was incomplete, takes the place of the first.
        newest = [] if isinstance(view, Lookup) else [r for r in held if r.row_id != new.row_id]
        newest = sorted([*newest, new], key=lambda r: (r.known, r.row_id))[-online.HISTORY :]
        if new in newest:
            changed[key] = kept[key] = newest
            counts.applied += 1
        else:
            counts.late += 1
    return [(k, online.pack_rows(v)) for k, v in kept.items()]


def _stored(store: OnlineStore, keys: Iterable[bytes], read: Callable[[bytes | None], Any]) -> dict[bytes, Any]:
    wanted = list(dict.fromkeys(keys))
    return {k: read(v) for k, v in zip(wanted, store.get(wanted) if wanted else (), strict=True)}


def typed(rows: Sequence[Mapping[str, object]], schema: "pa.Schema") -> "pa.Table":
    """JSON rows as an Arrow table of a given schema. A column that a row lacks is null; instants are RFC 3339 text.

    Raises ChecksFailed, naming the column, if a value does not fit or a column is unknown.
    """
    unknown = sorted({name for row in rows for name in row} - set(schema.names))
    if unknown:
        raise ChecksFailed(
            f"The table has no column {', '.join(unknown)}.", next_step=f"Its columns are: {', '.join(schema.names)}."
        )
    arrays = []
    for field in schema:
        try:
            arrays.append(pa.array([_value(row.get(field.name), field.type) for row in rows], field.type))
        except (ValueError, TypeError, MacadamError, pa.ArrowException) as error:
            raise ChecksFailed(
                f"A value of column {field.name!r} is no {field.type}: {_reason(error)}.",
                next_step="Send instants as RFC 3339 text and numbers as numbers.",
                details={"column": field.name},
            ) from error
    return pa.table(arrays, schema=schema)


def _reason(error: Exception) -> str:
    return (error.what if isinstance(error, MacadamError) else str(error)).rstrip(".")


def _value(value: object, kind: "pa.DataType") -> object:
    if not isinstance(value, str):
        return value
    if pa.types.is_timestamp(kind):
        return parse_instant(value) if kind.tz else datetime.fromisoformat(value)
    if pa.types.is_date(kind):
        return date.fromisoformat(value)
    if pa.types.is_decimal(kind):
        return Decimal(value)
    return value
