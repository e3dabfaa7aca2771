"""Bills in SQL, their charges in objects, and what of them is charged to whom.

Charges are read by the bill, whole columns at a time; the waterfall and reports above start from `current`. What they cost
by project and day is kept in SQL as well, so that asking whether a budget has room opens no object.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import msgspec
import sqlalchemy as sa

from macadam.access.schema import projects as project_table
from macadam.compute.billing import mapping as mapping_rules
from macadam.compute.billing import normal, sharing
from macadam.compute.billing.schema import bills as bill_table
from macadam.compute.billing.schema import deliveries as delivery_table
from macadam.compute.billing.schema import mappings, price_lists, spend
from macadam.compute.billing.types import Bill, Charge, Delivery
from macadam.compute.billing.types import Mapping as Rules
from macadam.compute.catalogue.prices import Price
from macadam.errors import Conflict, IntegrityError, NotFound
from macadam.lazy import lazy
from macadam.ports import Objects
from macadam.values import Money

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    import pyarrow.parquet as pq

    pc: Any  # its overloads do not follow columns whose types are known only at run time
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")
    pc = lazy("pyarrow.compute")
    pq = lazy("pyarrow.parquet")

_DAY = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
COLUMNS = (
    "id", "key", "start", "end", "billed", "effective", "category", "pricing", "commitment", "capacity", "provider", "region",
    "resource", "node", "sku", "model", "gpus", "quantity", "unit", "sub_account", "tags",
)  # fmt: skip
_CURRENT = (bill_table.c.replaced_by.is_(None), bill_table.c.withdrawn.is_(None))
OWNED = ("start", "end", "effective", "sub_account", "resource", "tags")
"""What `spent` looks at."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A bill and where its charges are. key: what they are marked with in the object."""

    bill: Bill
    key: str
    object: str


def key_of(bill: Bill) -> str:
    """What the charges of a bill are marked with."""
    micro = timedelta(microseconds=1)
    opens, closes = ((at - _EPOCH) // micro for at in (bill.period_start, bill.period_end))
    return normal.SEPARATOR.join([bill.issuer, bill.account, str(opens), str(closes), bill.currency])


# Bills


def stored(sql: sa.Connection, *, everything: bool = False, limit: int = 0, bill: str = "") -> list[Stored]:
    """Bills, the newest period first; those that do not count only if `everything` or one is asked for by id."""
    b = bill_table.c
    asked = (
        sa.select(b.document, b.replaced_by, b.withdrawn, b.withdrawn_because, b.restored, delivery_table.c.charges)
        .join(delivery_table, delivery_table.c.id == bill_table.c.delivery)
        .order_by(bill_table.c.period_start.desc(), bill_table.c.at.desc(), bill_table.c.id)
    )
    if bill:
        asked = asked.where(bill_table.c.id == bill)
    elif not everything:
        asked = asked.where(*_CURRENT)
    found = []
    for row in sql.execute(asked.limit(limit) if limit else asked):
        state = {"replaced_by": row.replaced_by or "", "withdrawn": row.withdrawn, "why": row.withdrawn_because or ""}
        state["restored"] = row.restored
        read = msgspec.structs.replace(msgspec.convert(row.document, Bill), **state)
        found.append(Stored(bill=read, key=key_of(read), object=row.charges))
    return found


def find(sql: sa.Connection, bill: str) -> Stored:
    """Raises NotFound."""
    found = stored(sql, bill=bill)
    if not found:
        raise NotFound(f"There is no bill {bill}.", next_step="See `macadam cost bills`.")
    return found[0]


def known(sql: sa.Connection, files: str, content: str = "") -> Delivery | None:
    """The delivery of these files, or of these rows, if it was taken before."""
    same = sa.or_(delivery_table.c.files == files, delivery_table.c.content == content)
    row = sql.execute(sa.select(delivery_table.c.document).where(same).order_by(delivery_table.c.at)).first()
    if row is None:
        return None
    delivery = msgspec.convert(row.document, Delivery)
    ids = [bill.id for bill in delivery.bills]
    states = {s.bill.id: s.bill for s in stored(sql, everything=True) if s.bill.id in ids}
    return msgspec.structs.replace(delivery, bills=tuple(states[i] for i in ids), repeated=True)


def to_replace(sql: sa.Connection, delivery: Delivery) -> tuple[str, ...]:
    """The ids of current bills that the delivery says anew: of the same issuer, account and currency, whose period begins
    with that of a new one or lies within it. Raises Conflict for one that overlaps it in part: both would count.
    """
    found: dict[str, None] = {}
    for bill in delivery.bills:
        for old in _overlapping(sql, bill):
            within = bill.period_start <= old.period_start and old.period_end <= bill.period_end
            if not within and old.period_start != bill.period_start:
                raise Conflict(
                    f"The bill of {bill.account or bill.issuer} from {bill.period_start} to {bill.period_end} overlaps that "
                    f"from {old.period_start} to {old.period_end}: what is in both would count twice.",
                    next_step="Give the billing period as before (in UTC), or deliver one that holds all of the older one.",
                )
            found[old.id] = None
    return tuple(found)


def counting(sql: sa.Connection, out: Iterable[Bill]) -> tuple[Bill, ...]:
    """The current bills that keep these from counting."""
    return tuple({old.id: old for bill in out for old in _overlapping(sql, bill)}.values())


def other_currencies(sql: sa.Connection, bills: Iterable[Bill]) -> tuple[Bill, ...]:
    """Current bills of the same issuer, account and time in other currencies: they stay, and somebody should know."""
    mine = {bill.id for bill in bills}
    found = {old.id: old for bill in bills for old in _overlapping(sql, bill, same_currency=False)}
    return tuple(old for key, old in found.items() if key not in mine)


def _overlapping(sql: sa.Connection, bill: Bill, *, same_currency: bool = True) -> list[Bill]:
    """Current bills of the same issuer and account whose periods share time with this one's."""
    c = bill_table.c
    same = (c.issuer == bill.issuer, c.account == bill.account, c.period_start < bill.period_end)
    currency = c.currency == bill.currency if same_currency else c.currency != bill.currency
    rows = sql.execute(sa.select(c.document).where(*same, currency, *_CURRENT)).scalars()
    found = [msgspec.convert(cast("object", document), Bill) for document in rows]
    return [old for old in found if old.period_end > bill.period_start]


def restorable(sql: sa.Connection, delivery: Delivery) -> list[Stored]:
    """Bills of a delivery that do not count now and may again: nothing that counts speaks of their account, currency and
    time. A bill that a later delivery says anew is none of them, unless what said it anew was withdrawn.
    """
    ids = {bill.id for bill in delivery.bills}
    mine = [one for one in stored(sql, everything=True) if one.bill.id in ids]
    out = [one for one in mine if one.bill.replaced_by or one.bill.withdrawn]
    return [one for one in out if not _overlapping(sql, one.bill)]


def restore(sql: sa.Connection, bill: Bill, at: datetime) -> None:
    """Lets a bill count again; what it charges to whom is kept apart, with `keep_spent`."""
    changed = sa.update(bill_table).where(bill_table.c.id == bill.id)
    sql.execute(changed.values(replaced_by=None, withdrawn=None, withdrawn_because=None, restored=at))


def withdraw(sql: sa.Connection, bill: Bill, at: datetime, why: str) -> tuple[str, ...]:
    """Lets a bill count no more, and returns the ids of those that its delivery had replaced and that nothing says now."""
    changed = sa.update(bill_table).where(bill_table.c.id == bill.id)
    sql.execute(changed.values(withdrawn=at, withdrawn_because=why))
    sql.execute(sa.delete(spend).where(spend.c.bill == bill.id))
    c = bill_table.c
    same = (c.replaced_by == bill.delivery, c.issuer == bill.issuer, c.account == bill.account)
    rows = sql.execute(sa.select(c.document).where(*same, c.currency == bill.currency)).scalars()
    older = [msgspec.convert(cast("object", document), Bill) for document in rows]
    return tuple(old.id for old in older if not _overlapping(sql, old))


def charged(sql: sa.Connection, bill: str) -> tuple[str, ...]:
    """The projects to which a bill charges anything."""
    asked = sa.select(spend.c.project).where(spend.c.bill == bill, spend.c.project != "").distinct()
    return tuple(sorted(sql.execute(asked).scalars()))


def keep(sql: sa.Connection, delivery: Delivery, charges: str) -> None:
    """Writes a delivery and its bills, in place of those that it replaces."""
    sql.execute(
        sa.insert(delivery_table).values(
            id=delivery.id,
            files=delivery.files,
            content=delivery.content,
            charges=charges,
            at=delivery.at,
            document=msgspec.to_builtins(delivery),
        )
    )
    for old in delivery.replaced:
        sql.execute(sa.update(bill_table).where(bill_table.c.id == old).values(replaced_by=delivery.id))
        sql.execute(sa.delete(spend).where(spend.c.bill == old))
    for bill in delivery.bills:
        sql.execute(
            sa.insert(bill_table).values(
                id=bill.id,
                delivery=delivery.id,
                issuer=bill.issuer,
                account=bill.account,
                period_start=bill.period_start,
                currency=bill.currency,
                replaced_by=None,
                at=bill.at,
                document=msgspec.to_builtins(bill),
            )
        )


# Charges


def table(objects: Objects, one: Stored, columns: Iterable[str] = COLUMNS) -> "pa.Table":
    """The charges of a bill, as columns of `normal.schema`. Raises IntegrityError if they are not those of the bill."""
    wanted = list(dict.fromkeys([*columns, "key"]))
    whole = pq.read_table(pa.BufferReader(objects.get(one.object)), columns=wanted)
    found = whole.filter(pc.equal(pc.cast(whole.column("key"), pa.string()), pa.scalar(one.key)))
    if found.num_rows != one.bill.charges:
        raise IntegrityError(
            f"Bill {one.bill.id} has {one.bill.charges} charges, and {found.num_rows} are stored.",
            next_step="Look at who can write to the home's objects, and import the bill again.",
        )
    return found


def with_projects(sql: sa.Connection, rows: "pa.Table") -> "pa.Table":
    """The same with a column `project`, by the newest mapping: '' for what is nobody's."""
    found = mapping_rules.projects_of(mapping(sql), projects(sql), rows)
    return rows.append_column("project", found)


def current(
    sql: sa.Connection,
    objects: Objects,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    project: str | None = None,
) -> Iterator[Charge]:
    """The charges of current bills that overlap a time, bill by bill. project: only whose they are, '' for nobody's.

    Callers must have asked whether that project's costs may be read (or all).
    """
    for one in stored(sql):
        rows = with_projects(sql, within(table(objects, one), start, end))
        if project is not None:
            rows = rows.filter(pc.equal(rows.column("project"), pa.scalar(project)))
        yield from charges(one.bill, rows)


def within(rows: "pa.Table", start: datetime | None, end: datetime | None) -> "pa.Table":
    """Those that overlap [start, end)."""
    kind = pa.timestamp("us", tz="UTC")
    if start is not None:
        rows = rows.filter(pc.greater(rows.column("end"), pa.scalar(start, kind)))
    if end is not None:
        rows = rows.filter(pc.less(rows.column("start"), pa.scalar(end, kind)))
    return rows


def charges(bill: Bill, rows: "pa.Table") -> Iterator[Charge]:
    """Rows of `table`, with their projects, as charges."""
    names = [name for name in rows.column_names if name not in ("key", "sub_account")]
    for batch in rows.select(names).to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            row["billed"] = Money(micros=row["billed"], currency=bill.currency)
            row["effective"] = Money(micros=row["effective"], currency=bill.currency)
            row["tags"] = mapping_rules.tags_of(row["tags"])
            yield Charge(bill=bill.id, **row)


# Mapping and spending


def mapping(sql: sa.Connection) -> Rules:
    """The newest rules; those of version 0 where none were ever set."""
    newest = sa.select(mappings.c.document).order_by(mappings.c.version.desc()).limit(1)
    row = sql.execute(newest).first()
    return Rules(version=0) if row is None else msgspec.convert(row.document, Rules)


def projects(sql: sa.Connection) -> frozenset[str]:
    """The names of this home's projects."""
    return frozenset(row.name for row in sql.execute(sa.select(project_table.c.name)))


Spent = dict[tuple[str, str], int]
"""(project, ISO day) → micros."""


def spent(rules: Rules, known_projects: Iterable[str], rows: "pa.Table") -> Spent:
    """What the charges of one bill cost each project on each day, UTC: a charge over several days by time, exactly."""
    owners: Any = mapping_rules.projects_of(rules, known_projects, rows)
    begin, end, micros = (_whole_numbers(rows.column(name)) for name in ("start", "end", "effective"))
    day = _DAY // timedelta(microseconds=1)
    which, begins, _, parts = sharing.by_days(begin, end, micros, day)
    cut: Any = {"project": owners.take(pa.array(which)), "day": begins // day, "micros": parts}
    grouped = pa.table(cut).group_by(["project", "day"]).aggregate([("micros", "sum")])
    return {
        (row["project"], (_EPOCH + row["day"] * _DAY).date().isoformat()): row["micros_sum"]
        for row in grouped.to_pylist()
        if row["micros_sum"]
    }


def _whole_numbers(column: Any) -> "npt.NDArray[np.int64]":
    return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)


def keep_spent(sql: sa.Connection, bill: Bill, found: Mapping[tuple[str, str], int]) -> None:
    sql.execute(sa.delete(spend).where(spend.c.bill == bill.id))
    rows = [
        {"project": project, "day": day, "currency": bill.currency, "bill": bill.id, "micros": micros}
        for (project, day), micros in sorted(found.items())
    ]
    if rows:
        sql.execute(sa.insert(spend), rows)


def by_project(sql: sa.Connection, bill: str) -> dict[str, int]:
    """Effective cost of a bill in micros, '' for what is nobody's."""
    total = sa.func.sum(spend.c.micros).label("micros")
    rows = sql.execute(sa.select(spend.c.project, total).where(spend.c.bill == bill).group_by(spend.c.project))
    return {row.project: int(row.micros) for row in rows.all()}


def totals(sql: sa.Connection) -> dict[tuple[str, str], int]:
    """What current bills charge in all, by project and currency, in micros."""
    c = spend.c
    rows = sql.execute(
        sa.select(c.project, c.currency, sa.func.sum(c.micros).label("micros"))
        .where(c.project != "")
        .group_by(c.project, c.currency)
    )
    return {(row.project, row.currency): int(row.micros) for row in rows}


def charging(sql: sa.Connection, first: date, until: date) -> set[str]:
    """The ids of current bills that charge anything on days from `first` on and before `until`."""
    days = (spend.c.day >= first.isoformat(), spend.c.day < until.isoformat())
    return set(sql.execute(sa.select(spend.c.bill).where(*days).distinct()).scalars())


def price_version(sql: sa.Connection) -> int:
    """The number of the newest list of prices that was imported here, 0 = none."""
    return int(sql.execute(sa.select(sa.func.max(price_lists.c.version))).scalar() or 0)


def own_prices(sql: sa.Connection) -> tuple[Price, ...]:
    """All prices that were imported here, the lists in order."""
    c = price_lists.c
    digests = [row.digest for row in sql.execute(sa.select(c.digest).order_by(c.version))]
    missing = [digest for digest in digests if digest not in _lists]
    for start in range(0, len(missing), _AT_ONCE):
        asked = sa.select(c.digest, c.document).where(c.digest.in_(missing[start : start + _AT_ONCE]))
        for row in sql.execute(asked):
            _lists[row.digest] = msgspec.convert(cast("object", row.document), tuple[Price, ...])
    return tuple(price for digest in digests for price in _lists[digest])


# A list never changes, and is named by the digest of what it says: who admits work asks for all of them again and again.
_lists: dict[str, tuple[Price, ...]] = {}
_AT_ONCE = 500
