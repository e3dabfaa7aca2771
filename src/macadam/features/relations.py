"""The SQL that turns a table's rows into what a view needs: the one text that training sets and pushes both run.

A source row has the view's keys as text, `_rid` (the row's identity as text), `_known` (microseconds since 1970 UTC
when it counts) and the view's values. DuckDB runs it over Arrow tables, shut off from files and network.
"""

# ruff: noqa: S608 - names are quoted and expressions parsed (`expressions.columns`) before they meet SQL

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from macadam.errors import ChecksFailed, InvalidInput, StorageFull
from macadam.features import expressions
from macadam.features.define import Table, TableView, WindowAggregate, known_at
from macadam.lazy import lazy

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
else:
    duckdb = lazy("duckdb")
    pa = lazy("pyarrow")

SEPARATOR = "\x1f"  # ASCII unit separator, between the parts of a row's identity
_SETTINGS = (
    "SET TimeZone = 'UTC'",  # casts between zoned and plain timestamps must not depend on the machine
    "SET preserve_insertion_order = true",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
_WHOLE = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}
_NUMBERS = _WHOLE | {"HUGEINT", "UHUGEINT", "FLOAT", "DOUBLE", "BOOLEAN"}


def connect(
    *, threads: int = 2, memory: str = "512MB", spill: Path | None = None, optimise: bool = True
) -> "duckdb.DuckDBPyConnection":
    """A DuckDB of its own, in memory, that reads no file and no Python variable. spill: where it may overflow to."""
    connection = duckdb.connect(
        config={"threads": threads, "memory_limit": memory, "python_enable_replacements": False}
    )
    if spill is not None:
        connection.execute(f"SET temp_directory = {text(str(spill))}")
    if not optimise:
        connection.execute("PRAGMA disable_optimizer")
    for setting in _SETTINGS:
        connection.execute(setting)
    return connection


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Says of which feature an error of DuckDB is. Raises ChecksFailed, or StorageFull if memory and disk ran out."""
    try:
        yield
    except duckdb.Error as error:
        spilled = isinstance(error, duckdb.IOException) and "duckdb_temp" in str(error)  # what did not fit in memory
        if spilled or isinstance(error, duckdb.OutOfMemoryException) or "No space left" in str(error):
            raise StorageFull(
                f"{what} needs more memory than it may take, and the disk has no room to overflow to: {error}.",
                next_step="Free space, or build a shorter time range.",
            ) from error
        raise ChecksFailed(
            f"{what} cannot be computed from these rows: {error}.",
            next_step="Compare its expressions in features.py with the values in the table.",
            details={"feature": what},
        ) from error


def name(identifier: str) -> str:
    """The identifier quoted for SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def text(value: str) -> str:
    """The text as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def derived(table: Table, relation: str) -> str:
    """SELECT of a table's columns, its derived ones and `_rid`, from a relation of its stored rows."""
    rows = relation
    # A SELECT for each derived column: written side by side, each use of one would be computed again.
    for column, expression in expressions.derived_in_order(table).items():
        rows = f"(SELECT *, ({expression}\n) AS {name(column)} FROM {rows})"
    return f"SELECT *, {_row_identity(table)} AS _rid FROM {rows}"


def _row_identity(table: Table) -> str:
    parts = [f"coalesce(CAST({name(c)} AS VARCHAR), '')" for c in table.row_id]
    return f" || {text(SEPARATOR)} || ".join(parts)


def instant(expression: str) -> str:
    """SQL of an instant as microseconds since 1970 UTC; a timestamp without zone is taken as UTC."""
    return f"epoch_us(CAST(({expression}\n) AS TIMESTAMPTZ))"


def floor(microseconds: str, tile_us: int) -> str:
    """SQL of the number of whole tiles before an instant, rounding down also before 1970."""
    return f"(({microseconds}) - ((({microseconds}) % {tile_us}) + {tile_us}) % {tile_us}) // {tile_us}"


def key_columns(view: TableView) -> list[str]:
    return [f"_k{i}" for i in range(len(view.entity.keys))]


def value_columns(view: TableView) -> list[str]:
    return ["_v0"] if isinstance(view, WindowAggregate) else [f"_v{i}" for i in range(len(view.columns))]


def value_expressions(view: TableView) -> list[str]:
    return [view.value] if isinstance(view, WindowAggregate) else list(view.columns.values())


def source(connection: "duckdb.DuckDBPyConnection", view: TableView, rows: str) -> str:
    """SELECT of a view's source rows from a relation of what `derived` selects.

    Raises ChecksFailed, naming the view, if its expressions do not fit the table's columns.
    """
    fields = [f"{sql} AS {column}" for column, sql in source_fields(connection, view, rows).items()]
    return f"SELECT {', '.join(fields)} FROM {rows}"


def source_fields(connection: "duckdb.DuckDBPyConnection", view: TableView, rows: str) -> dict[str, str]:
    """The columns of a view's source rows and the SQL of each: keys, `_rid`, `_known`, values. Raises ChecksFailed."""
    keys = zip(key_columns(view), view.entity.keys, strict=True)
    fields = {column: f"CAST({name(key)} AS VARCHAR)" for column, key in keys}
    known = known_at(view)
    fields |= {"_rid": "_rid", "_known": instant(known) if known else "CAST(0 AS BIGINT)"}
    types = _types(connection, view, rows)
    for column, expression in zip(value_columns(view), value_expressions(view), strict=True):
        fields[column] = _value(view, expression, types[column])
    return fields


def is_number(kind: str) -> bool:
    """Says whether a DuckDB type is a number or boolean."""
    return kind in _NUMBERS or (kind.startswith("DECIMAL(") and kind.endswith(")"))


def is_key(kind: str) -> bool:
    """Says whether a DuckDB type can be an entity's key."""
    return kind in _WHOLE or kind == "VARCHAR"


def _value(view: TableView, expression: str, kind: str) -> str:
    if isinstance(view, WindowAggregate) and not is_number(kind):
        raise _unfit(view, f"{expression!r} is {kind}, and only numbers and booleans can be aggregated")
    if is_number(kind):
        number = f"CAST(({expression}\n) AS DOUBLE)"
        return f"CASE WHEN isfinite({number}) THEN {number} END"
    if kind == "VARCHAR":
        return f"({expression}\n)"
    raise _unfit(view, f"{expression!r} is {kind}, and a feature is a number, a boolean or text")


def _types(connection: "duckdb.DuckDBPyConnection", view: TableView, rows: str) -> dict[str, str]:
    fields = {k: name(k) for k in view.entity.keys}
    fields |= dict(zip(value_columns(view), value_expressions(view), strict=True))
    types = describe(connection, fields, rows, f"View {view.name!r}")
    for key in view.entity.keys:
        if not is_key(types[key]):
            raise _unfit(view, f"its key {key!r} is {types[key]}, and keys are text or whole numbers")
    return types


def describe(
    connection: "duckdb.DuckDBPyConnection", fields: Mapping[str, str], rows: str, what: str
) -> dict[str, str]:
    """The DuckDB types of some expressions over `rows`, by name. Raises ChecksFailed, naming `what`."""
    chosen = ", ".join(f"({expression}\n) AS {name(column)}" for column, expression in fields.items())
    with explained(what):
        relation = connection.sql(f"SELECT {chosen} FROM {rows}")
    return dict(zip(relation.columns, [str(t) for t in relation.types], strict=True))


def require_columns(table: Table, stored: Iterable[str], wanted: Iterable[str]) -> None:
    """Raises ChecksFailed if the stored table lacks a column, or a derived one hides a stored one."""
    have = {c.lower() for c in stored}
    missing = sorted(set(wanted) - have)
    if missing:
        raise ChecksFailed(
            f"Table {table.name!r} has no column {', '.join(missing)}.",
            next_step=f"Its columns are: {', '.join(sorted(have))}.",
        )
    hidden = sorted(have & {c.lower() for c in table.derive})
    if hidden:
        raise ChecksFailed(
            f"Table {table.name!r} already has the column {', '.join(hidden)}, which features.py derives.",
            next_step="Give the derived column another name.",
        )


def used_columns(table: Table, views: Iterable[TableView], more: Iterable[str] = ()) -> frozenset[str]:
    """The stored columns, in lower case, that some views of a table and some more expressions read."""
    texts = [*(name(c) for c in table.row_id), *more, *table.derive.values()]
    for view in views:
        if view.table == table:
            texts += [*(name(k) for k in view.entity.keys), *value_expressions(view), known_at(view)]
    return frozenset().union(*(expressions.base_columns(table, t) for t in texts if t))


def _unfit(view: TableView, why: str) -> ChecksFailed:
    return ChecksFailed(
        f"View {view.name!r} does not fit table {view.table.name!r}: {why}.",
        next_step="Cast or change the expression in features.py.",
        details={"feature": view.name},
    )


def narrow(table: Table, rows: "pa.Table", wanted: Iterable[str]) -> "pa.Table":
    """Only the columns that are read, so that wide tables cost no memory. Raises ChecksFailed."""
    wanted = set(wanted)
    require_columns(table, rows.column_names, wanted)
    return rows.select([c for c in rows.column_names if c.lower() in wanted])


def refuse_ambiguous(rows: "pa.Table") -> None:
    """Raises InvalidInput if two columns differ in case only: SQL cannot tell them apart."""
    names = [c.lower() for c in rows.column_names]
    if len(set(names)) != len(names):
        raise InvalidInput("Two columns differ in case only.", next_step="Rename one of them.")
