"""The values of the data room: contracts as far as they are checked, and what a check found.

Frozen, without I/O. A `Contract` keeps what checks need; the document itself stays in the object store
under its digest, so nothing that its author wrote is lost.
"""

from typing import Literal

import msgspec

from macadam.values import Digest

Severity = Literal["error", "warning"]
LogicalType = Literal[
    "string", "date", "timestamp", "time", "number", "integer", "object", "array", "boolean", "map", "vector"
]
Metric = Literal[
    "expression", "query", "nullValues", "missingValues", "invalidValues", "duplicateValues", "rowCount", "freshness"
]
Operator = Literal["=", "!=", ">", ">=", "<", "<=", "between", "not between"]
Bound = float | str | None
Measured = float | str | bool | None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """ODCS `logicalTypeOptions`. Bounds are numbers, or ISO 8601 text for dates, times and timestamps."""

    minimum: Bound = None
    exclusive_minimum: Bound = None
    maximum: Bound = None
    exclusive_maximum: Bound = None
    multiple_of: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str = ""  # unanchored, RE2 syntax
    format: str = ""
    default_timezone: str = "UTC"  # of timestamps that carry no zone
    min_items: int | None = None
    max_items: int | None = None


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One property of a table. key_position: from 1 within the primary key, 0 outside it."""

    name: str
    logical_type: LogicalType = "string"
    physical_type: str = ""
    required: bool = False
    unique: bool = False
    key_position: int = 0
    classification: str = ""
    limits: Limits = Limits()
    allowed: tuple[str, ...] = ()  # ODCS `enum`, as text


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What a measured value must be. `between` includes both ends."""

    operator: Operator
    values: tuple[float | str | bool | None, ...]

    def holds(self, measured: Measured) -> bool:
        """Says whether a measured value complies. A missing value never does, unless null was asked for."""
        if self.operator in {"=", "!="}:
            return (measured == self.values[0]) == (self.operator == "=")
        if not isinstance(measured, (int, float)):
            return False
        bounds = [float(v) for v in self.values if isinstance(v, (int, float))]
        low, high = bounds[0], bounds[-1]
        return {
            ">": measured > low,
            ">=": measured >= low,
            "<": measured < low,
            "<=": measured <= low,
            "between": low <= measured <= high,
            "not between": not low <= measured <= high,
        }[self.operator]

    def __str__(self) -> str:
        return f"{self.operator} {' and '.join(str(v) for v in self.values)}"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A quality rule of a table.

    A row rule names the rows that break it; a table rule compares one measured value and, as an error,
    blocks publishing. sql: a boolean expression (metric `expression`) or a SELECT of one value (`query`).
    """

    name: str
    metric: Metric
    level: Literal["row", "table"]
    severity: Severity = "error"
    columns: tuple[str, ...] = ()
    sql: str = ""
    comparison: Comparison = Comparison(operator="=", values=(0,))
    percent: bool = False
    tokens: tuple[str | None, ...] = ()  # missingValues: what counts as missing; invalidValues: what is valid
    pattern: str = ""
    max_age: float = 0.0  # freshness only; seconds
    dimension: str = ""
    description: str = ""


class TableContract(msgspec.Struct, frozen=True, kw_only=True):
    """One schema object. unchecked: rules that no engine here runs (`text`, `custom`), by name."""

    name: str
    physical_name: str = ""
    columns: tuple[Column, ...] = ()
    rules: tuple[Rule, ...] = ()
    unchecked: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """The names of the primary key's columns, in order; empty without one."""
        keyed = sorted((c for c in self.columns if c.key_position), key=lambda c: c.key_position)
        return tuple(c.name for c in keyed)


class ServiceLevel(msgspec.Struct, frozen=True, kw_only=True):
    """One of ODCS `slaProperties`, as written."""

    property: str
    value: float | str | bool | None
    unit: str = ""
    element: str = ""


class Contract(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed ODCS v3 data contract. digest: over the canonical JSON of the whole document."""

    id: str
    version: str
    status: str
    api_version: str
    digest: Digest
    name: str = ""
    tables: tuple[TableContract, ...] = ()
    service_levels: tuple[ServiceLevel, ...] = ()
    null_tokens: tuple[str, ...] = ("",)  # what stands for "no value" in text sources


class RuleResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one rule found. failed: rows that break it. measured: a table rule's value, None if not evaluated."""

    rule: str
    level: Literal["row", "table"]
    severity: Severity
    passed: bool
    failed: int = 0
    measured: float | str | None = None
    expected: str = ""
    note: str = ""


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """Rows in = published + quarantined. blocked: the table rules that forbid publishing, as sentences."""

    table: str
    contract: str
    contract_digest: Digest
    rows_in: int
    published: int
    quarantined: int
    rules: tuple[RuleResult, ...]
    blocked: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
