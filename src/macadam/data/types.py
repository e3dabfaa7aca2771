"""The values of the data room: contracts as far as they are checked, what a check found, and the room's requests.

Frozen, without I/O. A `Contract` keeps what checks need; the document itself stays in the object store
under its digest, so nothing that its author wrote is lost.
"""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from macadam.operations import Request
from macadam.values import Digest, Name

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
    """One property of a table. key_position: from 1 within the primary key, 0 outside it. subject: whether it names the
    person that a row is about.
    """

    name: str
    logical_type: LogicalType = "string"
    physical_type: str = ""
    required: bool = False
    unique: bool = False
    key_position: int = 0
    classification: str = ""
    subject: bool = False
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


# --- Requests and answers: contracts

TableName = Annotated[
    str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_-]{0,50}\Z", description="lower case, digits, '-' and '_'")
]
SnapshotText = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^((table:[a-z][a-z0-9_-]{0,62}@)?[0-9]{1,20})?\Z",
        description="table:NAME@ID or its ID; empty: the published one",
    ),
]
Limit = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class ContractVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A registered contract. ref: contract:ID@VERSION; digest: over its canonical document; text: digest of its bytes.

    unchecked: rules that no engine here runs, by table.
    """

    ref: str
    project: str
    id: str
    version: str
    digest: Digest
    text: Digest
    name: str
    status: str
    api_version: str
    tables: tuple[str, ...]
    unchecked: dict[str, tuple[str, ...]]
    at: datetime
    by: str


class RegisterContract(Request[ContractVersion], frozen=True, kw_only=True):
    """Register an ODCS v3 data contract.

    text: the document, YAML or JSON. The same document again changes nothing; another one needs another version.
    """

    project: Name
    text: str


class ContractPage(msgspec.Struct, frozen=True, kw_only=True):
    """A contract version and its document, as it was registered."""

    contract: ContractVersion
    text: str


class ShowContract(Request[ContractPage], frozen=True, kw_only=True):
    """Show a contract.

    contract: its id. version: empty is the newest that was registered.
    """

    project: Name
    contract: str
    version: str = ""


class ListContracts(Request[tuple[ContractVersion, ...]], frozen=True, kw_only=True):
    """List contracts, newest first."""

    project: Name


# --- Requests and answers: sources


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Files of one folder that go into one table. contract: contract:ID@VERSION, where its table has `schema`'s name.

    path: under `directory`; '*' and '{month}' stand for any part of one name.
    """

    ref: str
    project: str
    name: str
    directory: str
    path: str
    format: Literal["csv", "parquet", "jsonl"]
    contract: str
    schema: str
    table: str
    at: datetime
    by: str


class RegisterSource(Request[Source], frozen=True, kw_only=True):
    """Register a source, or change where it lies and what contract it keeps.

    directory: an absolute folder on the platform's machine. path: of the files under it; '*' and '{month}' stand for
    any part of one name. contract: its id, ID@VERSION or contract:ID@VERSION; without version the newest.
    schema: the contract's table, if it is not called as `table` is. table: the table that rows go into; it stays.
    format: empty is what the files' names say.
    """

    project: Name
    source: Name
    directory: str
    path: str
    contract: str
    table: TableName
    schema: str = ""
    format: Literal["", "csv", "parquet", "jsonl"] = ""


class ListSources(Request[tuple[Source, ...]], frozen=True, kw_only=True):
    """List sources, by name."""

    project: Name


# --- Requests and answers: ingesting


class FileReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one file came to. size: bytes; sha256: of its bytes. rows_in = published + quarantined."""

    path: str
    size: int
    sha256: Digest
    rows_in: int
    published: int
    quarantined: int


class IngestReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an ingest did. snapshot: table:NAME@ID that is published now, '' if the table has none.

    files: taken by this call; none if nothing was new. skipped: files that were taken before. remaining: new files
    that were left for the next call. by_rule: quarantined rows by the rule that they break (a row may break several).
    warnings: what was watched and not as expected. not_evaluated: freshness rules, unless `at` was given.
    rows: of the table now. seconds: for all of it.
    """

    snapshot: str
    table: str
    source: str
    contract: str
    files: tuple[FileReport, ...]
    skipped: int
    remaining: int
    rows_in: int
    published: int
    quarantined: int
    by_rule: dict[str, int]
    warnings: tuple[str, ...]
    not_evaluated: tuple[str, ...]
    rows: int
    seconds: float


class Ingest(Request[IngestReport], frozen=True, kw_only=True):
    """Check a source's new files against the contract and publish their good rows as a snapshot.

    Each file is taken once, whole or not at all, also if the process dies. file: one file, relative to the source's
    directory; empty: all that are new. at: the present instant for freshness rules; without it they are not
    evaluated.
    """

    project: Name
    source: Name
    file: str = ""
    at: datetime | None = None


# --- Requests and answers: tables


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A published state of a table. ref: table:NAME@ID. digest: over its data files. rows: in all; added: by it.

    source: what it was ingested from. contract: that it was checked against. published: whether it is the one now.
    """

    ref: str
    project: str
    table: str
    snapshot_id: str
    metadata_location: str
    digest: Digest
    rows: int
    added: int
    quarantined: int
    source: str
    contract: str
    at: datetime
    by: str
    published: bool = True


class TableInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A table. snapshot, rows: what is published, None if other parts of the platform write the table."""

    name: str
    snapshot: Snapshot | None
    rows: int | None
    metadata_location: str


class ListTables(Request[tuple[TableInfo, ...]], frozen=True, kw_only=True):
    """List tables, by name."""

    project: Name


class ListSnapshots(Request[tuple[Snapshot, ...]], frozen=True, kw_only=True):
    """List a table's snapshots, newest first."""

    project: Name
    table: Name
    limit: Limit = 100


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """The first rows of a table: one object a row, instants as RFC 3339. total: rows of the table."""

    table: str
    columns: dict[str, str]
    rows: list[dict[str, object]]
    total: int


class PreviewTable(Request[Preview], frozen=True, kw_only=True):
    """Show the first rows of a table.

    snapshot: empty is the published one.
    """

    project: Name
    table: Name
    limit: Limit = 20
    snapshot: SnapshotText = ""


class QuarantinedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row that was refused: its values as they came, and why. row: its number in the file, from 0."""

    file: str
    row: int
    reasons: tuple[str, ...]
    contract: str
    at: datetime
    values: dict[str, str | None]


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """Refused rows of a table, newest first. total: how many there are; by_rule: how many break each rule."""

    table: str
    total: int
    by_rule: dict[str, int]
    rows: tuple[QuarantinedRow, ...]


class ListQuarantine(Request[Quarantine], frozen=True, kw_only=True):
    """List the rows that a table's contract refused, with reasons.

    rule: only rows that break this rule.
    """

    project: Name
    table: TableName
    rule: str = ""
    limit: Limit = 100
