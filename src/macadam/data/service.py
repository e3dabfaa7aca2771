"""The data room's operations: contracts, sources, ingesting, and reading what came of it.

Checking is done in `checks`, the heavy half of ingesting in `ingest`; here each change meets its transaction and its
evidence.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from macadam import catalog
from macadam.access import service as access
from macadam.access.classification import highest, reclassify
from macadam.data import checks, contracts, files, personal, reading, registry
from macadam.data import ingest as ingesting
from macadam.data.ingest import Prepared
from macadam.data.registry import snapshot
from macadam.data.types import (
    Contract,
    ContractPage,
    ContractVersion,
    Ingest,
    IngestReport,
    ListContracts,
    ListQuarantine,
    ListSnapshots,
    ListSources,
    ListTables,
    Preview,
    PreviewTable,
    Quarantine,
    QuarantinedRow,
    RegisterContract,
    RegisterSource,
    ShowContract,
    Snapshot,
    Source,
    TableInfo,
)
from macadam.errors import Conflict, ContractInvalid, InvalidInput, NotFound
from macadam.lazy import lazy
from macadam.operations import Context, Transaction, operation
from macadam.ports import StagedSnapshot
from macadam.values import Ref, instant, parse_instant

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc
else:
    pa = lazy("pyarrow")
    pc = lazy("pyarrow.compute")

__all__ = ["snapshot"]

_PROJECT = "/api/v1/projects/{project}"
_TABLE = _PROJECT + "/tables/{table}"
_RESERVED = {"predictions"}  # written by sealing the journal


# --- Contracts


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """A contract that can be run. text: the digest of its stored bytes."""

    contract: Contract
    ref: Ref
    text: str


def _check_contract(context: Context, request: RegisterContract) -> _Checked:
    """Every rule of every table is tried on no rows, so that it is the author who learns what is wrong."""
    contract = contracts.parse(request.text)
    if "/" in contract.id:
        raise ContractInvalid(
            f"The contract's id {contract.id!r} has a '/'.", next_step="Use letters, digits, '.', '_', ':' and '-'."
        )
    ref = Ref(kind="contract", name=contract.id, version=contract.version)
    for table in contract.tables:
        own = [column.name for column in table.columns if column.name in ingesting.ADDED_COLUMNS]
        if own:
            raise ContractInvalid(
                f"The table {table.name} has a column {own[0]!r}, which quarantine adds to refused rows.",
                next_step="Choose another name for it.",
            )
        checks.compile_table(contract, table.name)
    return _Checked(contract=contract, ref=ref, text=context.ports.objects.put(request.text.encode()))


@operation(
    RegisterContract,
    permission="contracts:register",
    http=f"POST {_PROJECT}/contracts",
    cli="contracts register",
    prepare=_check_contract,
)
def register_contract(tx: Transaction, request: RegisterContract, checked: _Checked) -> ContractVersion:
    """Raises Conflict if this version is registered with another document."""
    contract = checked.contract
    known = _known_contract(tx, request.project, checked.ref)
    if known is not None:
        if known.digest == contract.digest:
            return known
        raise Conflict(
            f"{checked.ref} is registered with another document.",
            next_step="Raise the contract's version: what was checked against this one stays as it was.",
            details={"registered": known.digest, "given": contract.digest},
        )
    new = ContractVersion(
        ref=str(checked.ref),
        project=request.project,
        id=contract.id,
        version=contract.version,
        digest=contract.digest,
        text=checked.text,
        name=contract.name,
        status=contract.status,
        api_version=contract.api_version,
        tables=tuple(table.name for table in contract.tables),
        unchecked={table.name: table.unchecked for table in contract.tables if table.unchecked},
        at=tx.now,
        by=tx.actor.id,
    )
    registry.keep_contract(tx.sql, new)
    tx.record(checked.ref, digest=new.digest, text_object=new.text, status=new.status, tables=new.tables)
    _classify(tx, new.project, lambda source: source.contract.partition("@")[0] == f"contract:{new.id}")
    return new


def _known_contract(tx: Transaction, project: str, ref: Ref) -> ContractVersion | None:
    try:
        return registry.contract(tx.sql, project, str(ref))
    except NotFound:
        return None


@operation(
    ShowContract,
    permission="contracts:read",
    http=f"GET {_PROJECT}/contracts/{{contract}}",
    cli="contracts show",
)
def show_contract(tx: Transaction, request: ShowContract) -> ContractPage:
    wanted = f"{request.contract}@{request.version}" if request.version else request.contract
    found = registry.contract(tx.sql, request.project, wanted)
    return ContractPage(contract=found, text=tx.ports.objects.get(found.text).decode())


@operation(ListContracts, permission="contracts:read", http=f"GET {_PROJECT}/contracts", cli="contracts list")
def list_contracts(tx: Transaction, request: ListContracts) -> tuple[ContractVersion, ...]:
    return registry.contracts(tx.sql, request.project)


# --- Sources


@operation(RegisterSource, permission="sources:register", http=f"POST {_PROJECT}/sources", cli="sources register")
def register_source(tx: Transaction, request: RegisterSource) -> Source:
    """Raises InvalidInput for a path that leads elsewhere, Conflict if the source went into another table."""
    contract = registry.contract(tx.sql, request.project, request.contract)
    schema = request.schema or request.table
    if schema not in contract.tables:
        raise InvalidInput(
            f"{contract.ref} has no table {schema!r}.",
            next_step=f"Name one of its tables as schema: {', '.join(contract.tables) or '(it has none)'}.",
        )
    _require_place(tx.ports.settings.home, access.project(tx.sql, request.project).location, request)
    _require_table(tx, request)
    new = Source(
        ref=str(Ref(kind="source", name=request.source)),
        project=request.project,
        name=request.source,
        directory=str(Path(request.directory)),
        path=request.path,
        format=request.format or files.format_of(request.path),
        contract=contract.ref,
        schema=schema,
        table=request.table,
        at=tx.now,
        by=tx.actor.id,
    )
    registry.keep_source(tx.sql, new)
    facts = {"directory": new.directory, "path": new.path, "format": new.format, "table": new.table}
    tx.record(new.ref, uses=[contract.ref], **facts)
    _classify(tx, new.project, lambda source: source.table == new.table)
    return new


def _classify(tx: Transaction, project: str, touched: Callable[[Source], bool]) -> None:
    """Tells the policies what kind of data the tables of these sources hold, and their quarantines with them.

    Of a table with several sources the strictest counts; of a source, the strictest of the contract's version that its
    files are checked against and those registered since. So a stricter one is heard at once, a milder one only when the
    source is registered with it.
    """
    sources = registry.sources(tx.sql, project)
    found: dict[str, str] = {}
    for table in {source.table for source in sources if touched(source)}:
        said = highest(word for source in sources if source.table == table for word in _said(tx, source))
        found |= {f"table:{name}": said for name in (table, registry.quarantine_of(table))}
    if found:
        reclassify(tx.sql, project, found)


def _said(tx: Transaction, source: Source) -> Iterator[str]:
    known = registry.contract(tx.sql, source.project, source.contract)
    since = (c for c in registry.contracts(tx.sql, source.project) if c.id == known.id and c.at >= known.at)
    for contract in since:
        parsed = contracts.parse(tx.ports.objects.get(contract.text), origin=contract.ref)
        yield from (personal.classification(table) for table in parsed.tables if table.name == source.schema)


def _require_place(home: Path, location: str, request: RegisterSource) -> None:
    """location: the project's own; if that is a folder, its sources lie in it."""
    directory, path = Path(request.directory), Path(request.path)
    if not directory.is_absolute() or ".." in directory.parts:
        raise InvalidInput(
            f"The directory {request.directory!r} is not absolute.", next_step="Write it from / on, without '..'."
        )
    if directory.resolve().is_relative_to(home.resolve()):
        raise InvalidInput(
            f"{directory} is in the platform's home, which holds its keys.", next_step="Keep sources outside of it."
        )
    if location.startswith("/") and not directory.resolve().is_relative_to(Path(location).resolve()):
        raise InvalidInput(
            f"{directory} is outside of {location}, where the project's files live.",
            next_step="Move the files there, or let an administrator make a project with another location.",
        )
    if not request.path or path.is_absolute() or ".." in path.parts:
        raise InvalidInput(
            f"The path {request.path!r} leads out of {directory}.", next_step="Give a path under the directory."
        )


def _require_table(tx: Transaction, request: RegisterSource) -> None:
    if request.table in _RESERVED or request.table.endswith(registry.QUARANTINE_SUFFIX):
        raise InvalidInput(
            f"The table {request.table!r} is written by the platform itself.", next_step="Choose another name."
        )
    for known in registry.sources(tx.sql, request.project):
        if known.name == request.source and known.table != request.table:
            raise Conflict(
                f"Source {known.name!r} goes into table {known.table!r}, and which files it took is known for that.",
                next_step=f"Register another source for {request.table!r}.",
            )


@operation(ListSources, permission="sources:read", http=f"GET {_PROJECT}/sources", cli="sources list")
def list_sources(tx: Transaction, request: ListSources) -> tuple[Source, ...]:
    return registry.sources(tx.sql, request.project)


# --- Ingesting


@operation(
    Ingest,
    permission="tables:ingest",
    http=f"POST {_PROJECT}/sources/{{source}}/ingest",
    cli="sources ingest",
    resource="source:{source}",
    prepare=ingesting.prepare,
)
def ingest(tx: Transaction, request: Ingest, prepared: Prepared) -> IngestReport:
    """The pointers, the files' offsets and the evidence, together or not at all.

    Raises Conflict if another ingest took one of the files, or moved the table, since this one began.
    """
    del request
    source = prepared.source
    if prepared.good is None:
        return _report(prepared, _now_published(tx, source))
    _require_untaken(tx, prepared)
    catalog.publish(tx.sql, source.project, source.table, prepared.good)
    made = _snapshot(tx, prepared, source.table, prepared.good)
    registry.keep_snapshot(tx.sql, made)
    registry.keep_files(tx.sql, made, source, prepared.files)
    tx.record(
        made.ref,
        uses=[source.contract, source.ref],
        digest=made.digest,
        rows=made.rows,
        rows_in=prepared.rows_in,
        published=prepared.published,
        quarantined=prepared.quarantined,
        offsets=[{"path": f.path, "size": f.size, "sha256": f.sha256} for f in prepared.files],
        by_rule=prepared.by_rule,
        metadata_location=made.metadata_location,
        snapshot_id=made.snapshot_id,
    )
    if prepared.refused is not None:
        _publish_refused(tx, prepared, prepared.refused, made)
    return _report(prepared, made)


def _publish_refused(tx: Transaction, prepared: Prepared, staged: StagedSnapshot, good: Snapshot) -> None:
    source = prepared.source
    name = registry.quarantine_of(source.table)
    catalog.publish(tx.sql, source.project, name, staged)
    made = _snapshot(tx, prepared, name, staged)
    registry.keep_snapshot(tx.sql, made)
    tx.record(
        made.ref,
        uses=[source.contract, source.ref, good.ref],
        digest=made.digest,
        rows=made.rows,
        metadata_location=made.metadata_location,
        snapshot_id=made.snapshot_id,
    )


def _require_untaken(tx: Transaction, prepared: Prepared) -> None:
    taken, in_table = registry.taken(tx.sql, prepared.source), registry.in_table(tx.sql, prepared.source)
    for file in prepared.files:
        if file.path in taken or file.sha256 in in_table:
            raise Conflict(
                f"{file.path} was taken by another ingest meanwhile.",
                next_step="Run the same call again: it takes what is left.",
            )


def _snapshot(tx: Transaction, prepared: Prepared, table: str, staged: StagedSnapshot) -> Snapshot:
    return Snapshot(
        ref=str(Ref(kind="table", name=table, version=staged.snapshot_id)),
        project=prepared.source.project,
        table=table,
        snapshot_id=staged.snapshot_id,
        metadata_location=staged.metadata_location,
        digest=staged.digest,
        rows=staged.rows_total,
        added=staged.rows_added,
        quarantined=prepared.quarantined,
        source=prepared.source.ref,
        contract=prepared.source.contract,
        at=tx.now,
        by=tx.actor.id,
    )


def _now_published(tx: Transaction, source: Source) -> Snapshot | None:
    if not catalog.location(tx.sql, source.project, source.table):
        return None
    return registry.snapshot(tx.sql, source.project, source.table)


def _report(prepared: Prepared, published: Snapshot | None) -> IngestReport:
    source = prepared.source
    return IngestReport(
        snapshot=published.ref if published else "",
        table=source.table,
        source=source.ref,
        contract=source.contract,
        files=prepared.files,
        skipped=prepared.skipped,
        remaining=prepared.remaining,
        rows_in=prepared.rows_in,
        published=prepared.published,
        quarantined=prepared.quarantined,
        by_rule=dict(prepared.by_rule.most_common()),
        warnings=tuple(prepared.warnings),
        not_evaluated=tuple(prepared.not_evaluated),
        rows=published.rows if published else 0,
        seconds=round(time.monotonic() - prepared.started, 3),
    )


# --- Tables


@operation(ListTables, permission="tables:read", http=f"GET {_PROJECT}/tables", cli="tables list")
def list_tables(tx: Transaction, request: ListTables) -> tuple[TableInfo, ...]:
    found = []
    for name in catalog.tables(tx.sql, request.project):
        newest = registry.snapshots(tx.sql, request.project, name, 1)
        location = catalog.require(tx.sql, request.project, name)
        published = registry.snapshot(tx.sql, request.project, name) if newest else None
        rows = published.rows if published else None
        found.append(TableInfo(name=name, snapshot=published, rows=rows, metadata_location=location))
    return tuple(found)


@operation(ListSnapshots, permission="tables:read", http=f"GET {_TABLE}/snapshots", cli="tables snapshots",
           resource="table:{table}")  # fmt: skip
def list_snapshots(tx: Transaction, request: ListSnapshots) -> tuple[Snapshot, ...]:
    return registry.snapshots(tx.sql, request.project, request.table, request.limit)


@operation(PreviewTable, permission="tables:read", http=f"GET {_TABLE}/preview", cli="tables preview",
           resource="table:{table}")  # fmt: skip
def preview_table(tx: Transaction, request: PreviewTable) -> Preview:
    """Raises NotFound, IntegrityError if a file is not as it was written."""
    kept = request.table.endswith(registry.QUARANTINE_SUFFIX)
    granted = tx.authorise("quarantine:read" if kept else "tables:read", f"table:{request.table}")
    location = catalog.require(tx.sql, request.project, request.table)
    if request.snapshot:
        wanted = registry.snapshot(tx.sql, request.project, request.table, request.snapshot)
        rows = reading.rows(granted, tx.ports.tables, wanted)
    else:
        rows = reading.whole(granted, tx.ports.tables, request.table, location)
    shown = [{name: _plain(value) for name, value in row.items()} for row in rows.slice(0, request.limit).to_pylist()]
    columns = {column.name: str(column.type) for column in rows.schema}
    return Preview(table=request.table, columns=columns, rows=shown, total=rows.num_rows)


def _plain(value: object) -> object:
    """What JSON can hold. Instants as RFC 3339; a float that is no number is no value."""
    if isinstance(value, datetime):
        return instant(value) if value.tzinfo else value.isoformat()
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, str)) else _text(value)


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)


@operation(ListQuarantine, permission="quarantine:read", http=f"GET {_TABLE}/quarantine", cli="tables quarantine",
           resource="table:{table}")  # fmt: skip
def list_quarantine(tx: Transaction, request: ListQuarantine) -> Quarantine:
    """Raises NotFound if there is no such table."""
    catalog.require(tx.sql, request.project, request.table)
    location = catalog.location(tx.sql, request.project, registry.quarantine_of(request.table))
    if not location:
        return Quarantine(table=request.table, total=0, by_rule={}, rows=())
    kept = registry.quarantine_of(request.table)
    granted = tx.authorise("quarantine:read", f"table:{kept}")
    found = reading.whole(granted, tx.ports.tables, kept, location)
    by_rule: Counter[str] = Counter(cast("list[str]", pc.list_flatten(found.column(checks.REASONS)).to_pylist()))
    if request.rule:
        found = _breaking(found, request.rule)
    newest = found.slice(max(found.num_rows - request.limit, 0)).to_pylist()
    rows = tuple(_quarantined(row) for row in reversed(newest))
    return Quarantine(table=request.table, total=found.num_rows, by_rule=dict(by_rule.most_common()), rows=rows)


def _breaking(rows: "pa.Table", rule: str) -> "pa.Table":
    reasons = cast("Any", rows.column(checks.REASONS).combine_chunks())
    hits = pc.filter(pc.list_parent_indices(reasons), pc.equal(pc.list_flatten(reasons), pa.scalar(rule)))
    return rows.take(hits.unique())


def _quarantined(row: dict[str, Any]) -> QuarantinedRow:
    return QuarantinedRow(
        file=row[ingesting.FILE],
        row=row[checks.ROW],
        reasons=tuple(row[checks.REASONS]),
        contract=row[ingesting.CONTRACT],
        at=parse_instant(row[ingesting.AT]),
        values={name: value for name, value in row.items() if name not in ingesting.ADDED_COLUMNS},
    )
