"""The operations on how much a principal may ask, and on what gateways have refused."""

import msgspec
import sqlalchemy as sa

from macadam.access import state as access
from macadam.access.schema import denials, rates
from macadam.access.service import PLATFORM, find_principal
from macadam.access.types import DenialReport, LimitRate, ListRates, Rate, RecordDenials
from macadam.errors import Conflict
from macadam.operations import Transaction, operation
from macadam.values import digest_of


@operation(LimitRate, permission="rates:set", http="POST /api/v1/principals/{principal}/rate", cli="principals limit",
           resource=PLATFORM)  # fmt: skip
def limit_rate(tx: Transaction, request: LimitRate) -> Rate:
    """Raises NotFound."""
    holder = find_principal(tx.sql, request.principal)
    rate = Rate(
        principal=holder.id,
        per_second=request.per_second,
        burst=request.burst,
        since=tx.now,
        set_by=tx.actor.id,
    )
    tx.sql.execute(sa.delete(rates).where(rates.c.principal == holder.id))
    tx.sql.execute(sa.insert(rates).values(msgspec.structs.asdict(rate)))
    access.touch(tx.sql)
    tx.record(holder.id, per_second=rate.per_second, burst=rate.burst)
    return rate


@operation(ListRates, permission="rates:read", http="GET /api/v1/principals/rates", cli="principals limits",
           resource=PLATFORM)  # fmt: skip
def list_rates(tx: Transaction, _request: ListRates) -> tuple[Rate, ...]:
    rows = tx.sql.execute(sa.select(rates).order_by(rates.c.principal))
    return tuple(Rate(**row._asdict()) for row in rows)


@operation(RecordDenials, permission="denials:record", http="POST /api/v1/denials", cli="principals denials",
           resource=PLATFORM)  # fmt: skip
def record_denials(tx: Transaction, request: RecordDenials) -> DenialReport:
    """Raises Conflict if a report of that name with other counts was recorded: somebody has written into it."""
    return keep_denials(tx, request, PLATFORM)


def keep_denials(tx: Transaction, request: RecordDenials, subject: str) -> DenialReport:
    """One leaf for a report, on `subject`; the second time the leaf says only that. Raises Conflict like `record_denials`."""
    digest = digest_of(msgspec.json.encode(request, order="sorted"))
    total = sum(one.count for one in request.denials) + request.others
    known = tx.sql.execute(sa.select(denials.c.digest).where(denials.c.report == request.report)).scalar()
    if known is not None and known != digest:
        raise Conflict(
            f"The report {request.report!r} was recorded with other counts.",
            next_step="Look at who can write to the home's `denials` folder.",
        )
    if known is None:
        row = {"report": request.report, "digest": digest, "at": tx.now}
        tx.sql.execute(sa.insert(denials).values(row))
    uses = sorted({one.actor for one in request.denials if one.actor})
    counts = [msgspec.structs.asdict(one) for one in request.denials]
    tx.record(subject, uses=uses, report=request.report, denials=counts if known is None else [], others=request.others,
              repeated=known is not None)  # fmt: skip
    return DenialReport(report=request.report, denials=total, known=known is not None)
