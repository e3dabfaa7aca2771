"""Which Arrow schemas fit an Iceberg table: one spelling of each type, and what may change from one write to the next.

A column may be added and may be left out (it reads as null); its type stays. Narrow numbers fit wide columns.
"""

from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

from macadam.errors import InvalidInput
from macadam.lazy import lazy

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy("pyarrow")


def fitted(rows: "pa.Table", schema: "pa.Schema | None", table: str) -> "pa.Table":
    """Returns the rows in the table's types and column order, with new columns last.

    schema: the table's, None for a new table. Raises InvalidInput naming the column, its type and the one expected.
    """
    _require_distinct(rows.schema, table)
    given = {field.name: _plain(field.type) for field in rows.schema}
    known = {field.name: field.type for field in schema} if schema else {}
    target = known | {name: kind for name, kind in given.items() if name not in known}
    columns = []
    for name, kind in target.items():
        if pa.types.is_null(kind):
            raise InvalidInput(
                f"Column {name!r} of table {table} has no type: all its values are missing.",
                next_step="Give the column a type before it is written.",
            )
        if name not in given:
            columns.append(pa.nulls(rows.num_rows, kind))
            continue
        if not _may_become(given[name], kind):
            raise InvalidInput(
                f"Column {name!r} of table {table} is {kind}, got {given[name]}.",
                next_step="Convert the column, or write it under another name.",
                details={"column": name, "expected": str(kind), "got": str(given[name])},
            )
        columns.append(_cast(rows.column(name), kind, name, table))
    return pa.Table.from_arrays(columns, schema=pa.schema([pa.field(n, k) for n, k in target.items()]))


def plain_schema(schema: "pa.Schema") -> "pa.Schema":
    """The schema with one spelling of each type, every column nullable, without metadata."""
    return pa.schema([pa.field(field.name, _plain(field.type)) for field in schema])


def to_text(schema: "pa.Schema") -> str:
    """As an Arrow IPC schema message in base64."""
    return b64encode(schema.serialize().to_pybytes()).decode()


def from_text(text: str) -> "pa.Schema":
    """Inverse of `to_text`."""
    return pa.ipc.read_schema(pa.py_buffer(b64decode(text)))


def _require_distinct(schema: "pa.Schema", table: str) -> None:
    twice = {name for name in schema.names if schema.names.count(name) > 1}
    if twice or not schema.names:
        raise InvalidInput(
            f"Rows for table {table} have {'column ' + min(twice) + ' twice' if twice else 'no columns'}.",
            next_step="Give each column its own name.",
        )


def _plain(kind: "pa.DataType") -> "pa.DataType":
    """Iceberg's types in the Arrow spelling that readers get: no dictionaries, views, large or unsigned kinds."""
    t = pa.types
    if t.is_timestamp(kind):
        return pa.timestamp("us", tz="UTC" if kind.tz else None)
    if t.is_integer(kind):
        return pa.int32() if kind in {pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint16()} else pa.int64()
    if t.is_dictionary(kind):
        return _plain(kind.value_type)
    if t.is_list(kind) or t.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    if t.is_struct(kind):
        return pa.struct([pa.field(f.name, _plain(f.type)) for f in kind])
    one_spelling: dict[pa.DataType, pa.DataType] = {
        pa.large_string(): pa.string(),
        pa.string_view(): pa.string(),
        pa.large_binary(): pa.binary(),
        pa.binary_view(): pa.binary(),
        pa.time32("s"): pa.time64("us"),
        pa.time32("ms"): pa.time64("us"),
        pa.time64("ns"): pa.time64("us"),
        pa.date64(): pa.date32(),
        pa.float16(): pa.float32(),
    }
    return one_spelling.get(kind, kind)


def _may_become(given: "pa.DataType", kind: "pa.DataType") -> bool:
    widening = {(pa.int32(), pa.int64()), (pa.float32(), pa.float64())}
    return given == kind or pa.types.is_null(given) or (given, kind) in widening


def _cast(column: "pa.ChunkedArray[Any]", kind: "pa.DataType", name: str, table: str) -> "pa.ChunkedArray[Any]":
    try:
        return column.cast(kind)  # safe: a time finer than microseconds or a number out of range raises
    except pa.ArrowInvalid as error:
        raise InvalidInput(
            f"Column {name!r} of table {table} does not fit {kind}: {error}.", next_step="Round or convert it first."
        ) from error
