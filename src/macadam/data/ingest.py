"""The heavy half of ingesting: new files are read, checked and staged, with nothing visible yet.

What comes out is a `Prepared`; `service.ingest` publishes it in one transaction with the files' offsets, so that each
file is in exactly one published snapshot, or in none. Memory is bounded by `STAGE_BYTES`, the largest file, and the
published values of the columns that the contract calls unique, which new rows are compared with.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from macadam import catalog
from macadam.data import checks, contracts, files, reading, registry
from macadam.data.checks import CompiledTable, Outcome
from macadam.data.types import CheckReport, FileReport, Ingest, RuleResult, Source
from macadam.errors import ChecksFailed, Conflict, SourceInvalid
from macadam.lazy import lazy
from macadam.operations import Context
from macadam.ports import StagedSnapshot, Tables
from macadam.values import instant

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy("pyarrow")

STAGE_BYTES = 268_435_456  # checked rows are staged when they take this much; a quarter of the memory of 1 GB
LEAF_BYTES = 30_000  # of a leaf's 65,535 for the list of files; what does not fit is left for the next call
_OFFSET_BYTES = 140  # of one file in a leaf, without its path
_HASH_BLOCK = 1_048_576
FILE, CONTRACT, AT = "_file", "_contract", "_at"
ADDED_COLUMNS = (checks.ROW, checks.REASONS, FILE, CONTRACT, AT)


@dataclass(kw_only=True)
class Chain:
    """Snapshots staged on top of each other, of which only the last is published: their base is the pointer's."""

    tables: Tables
    table: str
    current: str
    waiting: "list[pa.Table]" = field(default_factory=list)
    staged: StagedSnapshot | None = None
    rows_added: int = 0

    def add(self, rows: "pa.Table") -> None:
        self.waiting.append(rows)
        if sum(part.nbytes for part in self.waiting) >= STAGE_BYTES:
            self.stage()

    def stage(self) -> None:
        """Writes what waits. Raises StorageFull, InvalidInput if a column's type is not the table's."""
        if not self.waiting:
            return
        rows = pa.concat_tables(self.waiting)
        base = self.staged.metadata_location if self.staged else self.current
        self.staged = self.tables.stage(self.table, rows, current=base)
        self.rows_added += rows.num_rows
        self.waiting.clear()

    def end(self) -> StagedSnapshot | None:
        """The last snapshot, as one step from the published one; None if nothing was added."""
        self.stage()
        if self.staged is None:
            return None
        return msgspec.structs.replace(self.staged, previous_location=self.current, rows_added=self.rows_added)


@dataclass(kw_only=True)
class Prepared:
    """What one call found. good, refused: the staged snapshots; both None if no file is new."""

    source: Source
    started: float
    files: tuple[FileReport, ...] = ()
    skipped: int = 0
    remaining: int = 0
    by_rule: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    not_evaluated: dict[str, None] = field(default_factory=dict)
    good: StagedSnapshot | None = None
    refused: StagedSnapshot | None = None

    @property
    def rows_in(self) -> int:
        return sum(file.rows_in for file in self.files)

    @property
    def published(self) -> int:
        return sum(file.published for file in self.files)

    @property
    def quarantined(self) -> int:
        return sum(file.quarantined for file in self.files)


@dataclass(frozen=True, kw_only=True)
class _Base:
    """What the call starts from, read in one SQL snapshot.

    taken: path → SHA-256 of the source's files; in_table: SHA-256 → path, also of other sources of the table. good,
    refused: published metadata, '' without table.
    """

    source: Source
    text: str
    taken: dict[str, str]
    in_table: dict[str, str]
    good: str
    refused: str


def prepare(context: Context, request: Ingest) -> Prepared:
    """Reads, checks and stages. Raises NotFound, SourceInvalid, ContractInvalid, Conflict, ChecksFailed, StorageFull."""
    started = time.monotonic()
    base = _base(context, request)
    found = Prepared(source=base.source, started=started)
    new = _new_files(context, base, request.file, found)
    if new:
        _Work(context, request, base, found).take(new)
    return found


def _base(context: Context, request: Ingest) -> _Base:
    with context.read() as sql:
        source = registry.source(sql, request.project, request.source)
        return _Base(
            source=source,
            text=registry.contract(sql, request.project, source.contract).text,
            taken=registry.taken(sql, source),
            in_table=registry.in_table(sql, source),
            good=catalog.location(sql, request.project, source.table),
            refused=catalog.location(sql, request.project, registry.quarantine_of(source.table)),
        )


# Which files


def _new_files(context: Context, base: _Base, wanted: str, found: Prepared) -> list[str]:
    """Paths that no snapshot has, in order, as many as fit one leaf. Notes the others in `found`."""
    root = Path(base.source.directory)
    listed = _listed(context, root, base.source, wanted)
    bytes_taken = dict(base.in_table)
    new: list[str] = []
    room = LEAF_BYTES
    for number, path in enumerate(listed):
        context.progress("looking for new files", number, len(listed))
        digest = _hash(root, path)
        if path in base.taken:
            _require_same(base, path, digest)
            found.skipped += 1
        elif digest in bytes_taken:
            found.skipped += 1
            found.warnings.append(f"{path} has the same bytes as {bytes_taken[digest]}: it was not taken again")
        else:
            bytes_taken[digest] = path
            room -= _OFFSET_BYTES + len(path.encode())
            if room >= 0 or not new:
                new.append(path)
            else:
                found.remaining += 1
    return new


def _listed(context: Context, root: Path, source: Source, wanted: str) -> Sequence[str]:
    """Raises SourceInvalid if there is no such file, or one that is not the source's to read."""
    listed = files.list_files(root, source.path)
    if wanted and wanted not in listed:
        raise SourceInvalid(
            f"Source {source.name!r} has no file {wanted!r}.",
            next_step=f"Name a file that matches {source.path!r} in {root}, such as {listed[-1]!r}.",
        )
    chosen = (wanted,) if wanted else listed
    home = context.ports.settings.home.resolve()
    for path in chosen:
        if (root / path).resolve().is_relative_to(home):
            raise SourceInvalid(f"{path} is the platform's own file.", next_step="Keep sources outside its home.")
        if files.format_of(path) != source.format:
            raise SourceInvalid(
                f"{path} is not {source.format}, as source {source.name!r} is.",
                next_step="Narrow the source's path, or register another source for these files.",
            )
    return chosen


def _require_same(base: _Base, path: str, digest: str) -> None:
    if base.taken[path] != digest:
        raise Conflict(
            f"{path} was taken before with other content, so that its rows are published already.",
            next_step="Put the original back and give new rows a new file name.",
            details={"path": path, "taken": base.taken[path], "found": digest},
        )


def _hash(root: Path, path: str) -> str:
    found = hashlib.sha256()
    try:
        with (root / path).open("rb") as file:
            while block := file.read(_HASH_BLOCK):
                found.update(block)
    except OSError as error:
        raise SourceInvalid(
            f"{path} cannot be read: {error.strerror}.", next_step="Check that it exists and may be read."
        ) from error
    return f"sha256:{found.hexdigest()}"


# Checking and staging


class _Work:
    """One call's way from files to staged snapshots."""

    def __init__(self, context: Context, request: Ingest, base: _Base, found: Prepared) -> None:
        ports = context.ports
        self._context = context
        self._request = request
        self._source = base.source
        self._found = found
        text = ports.objects.get(base.text)
        contract = contracts.parse(text, origin=base.source.contract)
        self._compiled = checks.compile_table(contract, base.source.schema)
        self._columns = [column.name for column in self._compiled.table.columns]
        self._existing = _published_keys(context, base.source.table, self._compiled, base.good)
        project, table = base.source.project, base.source.table
        self._good = Chain(tables=ports.tables, table=f"{project}.{table}", current=base.good)
        refused = f"{project}.{registry.quarantine_of(table)}"
        self._refused = Chain(tables=ports.tables, table=refused, current=base.refused)

    def take(self, paths: Sequence[str]) -> None:
        for number, path in enumerate(paths):
            self._context.progress(f"checking {path}", number, len(paths))
            self._take_one(path)
        self._context.progress("writing the snapshot", len(paths), len(paths))
        self._found.good = self._good.end()
        self._found.refused = self._refused.end()

    def _take_one(self, path: str) -> None:
        batch = files.read(Path(self._source.directory), path, self._columns)
        outcome = self._compiled.run(batch.rows, existing=self._existing, at=self._request.at, text=batch.text)
        report = outcome.report
        _require_unblocked(path, report)
        self._note(path, outcome)
        self._found.files += (
            FileReport(
                path=path,
                size=batch.offset.size,
                sha256=batch.offset.sha256,
                rows_in=report.rows_in,
                published=report.published,
                quarantined=report.quarantined,
            ),
        )
        self._existing = _with_keys(self._existing, outcome.good)
        self._good.add(outcome.good)
        if outcome.quarantined.num_rows:
            self._refused.add(self._labelled(path, outcome.quarantined))

    def _note(self, path: str, outcome: Outcome) -> None:
        for result in outcome.report.rules:
            if result.level == "row" and result.severity == "error" and result.failed:
                self._found.by_rule[result.rule] += result.failed
            elif not result.passed:
                self._found.warnings.append(f"{path}: {_sentence(result)}")
            elif result.note:
                self._found.not_evaluated[result.rule] = None

    def _labelled(self, path: str, rows: "pa.Table") -> "pa.Table":
        """Refused rows as text, whatever the format they came in, with where they came from."""
        columns: dict[str, Any] = {name: _as_text(rows.column(name)) for name in self._columns}
        columns[checks.ROW] = rows.column(checks.ROW)
        columns[checks.REASONS] = rows.column(checks.REASONS)
        for name, value in (
            (FILE, path),
            (CONTRACT, self._source.contract),
            (AT, instant(self._context.call.now)),
        ):
            columns[name] = pa.repeat(pa.scalar(value, pa.string()), rows.num_rows)
        return pa.table(columns)


def _published_keys(context: Context, table: str, compiled: CompiledTable, location: str) -> "pa.Table | None":
    """The published rows' unique columns; None if there are no rows or nothing has to be unique."""
    wanted = list(dict.fromkeys(column for unique in compiled.unique for column in unique.columns))
    if not wanted:
        return None
    if not location:
        return compiled.schema.empty_table().select(wanted)
    granted = context.authorise("tables:ingest", f"table:{table}")
    return reading.newest(granted, context.ports.tables, table, location, columns=wanted)


def _with_keys(existing: "pa.Table | None", good: "pa.Table") -> "pa.Table | None":
    if existing is None:
        return None
    return pa.concat_tables([existing, good.select(existing.column_names)], promote_options="permissive")


def _require_unblocked(path: str, report: CheckReport) -> None:
    if report.blocked:
        raise ChecksFailed(
            f"{path} was not published: {'; '.join(report.blocked)}.",
            next_step="Look at the file and its writer. Nothing of it was taken; ingest it again when it is right.",
            details={
                "path": path,
                "contract": report.contract,
                "rows_in": report.rows_in,
                "quarantined": report.quarantined,
                "blocked": list(report.blocked),
            },
        )


def _sentence(result: RuleResult) -> str:
    if result.level == "table":
        return f"{result.rule}: got {result.measured}, expected {result.expected}"
    return f"{result.rule}: {result.failed} rows"


def _as_text(column: "pa.ChunkedArray[Any]") -> "pa.ChunkedArray[Any]":
    try:
        return column.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # lists, structs, bytes that are no text
        values = (None if v is None else msgspec.json.encode(v, enc_hook=str).decode() for v in column.to_pylist())
        return pa.chunked_array([pa.array(values, type=pa.string())])
