"""Runs a contract's table over Arrow data: rows that may be published, rows for quarantine, and a report.

One DuckDB SELECT over the batch types the columns and sets a bit per broken rule (see `rules`); uniqueness and
table rules follow on what passed. The engine can read neither files nor the network, whatever a contract says.
Writing tables and moving pointers belongs to `service`.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from macadam.data import contracts, rules
from macadam.data.types import CheckReport, Contract, Rule, RuleResult, Severity, TableContract
from macadam.errors import ContractInvalid, InvalidInput, SourceInvalid
from macadam.lazy import lazy
from macadam.values import require_aware

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    from numpy.typing import NDArray
else:
    duckdb = lazy("duckdb")
    np = lazy("numpy")
    pa = lazy("pyarrow")
    pc = lazy("pyarrow.compute")

REASONS = "_reasons"
ROW = "_row"
_BATCH = "_batch"
COMPILE_SECONDS = 10.0  # a contract's rules are tried on one row
RUN_SECONDS = 600.0  # of a batch, which is at most a file of half a gigabyte
_AGAIN = 0.1
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",  # a contract must not see this process's variables
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a batch came to.

    good: typed, in the contract's column order, empty of broken error rules. quarantined: the columns as they
    came, with `_row` (int64, the row's number in its source) and `_reasons` (list of rule names).
    """

    good: "pa.Table"
    quarantined: "pa.Table"
    report: CheckReport


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledTable:
    """A contract's table that is ready to check batches. Build it with `compile_table`."""

    contract: Contract
    table: TableContract
    checks: tuple[rules.Check, ...]
    unique: tuple[rules.UniqueSet, ...]
    schema: "pa.Schema"

    def run(
        self,
        rows: "pa.Table",
        *,
        existing: "pa.Table | None" = None,
        at: datetime | None = None,
        first_row: int = 0,
        text: bool = False,
    ) -> Outcome:
        """Checks a batch.

        existing: published rows' unique columns; a row that repeats one is quarantined. at: the present instant
        for freshness, which is not evaluated without it. first_row: the number of the batch's first row in its
        source. text: the rows come from a text source, where the contract's null tokens stand for no value.
        Raises SourceInvalid if a column is missing or surplus, InvalidInput if `existing` lacks one.
        """
        _require_columns(self.table, rows.column_names)
        _require_existing(self.unique, existing)
        with _engine(RUN_SECONDS) as connection:
            typed, masks = _mark(connection, self, rows, self.contract.null_tokens if text else ())
            marked = _Marked(self.checks, masks)
            good, late = _drop_repeats(connection, self, typed, marked.passing(), existing)
            results = marked.results() + [
                RuleResult(rule=rule, level="row", severity=severity, passed=not hits.size, failed=int(hits.size))
                for rule, severity, hits in late
            ]
            results += _table_results(connection, self, typed, good, marked, at)
        quarantined = _quarantine(rows, marked, late, first_row)
        return Outcome(good=good, quarantined=quarantined, report=self._report(rows, good, quarantined, results))

    def _report(
        self, rows: "pa.Table", good: "pa.Table", quarantined: "pa.Table", results: list[RuleResult]
    ) -> CheckReport:
        blocked = tuple(
            f"{result.rule}: got {result.measured}, expected {result.expected}"
            for result in results
            if result.level == "table" and result.severity == "error" and not result.passed
        )
        return CheckReport(
            table=self.table.name,
            contract=f"{self.contract.id}@{self.contract.version}",
            contract_digest=self.contract.digest,
            rows_in=rows.num_rows,
            published=good.num_rows,
            quarantined=quarantined.num_rows,
            rules=tuple(results),
            blocked=blocked,
            unchecked=self.table.unchecked,
        )


def compile_table(contract: Contract, name: str) -> CompiledTable:
    """Prepares a table's checks and tries each against no rows.

    Raises ContractInvalid, naming the rule, if an expression, bound or pattern is not understood.
    """
    table = contracts.table(contract, name)
    if not table.columns:
        raise ContractInvalid(
            f"The table {name} of contract {contract.id} has no properties.", next_step="List its columns."
        )
    checks = tuple(rules.checks_of(table))
    schema = pa.schema([(column.name, _arrow_type(rules.cast_type(column))) for column in table.columns])
    compiled = CompiledTable(
        contract=contract, table=table, checks=checks, unique=tuple(rules.unique_sets(table)), schema=schema
    )
    with _engine(COMPILE_SECONDS) as connection:
        _try_on_nothing(connection, compiled)
    return compiled


# The engine


@contextmanager
def _engine(seconds: float) -> "Iterator[duckdb.DuckDBPyConnection]":
    """Raises ContractInvalid if the rules take longer: the threads that run them are few and shared by all projects."""
    connection = duckdb.connect(":memory:", config=_CONFIG)
    ended = threading.Event()
    watch = threading.Thread(target=_interrupt, args=(connection, seconds, ended), daemon=True)
    watch.start()
    try:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET lock_configuration = true")
        yield connection
    except duckdb.InterruptException as error:
        raise ContractInvalid(
            f"The contract's rules took longer than {seconds:g} s.",
            next_step="Write rules that look at each row once.",
        ) from error
    finally:
        ended.set()
        watch.join()
        connection.close()


def _interrupt(connection: "duckdb.DuckDBPyConnection", seconds: float, ended: threading.Event) -> None:
    """Once the time is up, ends what runs, and whatever is begun after it."""
    wait = seconds
    while not ended.wait(wait):
        connection.interrupt()
        wait = _AGAIN


def _arrow_type(sql_type: str) -> "pa.DataType":
    known: dict[str, pa.DataType] = {
        "VARCHAR": pa.string(),
        "DATE": pa.date32(),
        "TIMESTAMPTZ": pa.timestamp("us", tz="UTC"),
        "TIME": pa.time64("us"),
        "DOUBLE": pa.float64(),
        "BOOLEAN": pa.bool_(),
        "BIGINT": pa.int64(),
        "INTEGER": pa.int32(),
        "SMALLINT": pa.int16(),
        "TINYINT": pa.int8(),
        "UTINYINT": pa.uint8(),
        "USMALLINT": pa.uint16(),
        "UINTEGER": pa.uint32(),
    }
    return known[sql_type]


def _arrival(column: "pa.ChunkedArray[Any]", wanted: "pa.DataType", *, tokens: bool) -> rules.Arrival:
    got = column.type
    is_text = pa.types.is_string(got) or pa.types.is_large_string(got)
    if got == wanted and not (is_text and tokens):
        return "float" if pa.types.is_floating(got) else "typed"
    if is_text:
        return "text"
    if pa.types.is_timestamp(got) and got.tz is None:
        return "naive"
    return "other"


def _try_on_nothing(connection: "duckdb.DuckDBPyConnection", compiled: CompiledTable) -> None:
    """Runs the pass on one row of NULLs (constants are only looked at with a row); if it fails, each condition alone, so that the error names its rule."""
    table = compiled.table
    nulls = pa.table({column.name: pa.nulls(1, pa.string()) for column in table.columns})
    connection.register(_BATCH, nulls)
    arrivals: dict[str, rules.Arrival] = {column.name: "text" for column in table.columns}
    width = len(table.columns)
    expressions = {rule.name for rule in table.rules if rule.metric == "expression"}
    written = [check for check in compiled.checks if check.rule in expressions]
    try:
        connection.sql(rules.select(table, compiled.checks, arrivals, ("",), _BATCH)).fetchall()
    except duckdb.Error:
        written = list(compiled.checks)
    for check in written:
        _try(connection, check.rule, rules.select(table, [check], arrivals, ("",), _BATCH), width + 1)
    _register_as(connection, table, compiled.schema.empty_table())
    for rule in table.rules:
        if rule.metric == "query":
            _try(connection, rule.name, rule.sql, 1)


def _try(connection: "duckdb.DuckDBPyConnection", rule: str, query: str, columns: int) -> None:
    try:
        # Text that closes its own bracket would become a second statement or column.
        if len(connection.extract_statements(query)) != 1 or len(connection.sql(query).columns) != columns:
            raise ContractInvalid(
                f"The rule {rule} is not one expression.", next_step="Write a single SQL expression or SELECT."
            )
        connection.sql(query).fetchall()
    except duckdb.InterruptException:
        raise
    except duckdb.Error as error:
        raise ContractInvalid(
            f"The rule {rule} is not understood: {str(error).splitlines()[0]}.",
            next_step="Correct the rule in the contract (DuckDB SQL over the typed columns).",
        ) from error


def _register_as(connection: "duckdb.DuckDBPyConnection", table: TableContract, rows: "pa.Table") -> None:
    for alias in {table.name, table.physical_name} - {""}:
        connection.register(alias, rows)


# The one pass


def _mark(
    connection: "duckdb.DuckDBPyConnection", compiled: CompiledTable, rows: "pa.Table", null_tokens: Sequence[str]
) -> "tuple[pa.Table, list[NDArray[np.int64]]]":
    """Returns the typed table (all rows, contract's column order) and the mask columns."""
    arrivals = {
        field.name: _arrival(rows.column(field.name), field.type, tokens=bool(null_tokens))
        for field in cast("list[pa.Field[Any]]", list(compiled.schema))
    }
    connection.register(_BATCH, rows)
    query = rules.select(compiled.table, compiled.checks, arrivals, null_tokens, _BATCH)
    found = connection.sql(query).to_arrow_table()
    connection.unregister(_BATCH)
    columns = [
        rows.column(name) if arrival in rules.KEPT else found.column(name).cast(compiled.schema.field(name).type)
        for name, arrival in arrivals.items()
    ]
    masks = [found.column(n).to_numpy() for n in found.column_names if n.startswith("_mask")]
    return pa.Table.from_arrays(columns, schema=compiled.schema), masks


class _Marked:
    """The bits of a batch, read back as rules."""

    def __init__(self, checks: Sequence[rules.Check], masks: "list[NDArray[np.int64]]") -> None:
        self.checks = checks
        self.rows = masks[0].size
        touched = masks[0] != 0
        for mask in masks[1:]:
            touched |= mask != 0
        self._touched = np.flatnonzero(touched)  # only these rows are looked at again
        self._masks = [mask[self._touched] for mask in masks]
        self.hits = [self._touched[self._bit(place)] for place in range(len(checks))]

    def _bit(self, place: int) -> "NDArray[np.bool_]":
        mask = self._masks[place // rules.BITS]
        return (mask >> (place % rules.BITS) & 1).astype(bool)

    def errors(self) -> "list[tuple[str, NDArray[np.int64]]]":
        """Rule names with the rows that break them, for rules that quarantine."""
        return [
            (check.rule, hits)
            for check, hits in zip(self.checks, self.hits, strict=True)
            if check.severity == "error" and check.role == "row" and hits.size
        ]

    def passing(self) -> "NDArray[np.bool_]":
        passing = np.ones(self.rows, dtype=bool)
        for _, hits in self.errors():
            passing[hits] = False
        return passing

    def count(self, rule: str) -> int:
        return next(int(h.size) for c, h in zip(self.checks, self.hits, strict=True) if c.rule == rule)

    def results(self) -> list[RuleResult]:
        return [
            RuleResult(
                rule=check.rule, level="row", severity=check.severity, passed=not hits.size, failed=int(hits.size)
            )
            for check, hits in zip(self.checks, self.hits, strict=True)
            if check.role == "row"
        ]


# Uniqueness: among the rows that pass everything else the first keeps its key

_Late = tuple[str, Severity, "NDArray[np.int64]"]


def _drop_repeats(
    connection: "duckdb.DuckDBPyConnection",
    compiled: CompiledTable,
    typed: "pa.Table",
    passing: "NDArray[np.bool_]",
    existing: "pa.Table | None",
) -> "tuple[pa.Table, list[_Late]]":
    late: list[_Late] = []
    good = typed if passing.all() else typed.filter(pa.array(passing))
    for unique in compiled.unique:
        found = [(unique.rule, _repeats(connection, unique, good))]
        if existing is not None:
            found.append((f"{unique.rule}.published", _published(connection, unique, good, existing)))
        numbers = np.flatnonzero(passing)
        for rule, hits in found:
            late.append((rule, unique.severity, numbers[hits]))
            if unique.severity == "error" and hits.size:
                passing[numbers[hits]] = False
        if unique.severity == "error" and any(hits.size for _, hits in found):
            good = typed.filter(pa.array(passing))
    return good, late


def _repeats(connection: "duckdb.DuckDBPyConnection", unique: rules.UniqueSet, good: "pa.Table") -> "NDArray[np.int64]":
    """Positions of rows whose key an earlier row has. Keys with a NULL are never equal, as in SQL."""
    connection.register(_BATCH, good.select(list(unique.columns)))
    keys = ", ".join(rules.name(column) for column in unique.columns)
    present = " AND ".join(f"{rules.name(column)} IS NOT NULL" for column in unique.columns)
    # Distinct hashes prove distinct keys, at a fraction of the cost; equal ones prove nothing.
    quick = f"SELECT count(*) = count(DISTINCT hash({keys})) FROM {_BATCH} WHERE {present}"  # noqa: S608
    if connection.sql(quick).fetchall()[0][0]:
        return np.empty(0, dtype=np.int64)
    numbered = f"SELECT {keys}, row_number() OVER () - 1 AS _n FROM {_BATCH}"  # noqa: S608
    ranked = f"SELECT _n, row_number() OVER (PARTITION BY {keys} ORDER BY _n) AS _k FROM ({numbered}) WHERE {present}"  # noqa: S608
    return _positions(connection, f"SELECT _n FROM ({ranked}) WHERE _k > 1 ORDER BY _n")  # noqa: S608


def _published(
    connection: "duckdb.DuckDBPyConnection", unique: rules.UniqueSet, good: "pa.Table", existing: "pa.Table"
) -> "NDArray[np.int64]":
    connection.register(_BATCH, good.select(list(unique.columns)))
    connection.register("_existing", existing.select(list(unique.columns)))
    keys = ", ".join(rules.name(column) for column in unique.columns)
    numbered = f"SELECT {keys}, row_number() OVER () - 1 AS _n FROM {_BATCH}"  # noqa: S608
    return _positions(connection, f"SELECT _n FROM ({numbered}) SEMI JOIN _existing USING ({keys}) ORDER BY _n")  # noqa: S608


def _positions(connection: "duckdb.DuckDBPyConnection", query: str) -> "NDArray[np.int64]":
    found: NDArray[np.int64] = connection.sql(query).to_arrow_table().column(0).to_numpy().astype(np.int64)
    return found


# Table rules


def _table_results(
    connection: "duckdb.DuckDBPyConnection",
    compiled: CompiledTable,
    typed: "pa.Table",
    good: "pa.Table",
    marked: _Marked,
    at: datetime | None,
) -> list[RuleResult]:
    _register_as(connection, compiled.table, good)
    return [
        _table_result(connection, rule, typed, good, marked, at)
        for rule in compiled.table.rules
        if rule.level == "table"
    ]


def _table_result(
    connection: "duckdb.DuckDBPyConnection",
    rule: Rule,
    typed: "pa.Table",
    good: "pa.Table",
    marked: _Marked,
    at: datetime | None,
) -> RuleResult:
    failed, measured = 0, cast("float | str | None", None)
    match rule.metric:
        case "rowCount":
            measured = good.num_rows
        case "freshness":
            if at is None:
                return _unevaluated(rule, "no present instant was given")
            measured = _age(good.column(rule.columns[0]), require_aware(at, "The present instant"))
        case "query":
            measured = _value_of(connection, rule)
        case "duplicateValues":
            failed = _count_repeats(connection, rule, typed)
            measured = failed
        case _:
            failed = marked.count(rule.name)
            measured = failed
    if rule.percent and isinstance(measured, (int, float)):
        measured = 100.0 * measured / max(typed.num_rows, 1)
    return RuleResult(
        rule=rule.name,
        level="table",
        severity=rule.severity,
        passed=rule.comparison.holds(measured),
        failed=failed,
        measured=measured,
        expected=f"{rule.comparison}{' percent' if rule.percent else ''}",
    )


def _unevaluated(rule: Rule, note: str) -> RuleResult:
    return RuleResult(
        rule=rule.name, level="table", severity=rule.severity, passed=True, expected=str(rule.comparison), note=note
    )


def _age(column: "pa.ChunkedArray[Any]", at: datetime) -> float | None:
    """Seconds from the newest value to `at`; None without a value. A date counts from its first moment, UTC."""
    newest = pc.max(pc.cast(column, pa.timestamp("us", tz="UTC"))).cast(pa.int64()).as_py()
    return None if newest is None else at.timestamp() - newest / 1e6


def _value_of(connection: "duckdb.DuckDBPyConnection", rule: Rule) -> float | str | None:
    try:
        row = connection.execute(rule.sql).fetchone()
    except duckdb.InterruptException:
        raise
    except duckdb.Error as error:
        raise ContractInvalid(
            f"The rule {rule.name} failed on this data: {str(error).splitlines()[0]}.",
            next_step="Make its query work on any published rows.",
        ) from error
    value = row[0] if row else None
    return value if value is None or isinstance(value, (int, float)) else str(value)


def _count_repeats(connection: "duckdb.DuckDBPyConnection", rule: Rule, typed: "pa.Table") -> int:
    unique = rules.UniqueSet(rule=rule.name, columns=rule.columns)
    return int(_repeats(connection, unique, typed).size)


# Quarantine


def _quarantine(rows: "pa.Table", marked: _Marked, late: "list[_Late]", first_row: int) -> "pa.Table":
    """Rows as they came, with number and reasons; the list array is built from (row, rule) pairs in one go."""
    broken = marked.errors() + [(rule, hits) for rule, severity, hits in late if severity == "error" and hits.size]
    names = pa.array([rule for rule, _ in broken], type=pa.string())
    row_of = np.concatenate([hits for _, hits in broken]) if broken else np.empty(0, dtype=np.int64)
    rule_of = np.repeat(np.arange(len(broken)), [hits.size for _, hits in broken])
    order = np.argsort(row_of, kind="stable")  # stable: reasons keep the contract's order
    numbers, counts = np.unique(row_of, return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    reasons = pa.ListArray.from_arrays(
        pa.array(offsets, type=pa.int32()), names.take(pa.array(rule_of[order], type=pa.int64()))
    )
    taken = rows.take(pa.array(numbers, type=pa.int64()))
    return taken.append_column(ROW, pa.array(numbers + first_row, type=pa.int64())).append_column(REASONS, reasons)


# Shape


def _require_columns(table: TableContract, got: Sequence[str]) -> None:
    wanted = [column.name for column in table.columns]
    missing = [name for name in wanted if name not in got]
    surplus = [name for name in got if name not in wanted]
    if missing or surplus or len(set(got)) != len(got):
        parts = [
            f"{label}: {', '.join(names)}" for label, names in (("missing", missing), ("surplus", surplus)) if names
        ]
        raise SourceInvalid(
            f"The rows do not have the columns of {table.name} ({'; '.join(parts) or 'a column is there twice'}).",
            next_step="Correct the source, or change the contract and raise its version.",
            details={"missing": missing, "surplus": surplus},
        )


def _require_existing(unique: Sequence[rules.UniqueSet], existing: "pa.Table | None") -> None:
    wanted = {column for entry in unique for column in entry.columns}
    lacking = sorted(wanted - set(existing.column_names)) if existing is not None else []
    if lacking:
        raise InvalidInput(
            f"The published keys lack {', '.join(lacking)}.", next_step="Scan the table with all unique columns."
        )
