"""Bills: import, withdraw, list, and what is charged to whom."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from macadam.access.service import PLATFORM
from macadam.compute.billing import amounts, budgets, deliveries, incoming, store
from macadam.compute.billing.deliveries import Read
from macadam.compute.billing.rows import BillTotals
from macadam.compute.billing.schema import mappings
from macadam.compute.billing.types import (
    Bill,
    BillPage,
    ChargePage,
    CheckBill,
    CheckReport,
    Delivery,
    ImportBill,
    ListBills,
    ListCharges,
    ListUnattributed,
    MapCharges,
    Mapping,
    Note,
    ShowBill,
    ShowMapping,
    WithdrawBill,
    Withdrawn,
)
from macadam.errors import Conflict, IntegrityError, InvalidInput
from macadam.lazy import lazy
from macadam.operations import Context, Transaction, operation
from macadam.values import Money, digest_of, uuid7

if TYPE_CHECKING:
    import pyarrow as pa

    pc: Any  # its overloads do not follow columns whose types are known only at run time
else:
    pa = lazy("pyarrow")
    pc = lazy("pyarrow.compute")

_BILLS = "/api/v1/bills"
_ORIGINALS = 200  # digests of files that a leaf lists; their digest over all is always there


# --- Bills


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A delivery whose files and charges are stored, with nothing that points at them yet. spent: by the key of its bill,
    under the mapping and among the projects that were read with it.
    """

    read: Read
    charges: str
    mapping: int
    projects: frozenset[str]
    spent: dict[str, store.Spent]


@dataclass(frozen=True, kw_only=True)
class _Again:
    """Files that were taken before. spent: by key, of those of their bills that do not count and may again."""

    files: str
    mapping: int
    projects: frozenset[str]
    spent: dict[str, store.Spent]


def _prepare(context: Context, request: ImportBill) -> _Prepared | _Again:
    """Raises ChecksFailed, SourceInvalid, InvalidInput, TooLarge, StorageFull."""
    objects = context.ports.objects
    with context.read() as sql:
        rules, known = store.mapping(sql), store.projects(sql)
    home = context.ports.settings.home
    with incoming.workplace(home) as folder:
        read = deliveries.read(request, home, folder, context.call.now, context.progress, lambda f: _taken(context, f))
        if isinstance(read, str):
            return _again(context, read, rules, known)
        charges = objects.put_file(read.charges)
        for number, (name, path) in enumerate(read.copies.items()):
            context.progress(f"keeping {name}", number, len(read.copies))
            objects.put_file(path)
        spent = {}
        for totals in read.bills:
            one = store.Stored(bill=_bill(totals, "", context.call.now), key=totals.key, object=charges)
            spent[totals.key] = store.spent(rules, known, store.table(objects, one, store.OWNED))
    return _Prepared(read=read, charges=charges, mapping=rules.version, projects=known, spent=spent)


def _again(context: Context, files: str, rules: Mapping, projects: frozenset[str]) -> _Again:
    with context.read() as sql:
        delivery = store.known(sql, files)
        out = store.restorable(sql, delivery) if delivery else []
    objects = context.ports.objects
    spent = {one.key: store.spent(rules, projects, store.table(objects, one, store.OWNED)) for one in out}
    return _Again(files=files, mapping=rules.version, projects=projects, spent=spent)


def _taken(context: Context, files: str) -> bool:
    with context.read() as sql:
        return store.known(sql, files) is not None


@operation(ImportBill, permission="bills:import", http=f"POST {_BILLS}", cli="cost import", resource=PLATFORM,
           prepare=_prepare)  # fmt: skip
def import_bill(tx: Transaction, request: ImportBill, prepared: _Prepared | _Again) -> Delivery:
    """One delivery, one transaction, one leaf. What was taken before is taken again without any change, but that of its
    bills those count again that were withdrawn, or whose replacement was, as long as nothing else says them.
    """
    if isinstance(prepared, _Again):
        files, content = prepared.files, ""
    else:
        files, content = prepared.read.files, prepared.read.content
    known = store.known(tx.sql, files, content)
    if (prepared.mapping, prepared.projects) != (store.mapping(tx.sql).version, store.projects(tx.sql)):
        raise Conflict("Whose charges are was changed while the bill was read.", next_step="Import it again.")
    if known is not None:
        return _repeat(tx, known, files, prepared.spent)
    if isinstance(prepared, _Again):
        raise IntegrityError(
            f"The delivery {files} was there, and is not.", next_step="Look at who can write to the database."
        )
    delivery = _delivery(tx, prepared)
    before = store.totals(tx.sql) if delivery.replaced else {}
    store.keep(tx.sql, delivery, prepared.charges)
    for bill in delivery.bills:
        store.keep_spent(tx.sql, bill, prepared.spent[store.key_of(bill)])
    _record(tx, delivery, prepared, request)
    _alert(tx, prepared.spent.values(), before)
    return delivery


def _repeat(tx: Transaction, known: Delivery, files: str, spent: dict[str, store.Spent]) -> Delivery:
    back = store.restorable(tx.sql, known)
    for one in back:
        if one.key not in spent:
            raise Conflict("Bills were withdrawn while this one was read.", next_step="Import it again.")
        store.restore(tx.sql, one.bill, tx.now)
        store.keep_spent(tx.sql, one.bill, spent[one.key])
    ids = tuple(one.bill.id for one in back)
    tx.record(
        f"delivery:{known.id}",
        uses=[f"bill:{bill}" for bill in ids[:_ORIGINALS]],
        repeated=1,
        files=files,
        content=known.content,
        restored=len(ids) or None,
    )
    _alert(tx, [spent[one.key] for one in back])
    found = store.known(tx.sql, known.files) or known
    return msgspec.structs.replace(found, restored=ids, notes=(*found.notes, *_instead(tx, found)))


def _instead(tx: Transaction, delivery: Delivery) -> Iterable[Note]:
    """What counts in place of what was taken again: who imports an older file may think that it does."""
    out = [bill for bill in delivery.bills if bill.replaced_by or bill.withdrawn]
    others = store.counting(tx.sql, out)
    if others:
        what = f"another bill counts instead; if that one is wrong: macadam cost withdraw {others[0].id}"
        yield Note(what=what)


def _alert(tx: Transaction, several: Iterable[store.Spent], before: dict[tuple[str, str], int] | None = None) -> None:
    """before: totals by project and currency, where some may have fallen since: what was raised of more is taken back there."""
    after = store.totals(tx.sql) if before else {}
    fallen = {key[0] for key, micros in (before or {}).items() if after.get(key, 0) < micros}
    for project in sorted({project for spent in several for project, _ in spent} | fallen):
        if project in fallen:
            budgets.reconsider(tx, project)
        elif project:
            budgets.raise_alerts(tx, project)


def _delivery(tx: Transaction, prepared: _Prepared) -> Delivery:
    """With what it replaces, and what stands beside it in other currencies. Raises Conflict."""
    read, delivery_id = prepared.read, uuid7()
    delivery = Delivery(
        id=delivery_id,
        version=read.version,
        files=read.files,
        content=read.content,
        originals=read.originals,
        rows=read.rows,
        dropped=read.dropped,
        bills=tuple(_bill(totals, delivery_id, tx.now) for totals in read.bills),
        missing=read.missing,
        unknown=read.unknown,
        notes=read.notes,
        at=tx.now,
        by=tx.actor.id,
    )
    older = store.to_replace(tx.sql, delivery)
    notes = list(delivery.notes)
    if older:
        what = (
            f"this replaces {len(older)} bills of earlier deliveries: files of one delivery are imported as one folder"
        )
        notes.append(Note(what=what))
    beside = [bill for bill in store.other_currencies(tx.sql, delivery.bills) if bill.id not in older]
    if beside:
        currencies = ", ".join(sorted({b.currency for b in beside}))
        what = (
            f"{len(beside)} in {currencies} stay beside this; if one is a mistake: macadam cost withdraw {beside[0].id}"
        )
        notes.append(Note(what=what))
    return msgspec.structs.replace(delivery, notes=tuple(notes), replaced=older)


def _record(tx: Transaction, delivery: Delivery, prepared: _Prepared, request: ImportBill) -> None:
    originals = list(delivery.originals.values())
    tx.record(
        f"delivery:{delivery.id}",
        uses=[f"bill:{bill}" for bill in delivery.replaced[:_ORIGINALS]],
        version=delivery.version,
        files=delivery.files,
        content=delivery.content,
        originals=originals[:_ORIGINALS],
        parquet=prepared.charges,  # by this name `ledger verify` reads it again
        rows=delivery.rows,
        dropped=delivery.dropped,
        bills=len(delivery.bills),
        bills_digest=digest_of(msgspec.json.encode(delivery.bills)),
        totals=_totals(prepared.read.bills),
        replaced=len(delivery.replaced),
        mapping=prepared.mapping,
        lenient=request.lenient,
        copies=request.copies,
    )


def _totals(bills: Iterable[BillTotals]) -> dict[str, dict[str, str]]:
    """Exact sums by currency."""
    found: dict[str, tuple[Decimal, Decimal]] = {}
    for bill in bills:
        billed, effective = found.get(bill.currency, (Decimal(0), Decimal(0)))
        found[bill.currency] = (amounts.added(billed, bill.billed), amounts.added(effective, bill.effective))
    return {c: {"billed": amounts.written(b), "effective": amounts.written(e)} for c, (b, e) in sorted(found.items())}


def _bill(totals: BillTotals, delivery: str, at: datetime) -> Bill:
    return Bill(
        id=uuid7(),
        delivery=delivery,
        issuer=totals.issuer,
        account=totals.account,
        period_start=totals.period_start,
        period_end=totals.period_end,
        currency=totals.currency,
        charges=totals.charges,
        billed=amounts.written(totals.billed),
        effective=amounts.written(totals.effective),
        unused=amounts.written(totals.unused),
        by_category=totals.by_category,
        at=at,
    )


def _check(context: Context, request: CheckBill) -> CheckReport:
    home = context.ports.settings.home
    with incoming.workplace(home) as folder:
        return deliveries.check(request, home, folder, context.call.now, context.progress)


@operation(CheckBill, permission="bills:import", http=f"POST {_BILLS}/check", cli="cost check", resource=PLATFORM,
           prepare=_check, reads=True)  # fmt: skip
def check_bill(_tx: Transaction, _request: CheckBill, report: CheckReport) -> CheckReport:
    """What is refused is in the answer, not an error."""
    return report


@operation(WithdrawBill, permission="bills:withdraw", http=f"POST {_BILLS}/{{bill}}/withdraw", cli="cost withdraw",
           resource=PLATFORM)  # fmt: skip
def withdraw_bill(tx: Transaction, request: WithdrawBill) -> Withdrawn:
    """Raises NotFound, Conflict for a bill that does not count anyway."""
    one = store.find(tx.sql, request.bill)
    bill = one.bill
    if bill.withdrawn is not None:
        raise Conflict(
            f"Bill {bill.id} was withdrawn at {bill.withdrawn.isoformat()}: {bill.why}.",
            next_step="Import its files again if it should count.",
        )
    if bill.replaced_by:
        raise Conflict(
            f"Bill {bill.id} does not count: the delivery {bill.replaced_by} says it anew.",
            next_step="Withdraw the bill that counts: macadam cost bills.",
        )
    projects = store.charged(tx.sql, bill.id)
    uncovered = store.withdraw(tx.sql, bill, tx.now, request.reason)
    tx.record(
        f"bill:{bill.id}",
        uses=[f"delivery:{bill.delivery}"],
        withdrawn=1,
        reason=request.reason,
        issuer=bill.issuer,
        account=bill.account,
        period_start=bill.period_start,
        currency=bill.currency,
        billed=bill.billed,
        effective=bill.effective,
        uncovered=list(uncovered[:_ORIGINALS]),
    )
    cleared = sum(budgets.reconsider(tx, project) for project in projects)
    found = store.find(tx.sql, bill.id).bill
    return Withdrawn(bill=found, uncovered=uncovered, projects=projects, cleared=cleared)


@operation(ListBills, permission="bills:read", http=f"GET {_BILLS}", cli="cost bills", resource=PLATFORM)
def list_bills(tx: Transaction, request: ListBills) -> tuple[Bill, ...]:
    return tuple(one.bill for one in store.stored(tx.sql, everything=request.all, limit=request.limit))


@operation(ShowBill, permission="bills:read", http=f"GET {_BILLS}/{{bill}}", cli="cost bill", resource=PLATFORM)
def show_bill(tx: Transaction, request: ShowBill) -> BillPage:
    """Raises NotFound."""
    found = store.find(tx.sql, request.bill)
    currency = found.bill.currency
    by_project = {
        project: Money(micros=micros, currency=currency)
        for project, micros in store.by_project(tx.sql, request.bill).items()
    }
    nobodys = by_project.pop("", Money(micros=0, currency=currency))
    version = store.mapping(tx.sql).version
    return BillPage(bill=found.bill, by_project=by_project, unattributed=nobodys, mapping=version)


@operation(ListCharges, permission="costs:read", http="GET /api/v1/projects/{project}/charges", cli="cost charges")
def list_charges(tx: Transaction, request: ListCharges) -> ChargePage:
    return _page(tx, request.project, request.start, request.end, request.limit)


@operation(ListUnattributed, permission="bills:read", http="GET /api/v1/charges/unattributed", cli="cost unattributed",
           resource=PLATFORM)  # fmt: skip
def list_unattributed(tx: Transaction, request: ListUnattributed) -> ChargePage:
    return _page(tx, "", request.start, request.end, request.limit)


def _page(tx: Transaction, project: str, start: datetime | None, end: datetime | None, limit: int) -> ChargePage:
    for at in (start, end):
        if at is not None and at.tzinfo is None:
            raise InvalidInput(f"{at.isoformat()} has no time zone.", next_step="Add one, such as Z.")
    count, effective, billed = 0, dict[str, int](), dict[str, int]()
    dearest = []
    for one in store.stored(tx.sql):
        rows = store.with_projects(tx.sql, store.within(store.table(tx.ports.objects, one), start, end))
        rows = rows.filter(pc.equal(rows.column("project"), pa.scalar(project)))
        count += rows.num_rows
        if not rows.num_rows:
            continue
        for sums, name in ((effective, "effective"), (billed, "billed")):
            sums[one.bill.currency] = sums.get(one.bill.currency, 0) + pc.sum(rows.column(name)).as_py()
        top = rows.take(pc.select_k_unstable(rows, limit, sort_keys=[("effective", "descending"), ("id", "ascending")]))
        dearest += list(store.charges(one.bill, top))
    dearest.sort(key=lambda charge: (-charge.effective.micros, charge.id))
    return ChargePage(
        count=count, effective=_amounts(effective), billed=_amounts(billed), charges=tuple(dearest[:limit])
    )


def _amounts(sums: dict[str, int]) -> tuple[Money, ...]:
    return tuple(Money(micros=micros, currency=currency) for currency, micros in sorted(sums.items()))


# --- Whose charges are


@dataclass(frozen=True, kw_only=True)
class _Remapped:
    """What current bills cost whom under new rules. bills: which were current."""

    rules: Mapping
    spent: dict[str, store.Spent]
    projects: frozenset[str]


def _remap(context: Context, request: MapCharges) -> _Remapped:
    with context.read() as sql:
        version = store.mapping(sql).version + 1
        known, bills = store.projects(sql), store.stored(sql)
    rules = Mapping(
        version=version,
        rules=request.rules,
        tag_keys=tuple(dict.fromkeys(request.tag_keys)),
        at=context.call.now,
        by=context.call.actor.id,
    )
    unknown = sorted({rule.project for rule in rules.rules} - known)
    if unknown:
        raise InvalidInput(
            f"There is no project {', '.join(unknown)}.", next_step="Make it first: macadam projects create."
        )
    spent = {}
    for number, one in enumerate(bills):
        context.progress("mapping charges", number, len(bills))
        spent[one.bill.id] = store.spent(rules, known, store.table(context.ports.objects, one, store.OWNED))
    return _Remapped(rules=rules, spent=spent, projects=known)


@operation(MapCharges, permission="costs:map", http="POST /api/v1/charges/mapping", cli="cost map", resource=PLATFORM,
           prepare=_remap)  # fmt: skip
def map_charges(tx: Transaction, _request: MapCharges, found: _Remapped) -> Mapping:
    """Raises Conflict if bills, projects or rules were changed meanwhile, InvalidInput for a project that does not exist."""
    current = {one.bill.id: one.bill for one in store.stored(tx.sql)}
    rules = found.rules
    if current.keys() != found.spent.keys() or (found.projects, rules.version) != (
        store.projects(tx.sql),
        store.mapping(tx.sql).version + 1,
    ):
        raise Conflict("Bills or rules were changed while charges were mapped.", next_step="Map them again.")
    document = msgspec.to_builtins(rules)
    digest = digest_of(msgspec.json.encode([document["rules"], document["tag_keys"]], order="sorted"))
    row = {"version": rules.version, "digest": digest, "at": tx.now, "document": document}
    tx.sql.execute(sa.insert(mappings).values(row))
    before = store.totals(tx.sql)
    for bill_id, spent in found.spent.items():
        store.keep_spent(tx.sql, current[bill_id], spent)
    tx.record(
        f"mapping:charges@{rules.version}",
        digest=digest,
        rules=len(rules.rules),
        tag_keys=rules.tag_keys,
        bills=len(current),
    )
    _alert(tx, found.spent.values(), before)
    return rules


@operation(
    ShowMapping, permission="bills:read", http="GET /api/v1/charges/mapping", cli="cost mapping", resource=PLATFORM
)
def show_mapping(tx: Transaction, _request: ShowMapping) -> Mapping:
    return store.mapping(tx.sql)
