"""A month's bills divided over what was seen, worked out once for all projects and kept: figures that stay as they were said.

A project's readers may see their part of a shared machine, and not what others did on it; so the whole is divided by who may read all
of it, and its parts are read from there. The pieces are an immutable object; the newest allocation of a month counts.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from macadam.compute.billing import store as billing
from macadam.compute.billing.types import Charge
from macadam.compute.catalogue import energy as grids
from macadam.compute.telemetry import reading
from macadam.compute.waterfall import cascade, energy, profiles
from macadam.compute.waterfall.bill import line_of
from macadam.compute.waterfall.cascade import Spread
from macadam.compute.waterfall.energy import Energy, Grid, Span
from macadam.compute.waterfall.profiles import Profile
from macadam.compute.waterfall.requests import AllocateCosts, Allocation
from macadam.compute.waterfall.schema import allocations
from macadam.compute.waterfall.served import Served, of_endpoints
from macadam.compute.waterfall.types import Flag, Uncharged
from macadam.errors import NotFound
from macadam.lazy import lazy
from macadam.ledger import service as ledger
from macadam.operations import Context
from macadam.ports import Objects
from macadam.settings import Settings
from macadam.values import Money, uuid7

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
else:
    pa = lazy("pyarrow")
    pc = lazy("pyarrow.compute")
    pq = lazy("pyarrow.parquet")

PUE = Span(value=1.56, low=1.1, high=2.0)
"""Where no PUE is set. 1.56: mean of Uptime Institute's Global Data Center Survey 2024; 1.1: what the largest clouds report of
themselves; 2.0: ours, for a room with a split air conditioner.
"""
_LONGEST = timedelta(days=400)
"""Of telemetry that is read at once: what the series store gives out."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept beside the pieces. models: run → the model that it trained, as its leaf says; served: which models answered at
    endpoints. grid: what CO₂ was computed with.
    """

    bill: dict[str, int]
    uncharged: tuple[Uncharged, ...]
    flags: tuple[Flag, ...]
    energy: tuple[Energy, ...]
    profiles: tuple[Profile, ...]
    models: dict[str, str] = {}
    served: tuple[Served, ...] = ()
    grid: Grid | None = None


@dataclass(frozen=True, kw_only=True)
class Divided:
    """An allocation that is not visible yet. facts: digest of `Facts` as JSON."""

    allocation: Allocation
    facts: str


def month_of(text: str, now: datetime) -> tuple[str, datetime, datetime]:
    """(YYYY-MM, its begin, its end), UTC; '' is the month of `now`."""
    month = text or now.astimezone(UTC).strftime("%Y-%m")
    start = datetime(int(month[:4]), int(month[5:]), 1, tzinfo=UTC)
    return month, start, (start + timedelta(days=32)).replace(day=1)


def divide(context: Context, request: AllocateCosts) -> Divided:
    """The charges that begin in the month, over what was seen while they ran. Raises NotFound, NotAuthorised, InvalidInput."""
    now = context.call.now
    month, start, end = month_of(request.month, now)
    context.authorise("bills:read", context.call.operation.resource)
    granted = context.authorise(reading.PERMISSION, "project:*")
    context.progress(f"reading the bills of {month}", 0, 0)
    with context.read() as sql:
        mapping = billing.mapping(sql).version
        found = billing.current(sql, context.ports.objects, start=start, end=end)
        charges = [charge for charge in found if start <= charge.start < end]
    if not charges:
        raise NotFound(f"No bill charges anything in {month}.", next_step="Import it: macadam cost import FILE.")
    until = _until(charges, start, end)
    context.progress("reading what was seen", 0, 0)
    usage = reading.usage(context.ports, granted, start, until, project="*")
    context.progress(f"dividing {len(charges)} charges over {usage.num_rows} rows of usage", 0, 0)
    mfu = profiles.mfus(usage, request.flops, request.number_format)
    spread = cascade.spread(charges, usage, mfu=mfu, now=now)
    with context.read() as sql:
        models, served = _models(sql, spread), of_endpoints(sql, spread.rows, usage)
    facts = _facts(context.ports.settings, request, spread, usage)
    facts = msgspec.structs.replace(facts, models=models, served=served)
    made = _allocation(context, month, (start, until), spread, charges, usage.num_rows)
    made = msgspec.structs.replace(made, mapping=mapping)
    return Divided(allocation=made, facts=context.ports.objects.put(msgspec.json.encode(facts)))


def _until(charges: Sequence[Charge], start: datetime, end: datetime) -> datetime:
    """Until when telemetry is needed: of a commitment that was bought for years none is, for it pays for no machine's time."""
    return min(max((charge.end for charge in charges if not line_of(charge)), default=end), start + _LONGEST)


def _facts(settings: Settings, request: AllocateCosts, spread: Spread, usage: "pa.Table") -> Facts:
    return Facts(
        bill=spread.bill,
        uncharged=spread.uncharged,
        flags=spread.flags,
        energy=energy.by_owner(usage, pue=pue_of(settings), grams_per_kwh=grid_of(settings).grams_per_kwh),
        grid=grid_of(settings),
        profiles=profiles.by_owner(usage, number_format=request.number_format, model_flops=request.flops),
    )


def _models(sql: sa.Connection, spread: Spread) -> dict[str, str]:
    """Runs say in their leaves which model they trained."""
    found: dict[str, str] = {}
    for owner in (str(owner) for owner in pc.unique(spread.rows["owner"]).to_pylist()):
        if owner.startswith("run:"):
            for entry in ledger.find(sql, kind="models.train", subject=owner, outcome="done", limit=1):
                found[owner] = f"model:{entry.leaf.body['model']}"
    return found


def pue_of(settings: Settings) -> Span:
    """As it is set, else what is usual, with wide bounds."""
    return Span.exactly(settings.prices.pue) if settings.prices.pue else PUE


def grid_of(settings: Settings) -> Grid:
    """The mean of a year of the grid that is set; of the world if none is, between its cleanest and its dirtiest grid."""
    grid = grids.carbon(settings.prices.grid)
    known = grids.intensities()
    exact = Span.exactly(grid.grams_per_kwh)
    wide = Span(value=grid.grams_per_kwh, low=min(known), high=max(grid.grams_per_kwh, *known))
    return Grid(
        region=grid.region,
        grams_per_kwh=exact if settings.prices.grid else wide,
        year=grid.year,
        dated=grid.dated,
        source=grid.source,
    )


def _allocation(
    context: Context,
    month: str,
    span: tuple[datetime, datetime],
    spread: Spread,
    charges: Sequence[Charge],
    usage_rows: int,
) -> Allocation:
    buffer = io.BytesIO()
    pq.write_table(spread.rows, buffer, compression="zstd")
    return Allocation(
        id=uuid7(),
        month=month,
        start=span[0],
        end=span[1],
        rows=context.ports.objects.put(buffer.getvalue()),
        bills=tuple(sorted({charge.bill for charge in charges})),
        charges=len(charges),
        usage_rows=usage_rows,
        bill=tuple(Money(micros=micros, currency=currency) for currency, micros in sorted(spread.bill.items())),
        flags=spread.flags,
        at=context.call.now,
        by=context.call.actor.id,
    )


# --- SQL


def keep(sql: sa.Connection, divided: Divided) -> None:
    made = divided.allocation
    sql.execute(
        sa.insert(allocations).values(
            id=made.id, month=made.month, at=made.at, facts=divided.facts, document=msgspec.to_builtins(made)
        )
    )


def changed(sql: sa.Connection, made: Allocation) -> str:
    """What was changed since a month was divided, in words; '' if nothing was that its figures rest on."""
    if billing.mapping(sql).version != made.mapping:
        return "the rules by which charges are projects'"
    standing = {one.bill.id: one.bill for one in billing.stored(sql)}
    if not set(made.bills) <= set(standing):
        return "bills that it was made from: later deliveries say them anew, or they were withdrawn"
    month, start, end = month_of(made.month, made.at)
    since = {one.id for one in standing.values() if (one.restored or one.at) >= made.at}
    later = billing.charging(sql, start.date(), end.date()) & since
    return f"the bills: more of {month} came" if later - set(made.bills) else ""


def newest(sql: sa.Connection, objects: Objects, month: str) -> tuple[Allocation, Spread, Facts]:
    """What a month was last divided into. Raises NotFound, IntegrityError."""
    a = allocations.c
    query = sa.select(a.document, a.facts).where(a.month == month).order_by(a.at.desc(), a.id.desc()).limit(1)
    row = sql.execute(query).first()
    if row is None:
        if not _is_billed(sql, month):
            raise NotFound(
                f"No bill of {month} is there to be divided.",
                next_step=f"macadam cost import FILE, then macadam cost allocate --month {month}",
            )
        raise NotFound(
            f"The bills of {month} have not been divided.", next_step=f"macadam cost allocate --month {month}"
        )
    found = msgspec.convert(row.document, Allocation)
    facts = msgspec.json.decode(objects.get(row.facts), type=Facts)
    rows = pq.read_table(pa.BufferReader(objects.get(found.rows)))
    return found, Spread(rows=rows, bill=facts.bill, uncharged=facts.uncharged, flags=facts.flags), facts


def _is_billed(sql: sa.Connection, month: str) -> bool:
    _, start, end = month_of(month, datetime.min.replace(tzinfo=UTC))
    return any(one.bill.period_start < end and one.bill.period_end > start for one in billing.stored(sql))


def listed(sql: sa.Connection, limit: int) -> tuple[Allocation, ...]:
    a = allocations.c
    query = sa.select(a.document).order_by(a.month.desc(), a.at.desc(), a.id.desc()).limit(limit)
    return tuple(msgspec.convert(document, Allocation) for document in sql.execute(query).scalars())


Billed = dict[str, dict[str, int]]
"""Owner → currency → micros."""


def billed(sql: sa.Connection, objects: Objects, project: str) -> Billed:
    """What each owner of a project cost over all months that were divided, by each month's newest allocation.

    Raises IntegrityError.
    """
    found: Billed = {}
    for month in sql.execute(sa.select(allocations.c.month).distinct().order_by(allocations.c.month)).scalars().all():
        _, spread, _ = newest(sql, objects, month)
        for one in cascade.waterfalls(spread.of_project(project), "owner"):
            if one.key:
                sums = found.setdefault(one.key, {})
                sums[one.bill.currency] = sums.get(one.bill.currency, 0) + one.bill.micros
    return found
