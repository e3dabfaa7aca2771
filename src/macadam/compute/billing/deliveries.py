"""From the files of one delivery to charges that can be stored: checked whole, in bounded memory, before anything is kept.

Two passes: the first reads, checks and writes the charges batch by batch, and remembers of each row its digest, its bill
and its amounts (60 bytes); the second gives each charge its micros, which only the whole bill tells.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macadam.compute.billing import checking, focus, incoming, normal, reading, rows
from macadam.compute.billing.checking import Checked, Findings, Terms
from macadam.compute.billing.rows import EPOCH, BillTotals, Rows
from macadam.compute.billing.types import CheckBill, CheckReport, ImportBill, Note, Problem
from macadam.errors import ChecksFailed, InvalidInput, TooLarge
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    import pyarrow.parquet as pq
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")
    pq = lazy("pyarrow.parquet")

MAX_ROWS = 20_000_000
MAX_BILLS = 10_000
"""Of one delivery; more is a column mistaken for another."""
_REPORTED = 100  # problems in an error, which people read; `cost check` reports all that are kept
_NAME = 200  # characters of a file's name that stand for an account
_DRAFT = "draft.parquet"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Read:
    """A delivery that is read and whole. charges: a Parquet file of `normal.schema`. originals: name → SHA-256 of what was
    read; files and content: digests over them all, and over all rows in any order.
    """

    version: focus.Version
    charges: Path
    originals: dict[str, str]
    copies: dict[str, Path]
    files: str
    content: str
    rows: int
    dropped: int
    bills: tuple[BillTotals, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    notes: tuple[Note, ...]


def read(
    request: ImportBill, home: Path, folder: Path, now: datetime, progress: Progress, taken: Callable[[str], bool]
) -> Read | str:
    """Raises ChecksFailed with the refused rows, SourceInvalid, InvalidInput, TooLarge. Nothing outside `folder` is written.

    taken: whether files of this digest were taken before; then it is all that is returned, and nothing is read.
    """
    reader = _Reader(request, folder, now, progress)
    reader.copy(incoming.files(request.path, home))
    if taken(reader.files):
        return reader.files
    reader.take()
    reader.require_whole()
    return reader.end()


def check(request: CheckBill, home: Path, folder: Path, now: datetime, progress: Progress) -> CheckReport:
    """What `read` would say, without raising for rows."""
    reader = _Reader(request, folder, now, progress)
    reader.copy(incoming.files(request.path, home))
    reader.take()
    problems = reader.problems(checking.KEPT)
    return CheckReport(
        version=reader.version,
        rows=reader.count,
        refused=reader.refused,
        problems=problems,
        missing=reader.missing,
        unknown=tuple(reader.extra),
        notes=reader.notes(),
    )


class _Reader:
    """One delivery's way from files to charges."""

    def __init__(self, request: ImportBill | CheckBill, folder: Path, now: datetime, progress: Progress) -> None:
        self._request = request
        self._folder = folder
        self._progress = progress
        account = Path(request.path).name[:_NAME]
        self._terms = Terms(lenient=request.lenient, currency=request.currency, account=account, now=now)
        self._copied: dict[str, Path] = {}
        self._layouts: dict[str, reading.Layout] = {}
        self._findings: dict[str, Findings] = {}
        self._rows = Rows()
        self._misfits: dict[str, list[tuple[int, int]]] = {}
        self._whole: list[Problem] = []
        self._repeats: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.originals: dict[str, str] = {}
        self.extra: dict[str, str] = {}
        self.missing: tuple[str, ...] = ()
        self.version: focus.Version = "1.0"

    # Reading

    def copy(self, paths: list[Path]) -> None:
        """Brings the files here: what is hashed is what is read, and later kept, even if somebody goes on writing."""
        for path in paths:
            self._copied[path.name] = copied = self._folder / f"{len(self.originals)}-{path.name}"
            self.originals[path.name] = incoming.copy(path, copied)

    @property
    def files(self) -> str:
        """The digest over the files' bytes and what else decides about what is stored."""
        options = (self._request.currency, self._request.copies)
        manifest = repr((sorted(self.originals.values()), options)).encode()
        return "sha256:" + hashlib.sha256(manifest).hexdigest()

    def take(self) -> None:
        for name, copied in self._copied.items():
            self._layouts[name] = reading.look(copied)
        self._judge_columns()
        drafts = pq.ParquetWriter(self._folder / _DRAFT, self._draft_schema(), compression="lz4")
        with drafts:
            for name, layout in self._layouts.items():
                self._take_one(name, layout, drafts)
        for name, layout in self._layouts.items():
            if not layout.parquet:
                self._check_form(name, layout)
        self._check_whole()

    def _judge_columns(self) -> None:
        """Raises InvalidInput if columns are missing that may not be, or the files have different ones."""
        first: tuple[str, frozenset[str]] | None = None
        for name, layout in self._layouts.items():
            these = frozenset(c.strip() for c in layout.columns)
            if first is not None and these != first[1]:
                other = sorted(these ^ first[1])
                raise InvalidInput(
                    f"{name} and {first[0]} have different columns: {', '.join(other[:10])}.",
                    next_step="Import deliveries of different layouts one by one.",
                )
            first = first or (name, these)
        layout = next(iter(self._layouts.values()))
        known = focus.known(layout.columns)
        self.version = self._declared() or focus.detect(known.values())
        self.missing = focus.missing(known.values(), self.version)
        taken = set(normal.schema(()).names)
        for column in layout.columns:
            if column not in known and column.strip():
                plain = column.strip()
                self.extra[plain if plain not in taken else f"x_{plain}"] = column
        self._require_columns(set(known.values()))

    def _declared(self) -> focus.Version | None:
        return next((v for v in focus.VERSIONS if v == self._request.version), None)

    def _require_columns(self, names: set[str]) -> None:
        needed = [*focus.ESSENTIAL, *(() if self._request.currency else (focus.CURRENCY,))]
        lacking = [name for name in needed if name not in names]
        if lacking:
            step = "Export them too."
            if lacking == [focus.CURRENCY]:
                step = "Say what it is in, such as --currency USD."
            raise InvalidInput(
                f"The bill has no {', '.join(lacking)}, without which its amounts cannot be told apart.",
                next_step=step,
                details={"missing": lacking},
            )
        absent = [name for name in self.missing if name != focus.CURRENCY]
        if absent and not self._request.lenient:
            raise InvalidInput(
                f"The bill lacks {len(absent)} columns that FOCUS {self.version} asks for: {', '.join(absent)}.",
                next_step="Export them too, or take the bill as it is with --lenient.",
                details={"missing": absent, "version": self.version},
            )

    def _draft_schema(self) -> "pa.Schema":
        schema = normal.schema(tuple(self.extra))
        return pa.schema([f for f in schema if f.name not in ("id", "key")])

    def _take_one(self, name: str, layout: reading.Layout, drafts: Any) -> None:
        findings = self._findings.setdefault(name, Findings())
        names = focus.known(layout.columns)
        order = sorted(layout.columns, key=lambda column: str(names.get(column, column)).lower())
        schema = self._draft_schema()
        for batch in reading.batches(layout, findings.leave_out):
            checked = Checked(batch, names, self._terms, findings)
            if self.count > MAX_ROWS:
                raise TooLarge(
                    f"The delivery has more than {MAX_ROWS} rows.", next_step="Import it in parts, by period."
                )
            self._progress(f"checking {name}", self.count, 0)
            self._rows.digests.append(normal.digests(batch, order))
            if self.refused:
                continue  # nothing will be kept, so only checking goes on
            found = normal.charges(checked, batch, self.extra)
            self._rows.remember(checked, found)
            columns = [
                pa.array(found[f.name]) if isinstance(found[f.name], np.ndarray) else found[f.name] for f in schema
            ]
            drafts.write_batch(
                pa.RecordBatch.from_arrays(
                    [c.cast(f.type) for c, f in zip(columns, schema, strict=True)], schema=schema
                )
            )

    def _check_form(self, name: str, layout: reading.Layout) -> None:
        """What makes rows disappear from a CSV file, however right the others are."""
        findings = self._findings[name]
        if findings.left_out:
            self._misfits[name] = reading.misfits(layout, (), checking.KEPT)[1]
        line = reading.open_quote(layout, findings.rows + findings.left_out)
        if line:
            self._blame(name, "", "a quotation mark that nothing closes", "values as RFC 4180 quotes them", line)

    # What only the whole tells

    @property
    def count(self) -> int:
        return sum(found.rows for found in self._findings.values())

    @property
    def refused(self) -> int:
        rows = sum(found.refused + found.left_out for found in self._findings.values())
        return rows + len(self._whole)

    def _check_whole(self) -> None:
        if not self.count:
            return self._blame("", "", "no rows", "at least one charge")
        self._repeats = self._rows.repeats()
        if self.refused:
            return None
        if len(self._rows.codes) > MAX_BILLS:
            return self._blame("", "BillingAccountId", f"{len(self._rows.codes)} bills", f"at most {MAX_BILLS} bills")
        self._check_periods()
        return self._check_currencies()

    def _blame(self, file: str, column: str, got: str, expected: str, line: int = 0) -> None:
        self._whole.append(Problem(file=file, line=line, column=column, got=got, expected=expected))

    def _check_periods(self) -> None:
        """Two periods of one account that overlap would be two bills for the same time."""
        periods: dict[tuple[str, str], set[tuple[int, int]]] = {}
        for key in self._rows.codes:
            issuer, account, opens, closes, _ = key.split(normal.SEPARATOR)
            periods.setdefault((issuer, account), set()).add((int(opens), int(closes)))
        for (_, account), several in sorted(periods.items()):
            for (_, ends), (begins, _) in pairwise(sorted(several)):
                if begins < ends:
                    got, until = ((EPOCH + timedelta(microseconds=at)).isoformat() for at in (begins, ends))
                    expected = f"no billing period of {account or 'the account'} that begins before {until}, where another ends"
                    self._blame("", "BillingPeriodStart", got, expected)

    def _check_currencies(self) -> None:
        if self._request.split:
            return
        seen: dict[tuple[str, str, str], set[str]] = {}
        for key in self._rows.codes:
            issuer, account, opens, _, currency = key.split(normal.SEPARATOR)
            seen.setdefault((issuer, account, opens), set()).add(currency)
        for bill, currencies in sorted(seen.items()):
            if len(currencies) > 1:
                whose = bill[1] or "the account"
                expected = f"one currency for {whose} in a billing period, or --split"
                self._blame("", focus.CURRENCY, ", ".join(sorted(currencies)), expected)

    @property
    def _copies(self) -> int:
        return int((self._repeats > 0).sum())

    def notes(self) -> tuple[Note, ...]:
        counted: Counter[str] = sum((found.notes for found in self._findings.values()), Counter())
        found = [Note(what=what, rows=rows) for what, rows in sorted(counted.items())]
        if self._copies and self._request.copies != "refuse":
            verb = {"keep": "kept", "drop": "dropped"}[self._request.copies]
            found.append(Note(what=f"rows that are the same as another in every column were {verb}", rows=self._copies))
        if "BillingAccountId" in self.missing:
            found.append(Note(what=f"no account is named: the bill is known as {self._terms.account}"))
        if any(layout.parquet for layout in self._layouts.values()):
            found.append(Note(what="times without a zone in Parquet were taken as UTC, as FOCUS says they are"))
        return tuple(found)

    # Problems

    def problems(self, limit: int) -> tuple[Problem, ...]:
        """The first ones, in the order of files and lines."""
        found: list[Problem] = list(self._whole)
        for name, layout in self._layouts.items():
            refusals = self._findings[name].refusals[:limit] if name in self._findings else []
            lines, _ = reading.misfits(layout, sorted({r.row for r in refusals}), 0)
            here = [
                Problem(file=name, line=lines.get(r.row, 0), column=r.column, got=r.got, expected=r.expected)
                for r in refusals
            ]
            width = len(layout.columns)
            here += [
                Problem(
                    file=name, line=line, column="", got=f"{got} values", expected=f"{width} values, as the header has"
                )
                for line, got in self._misfits.get(name, [])
            ]
            here += self._repeated(name, layout, limit)
            found += sorted(here, key=lambda problem: problem.line)
        return tuple(found[:limit])

    def _repeated(self, name: str, layout: reading.Layout, limit: int) -> list[Problem]:
        if self._request.copies != "refuse" or not self._copies:
            return []
        before = 0
        for other, found in self._findings.items():
            if other == name:
                break
            before += found.rows
        mine = self._repeats[before : before + self._findings[name].rows]
        rows = [int(row) for row in np.flatnonzero(mine > 0)[:limit]]
        lines, _ = reading.misfits(layout, rows, 0)
        expected = "a row that is not there yet, or --copies keep or drop"
        return [
            Problem(file=name, line=lines.get(row, 0), column="", got="the same as an earlier row", expected=expected)
            for row in rows
        ]

    def require_whole(self) -> None:
        """Raises ChecksFailed."""
        copies = self._copies if self._request.copies == "refuse" else 0
        if not self.refused and not copies:
            return
        problems = self.problems(_REPORTED)
        first = problems[0]
        where = f"{first.file}, line {first.line}" if first.line else first.file or "the delivery"
        what = f"{first.column or 'the row'} is {first.got!r}, expected {first.expected}"
        more = self.refused + copies - 1
        rest = f" There are {more} more." if more > 1 else " There is one more." if more else ""
        rules: Counter[str] = sum((found.by_rule for found in self._findings.values()), Counter())
        raise ChecksFailed(
            f"The bill was not taken: in {where}, {what}.{rest}",
            next_step="Nothing was imported. See all of it with `macadam cost check`, correct the file, and import it again.",
            details={
                "refused": self.refused + copies,
                "by_rule": dict(rules),
                "problems": [{f: getattr(p, f) for f in p.__struct_fields__} for p in problems],
            },
        )

    # Writing

    def end(self) -> Read:
        keep = self._repeats == 0 if self._request.copies == "drop" else np.ones(len(self._repeats), dtype=bool)
        whole = self._rows.whole(keep)
        bills = rows.bills(whole, self._progress)
        charges = self._folder / "charges.parquet"
        schema = normal.schema(tuple(self.extra))
        rows.write(whole, self._repeats, schema, self._folder / _DRAFT, charges, self._progress)
        kept = whole.digests[keep]
        ordered = kept[np.lexsort((kept[:, 1], kept[:, 0]))]
        everything = repr((sorted(self._layouts_columns()), self._request.currency)).encode() + ordered.tobytes()
        return Read(
            version=self.version,
            charges=charges,
            originals=self.originals,
            copies={name: layout.path for name, layout in self._layouts.items()},
            files=self.files,
            content="sha256:" + hashlib.sha256(everything).hexdigest(),
            rows=int(keep.sum()),
            dropped=int((~keep).sum()),
            bills=tuple(bills),
            missing=self.missing,
            unknown=tuple(self.extra),
            notes=self.notes(),
        )

    def _layouts_columns(self) -> set[str]:
        return {column.strip().lower() for layout in self._layouts.values() for column in layout.columns}
