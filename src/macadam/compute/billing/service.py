"""Bills and prices: import, list, and what is charged to whom."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from macadam.access.service import PLATFORM
from macadam.compute.billing import amounts, budgets, deliveries, store
from macadam.compute.billing.deliveries import BillTotals, Read
from macadam.compute.billing.schema import exchange_rates, mappings, price_lists
from macadam.compute.billing.types import (
    Bill,
    BillPage,
    ChargePage,
    CheckBill,
    CheckReport,
    Delivery,
    ExchangeRate,
    ImportBill,
    ImportPrices,
    ImportRates,
    ListBills,
    ListCharges,
    ListPrices,
    ListRates,
    ListUnattributed,
    MapCharges,
    Mapping,
    Note,
    OfferedPrice,
    PriceList,
    ShowBill,
    ShowMapping,
)
from macadam.compute.catalogue import gpus, prices
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


def _prepare(context: Context, request: ImportBill) -> _Prepared | str:
    """The digest of the files if they were taken before. Raises ChecksFailed, SourceInvalid, InvalidInput, TooLarge,
    StorageFull.
    """
    objects = context.ports.objects
    with context.read() as sql:
        rules, known = store.mapping(sql), store.projects(sql)
    home = context.ports.settings.home
    with deliveries.workplace(home) as folder:
        read = deliveries.read(request, home, folder, context.call.now, context.progress, lambda f: _taken(context, f))
        if isinstance(read, str):
            return read
        charges = objects.put_file(read.charges)
        for number, (name, path) in enumerate(read.copies.items()):
            context.progress(f"keeping {name}", number, len(read.copies))
            objects.put_file(path)
        spent = {}
        for totals in read.bills:
            one = store.Stored(bill=_bill(totals, "", context.call.now), key=totals.key, object=charges)
            spent[totals.key] = store.spent(rules, known, store.table(objects, one, store.OWNED))
    return _Prepared(read=read, charges=charges, mapping=rules.version, projects=known, spent=spent)


def _taken(context: Context, files: str) -> bool:
    with context.read() as sql:
        return store.known(sql, files) is not None


@operation(ImportBill, permission="bills:import", http=f"POST {_BILLS}", cli="cost import", resource=PLATFORM,
           prepare=_prepare)  # fmt: skip
def import_bill(tx: Transaction, request: ImportBill, prepared: _Prepared | str) -> Delivery:
    """One delivery, one transaction, one leaf. What was taken before is taken again without any change."""
    files, content = (prepared, "") if isinstance(prepared, str) else (prepared.read.files, prepared.read.content)
    known = store.known(tx.sql, files, content)
    if known is not None:
        tx.record(f"delivery:{known.id}", repeated=1, files=files, content=known.content)
        return known
    if isinstance(prepared, str):
        raise IntegrityError(
            f"The delivery {files} was there, and is not.", next_step="Look at who can write to the database."
        )
    read = prepared.read
    if (prepared.mapping, prepared.projects) != (store.mapping(tx.sql).version, store.projects(tx.sql)):
        raise Conflict("Whose charges are was changed while the bill was read.", next_step="Import it again.")
    delivery_id = uuid7()
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
    if older:
        what = (
            f"this replaces {len(older)} bills of earlier deliveries: files of one delivery are imported as one folder"
        )
        delivery = msgspec.structs.replace(delivery, notes=(*delivery.notes, Note(what=what)), replaced=tuple(older))
    store.keep(tx.sql, delivery, prepared.charges)
    for bill in delivery.bills:
        store.keep_spent(tx.sql, bill, prepared.spent[store.key_of(bill)])
    _record(tx, delivery, prepared, request)
    for project in sorted({project for spent in prepared.spent.values() for project, _ in spent if project}):
        budgets.raise_alerts(tx, project)
    return delivery


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
    with deliveries.workplace(home) as folder:
        return deliveries.check(request, home, folder, context.call.now, context.progress)


@operation(CheckBill, permission="bills:import", http=f"POST {_BILLS}/check", cli="cost check", resource=PLATFORM,
           prepare=_check, reads=True)  # fmt: skip
def check_bill(_tx: Transaction, _request: CheckBill, report: CheckReport) -> CheckReport:
    """What is refused is in the answer, not an error."""
    return report


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
    for bill_id, spent in found.spent.items():
        store.keep_spent(tx.sql, current[bill_id], spent)
    tx.record(
        f"mapping:charges@{rules.version}",
        digest=digest,
        rules=len(rules.rules),
        tag_keys=rules.tag_keys,
        bills=len(current),
    )
    for project in sorted({project for spent in found.spent.values() for project, _ in spent if project}):
        budgets.raise_alerts(tx, project)
    return rules


@operation(
    ShowMapping, permission="bills:read", http="GET /api/v1/charges/mapping", cli="cost mapping", resource=PLATFORM
)
def show_mapping(tx: Transaction, _request: ShowMapping) -> Mapping:
    return store.mapping(tx.sql)


# --- Prices and exchange rates


@operation(ListPrices, permission="prices:read", http="GET /api/v1/projects/{project}/prices", cli="cost prices")
def list_prices(tx: Transaction, request: ListPrices) -> tuple[OfferedPrice, ...]:
    """Raises NotFound for a GPU that is not known."""
    found = prices.offers(
        request.gpu,
        request.at or tx.now.date(),
        provider=request.provider,
        region=request.region,
        kind=request.kind,
        own=store.own_prices(tx.sql),
    )
    return tuple(
        OfferedPrice(**msgspec.structs.asdict(offer.price), age=offer.age, stale=offer.stale)
        for offer in found[: request.limit]
    )


@operation(
    ImportPrices, permission="prices:import", http="POST /api/v1/prices", cli="cost add-prices", resource=PLATFORM
)
def import_prices(tx: Transaction, request: ImportPrices) -> PriceList:
    """Raises NotFound for a GPU that is not known, InvalidInput for one offer twice or a day that is not there yet."""
    new = tuple(msgspec.structs.replace(price, gpu=gpus.find(price.gpu).name) for price in request.prices)
    late = [price for price in new if price.dated > tx.now.date()]
    if late:
        raise InvalidInput(
            f"{late[0].instance} is priced on {late[0].dated}.", next_step="Date prices of today or before."
        )
    offered = [(price.offer, price.dated) for price in new]
    if len(set(offered)) < len(offered):
        twin = next(price for price in new if offered.count((price.offer, price.dated)) > 1)
        raise InvalidInput(f"{twin.instance} of {twin.provider} has two prices on {twin.dated}.", next_step="Keep one.")
    document = msgspec.to_builtins(new)
    digest = digest_of(msgspec.json.encode(document, order="sorted"))
    known = tx.sql.execute(sa.select(price_lists).where(price_lists.c.digest == digest)).first()
    if known is not None:
        return PriceList(version=known.version, digest=digest, prices=len(new), at=known.at, repeated=True)
    version = (tx.sql.execute(sa.select(sa.func.max(price_lists.c.version))).scalar() or 0) + 1
    row = {"version": version, "digest": digest, "at": tx.now, "document": document}
    tx.sql.execute(sa.insert(price_lists).values(row))
    tx.record(f"prices:own@{version}", digest=digest, prices=len(new))
    return PriceList(version=version, digest=digest, prices=len(new), at=tx.now)


@operation(
    ImportRates, permission="rates:import", http="POST /api/v1/exchange-rates", cli="cost add-rates", resource=PLATFORM
)
def import_rates(tx: Transaction, request: ImportRates) -> tuple[ExchangeRate, ...]:
    """Raises Conflict if a day's rate is known and another one, InvalidInput for a rate of nothing."""
    for rate in request.rates:
        if Decimal(rate.rate) <= 0 or rate.base == rate.quote:
            raise InvalidInput(f"One {rate.base} is not worth {rate.rate} {rate.quote}.", next_step="Correct the rate.")
        same = sa.and_(
            exchange_rates.c.base == rate.base,
            exchange_rates.c.quote == rate.quote,
            exchange_rates.c.day == rate.day.isoformat(),
        )
        known = tx.sql.execute(sa.select(exchange_rates.c.rate).where(same)).scalar()
        if known is not None and Decimal(known) != Decimal(rate.rate):
            raise Conflict(
                f"On {rate.day} one {rate.base} was worth {known} {rate.quote}, not {rate.rate}.",
                next_step="Budgets were reckoned with it: give a correction the date on which it holds.",
            )
        if known is None:
            row = msgspec.structs.asdict(rate) | {"day": rate.day.isoformat(), "at": tx.now}
            tx.sql.execute(sa.insert(exchange_rates).values(row))
    digest = digest_of(msgspec.json.encode(request.rates, order="sorted"))
    days = sorted({rate.day.isoformat() for rate in request.rates})
    tx.record("rates:exchange", digest=digest, rates=len(request.rates), first=days[0], last=days[-1])
    return request.rates


@operation(ListRates, permission="prices:read", http="GET /api/v1/projects/{project}/exchange-rates", cli="cost rates")
def list_rates(tx: Transaction, request: ListRates) -> tuple[ExchangeRate, ...]:
    c = exchange_rates.c
    asked = (
        sa.select(c.base, c.quote, c.day, c.rate, c.source).order_by(c.day.desc(), c.base, c.quote).limit(request.limit)
    )
    if request.base:
        asked = asked.where(c.base == request.base)
    if request.quote:
        asked = asked.where(c.quote == request.quote)
    return tuple(
        ExchangeRate(base=row.base, quote=row.quote, day=date.fromisoformat(row.day), rate=row.rate, source=row.source)
        for row in tx.sql.execute(asked)
    )
