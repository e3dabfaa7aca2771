"""Advice as operations: what would cost less, what it saves and risks, and what it saved once taken."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import msgspec
import sqlalchemy as sa

from macadam.access import service as access
from macadam.compute.advice import finding, measuring
from macadam.compute.advice.held import Held, days, summarise
from macadam.compute.advice.rates import Rates, rates
from macadam.compute.advice.schema import advice as table
from macadam.compute.advice.types import (
    Advice,
    DismissAdvice,
    FindAdvice,
    ListAdvice,
    MeasureAdvice,
    Measured,
    Proposal,
    Saving,
    ShowAdvice,
    Status,
    TakeAdvice,
)
from macadam.compute.billing import store as bills
from macadam.compute.jobs import registry as jobs
from macadam.compute.jobs.prices import Desk
from macadam.compute.telemetry import reading as telemetry
from macadam.errors import Conflict, NotFound
from macadam.operations import Context, Transaction, operation
from macadam.values import uuid7

_ADVICE = "/api/v1/projects/{project}/advice"
_CURRENCY = "USD"
"""In which list prices are looked up where no bill says otherwise: all of the catalogue's sources price in it."""
_SAME = 0.5
"""Dismissed advice comes again once its figures have moved by more than this part."""
_LONGEST = timedelta(days=366)


@dataclass(frozen=True, kw_only=True)
class _Found:
    start: datetime
    end: datetime
    believed: float
    proposals: tuple[Proposal, ...]


def _find(context: Context, request: FindAdvice) -> _Found:
    end = context.call.now
    start = end - timedelta(days=request.days)
    held = _held(context, request.project, start, end)
    with context.read() as sql:
        access.require_project(sql, request.project)
        priced = _rates(context, sql, request.project, held, start, end)
        attempts = jobs.between(sql, start, end, request.project)
        known = jobs.by_id(sql, sorted({attempt.job for attempt in attempts}))
    preemptible = {job.ref for job in known.values() if job.spec.preemptible}
    found = finding.proposals(held, priced, preemptible, start, end, _currency(priced))
    return _Found(start=start, end=end, believed=finding.believed(held), proposals=found)


def _held(context: Context, project: str, start: datetime, end: datetime) -> tuple[Held, ...]:
    granted = context.authorise(telemetry.PERMISSION, f"project:{project}")
    return summarise(telemetry.usage(context.ports, granted, start, end, project=project))


def _rates(
    context: Context, sql: sa.Connection, project: str, held: Sequence[Held], start: datetime, end: datetime
) -> Rates:
    context.authorise("costs:read", f"project:{project}")
    charges = bills.current(sql, context.ports.objects, start=start, end=end, project=project)
    desk = Desk(sql, context.ports.settings.prices, end, jobs.known_machines(sql))
    charged = partial(desk.price, project)
    return rates(held, charges, bills.own_prices(sql), end.date(), desk.currency(project), charged)


def _currency(priced: Rates) -> str:
    """The one that the devices are paid in, if it is one."""
    paid = {rate.currency for rate in priced.by_device.values()}
    return paid.pop() if len(paid) == 1 else _CURRENCY


@operation(FindAdvice, permission="advice:find", http=f"POST {_ADVICE}", cli="advice find", prepare=_find)
def find_advice(tx: Transaction, request: FindAdvice, found: _Found) -> tuple[Advice, ...]:
    """Keeps what is new, brings what is open up to date, and puts away what was open and was not found again."""
    known = _known(tx.sql, request.project)
    topics = {finding.topic(one): one for one in found.proposals}
    kept = [
        _keep(tx, about, proposal, found, request.project, known)
        for about, proposal in topics.items()
        if _is_news(proposal, known.get(about))
    ]
    past = [old for about, old in known.items() if old.status == "open" and about not in topics]
    for old in past:
        _save(tx.sql, msgspec.structs.replace(old, status="past", decided=tx.now))
    tx.record(
        f"project:{request.project}",
        advice=[_said(one) for one in kept],
        past=[one.ref for one in past] or None,
        days=request.days,
        believed=found.believed,
    )
    return tuple(kept)


def _known(sql: sa.Connection, project: str) -> dict[str, Advice]:
    """The newest advice on each topic."""
    rows = sql.execute(
        sa.select(table.c.topic, table.c.document).where(table.c.project == project).order_by(table.c.id)
    )
    return {row.topic: msgspec.convert(row.document, Advice) for row in rows}


def _is_news(proposal: Proposal, old: Advice | None) -> bool:
    if old is None or old.status in ("open", "past"):
        return True
    return old.status == "dismissed" and not _is_alike(proposal.saving, old.proposal.saving)


def _is_alike(new: Saving, old: Saving) -> bool:
    pairs = [(new.hours, old.hours)]
    if new.expected is not None and old.expected is not None and new.expected.currency == old.expected.currency:
        pairs = [(float(new.expected.micros), float(old.expected.micros))]
    return all(abs(now - was) <= _SAME * abs(was) for now, was in pairs)


def _keep(
    tx: Transaction, about: str, proposal: Proposal, found: _Found, project: str, known: dict[str, Advice]
) -> Advice:
    old = known.get(about)
    again = old is not None and old.status in ("open", "past")
    new = Advice(
        ref=old.ref if old is not None and again else f"advice:{uuid7()}",
        project=project,
        status="open",
        proposal=proposal,
        start=found.start,
        end=found.end,
        believed=found.believed,
        at=tx.now,
        by=tx.actor.id,
    )
    if again:
        _save(tx.sql, new)
    else:
        row = {"id": _id(new.ref), "project": project, "status": new.status, "topic": about, "at": new.at}
        tx.sql.execute(sa.insert(table).values(**row, document=msgspec.to_builtins(new)))
    return new


def _save(sql: sa.Connection, one: Advice) -> None:
    values = {"status": one.status, "at": one.at, "document": msgspec.to_builtins(one)}
    sql.execute(sa.update(table).where(table.c.id == _id(one.ref)).values(**values))


def _id(ref: str) -> str:
    return ref.removeprefix("advice:")


def _said(one: Advice) -> dict[str, object]:
    expected = one.proposal.saving.expected
    said: dict[str, object] = {"ref": one.ref, "kind": one.proposal.kind, "hours": one.proposal.saving.hours}
    return said if expected is None else {**said, "micros": expected.micros, "currency": expected.currency}


@operation(ListAdvice, permission="advice:read", http=f"GET {_ADVICE}", cli="advice list")
def list_advice(tx: Transaction, request: ListAdvice) -> tuple[Advice, ...]:
    query = sa.select(table.c.document).where(table.c.project == request.project)
    if request.status:
        query = query.where(table.c.status == request.status)
    found = [msgspec.convert(document, Advice) for document in tx.sql.execute(query).scalars()]
    return tuple(sorted(found, key=_largest_first)[: request.limit])


def _largest_first(one: Advice) -> tuple[int, float, str]:
    expected = one.proposal.saving.expected
    return (-expected.micros if expected else 0, -one.proposal.saving.hours, one.ref)


def _one(sql: sa.Connection, project: str, ref: str) -> Advice:
    """Raises NotFound."""
    query = sa.select(table.c.document).where(table.c.project == project, table.c.id == _id(ref))
    document = sql.execute(query).scalar_one_or_none()
    if document is None:
        raise NotFound(f"Project {project!r} has no {ref!r}.", next_step=f"macadam advice list --project {project}")
    return msgspec.convert(document, Advice)


@operation(ShowAdvice, permission="advice:read", http=f"GET {_ADVICE}/{{advice}}", cli="advice show")
def show_advice(tx: Transaction, request: ShowAdvice) -> Advice:
    """Raises NotFound."""
    return _one(tx.sql, request.project, request.advice)


@operation(TakeAdvice, permission="advice:decide", http=f"POST {_ADVICE}/{{advice}}/take", cli="advice take")
def take_advice(tx: Transaction, request: TakeAdvice) -> Advice:
    """Raises NotFound, Conflict if it is not open."""
    return _decide(tx, request.project, request.advice, "taken", request.note)


@operation(DismissAdvice, permission="advice:decide", http=f"POST {_ADVICE}/{{advice}}/dismiss", cli="advice dismiss")
def dismiss_advice(tx: Transaction, request: DismissAdvice) -> Advice:
    """Raises NotFound, Conflict if it is not open."""
    return _decide(tx, request.project, request.advice, "dismissed", request.note)


def _decide(tx: Transaction, project: str, ref: str, status: Status, note: str) -> Advice:
    old = _one(tx.sql, project, ref)
    if old.status != "open":
        raise Conflict(
            f"{old.ref} is {old.status} already.", next_step=f"macadam advice list --project {project} --status open"
        )
    new = msgspec.structs.replace(old, status=status, decided=tx.now, decided_by=tx.actor.id, note=note)
    _save(tx.sql, new)
    tx.record(new.ref, uses=new.proposal.subjects, decided=status, note=note or None, **_said(new))
    return new


def _measure(context: Context, request: MeasureAdvice) -> Measured:
    with context.read() as sql:
        taken = _one(sql, request.project, request.advice)
    if taken.status != "taken" or taken.decided is None:
        raise Conflict(
            f"{taken.ref} is {taken.status}: only what was taken can be measured.",
            next_step=f"macadam advice take {taken.ref} --project {request.project}",
        )
    since = max(taken.decided, context.call.now - _LONGEST)
    if not since < context.call.now:
        return Measured(verdict="too early", days=(0, 0))
    before = _held(context, request.project, taken.start, taken.decided)
    after = _held(context, request.project, since, context.call.now)
    with context.read() as sql:
        old = _rates(context, sql, request.project, before, taken.start, taken.decided)
        new = _rates(context, sql, request.project, after, since, context.call.now)
    counted = days(taken.start, taken.decided), days(since, context.call.now)
    if not _are_comparable(old, new):
        return Measured(verdict="too early", days=(len(counted[0]), len(counted[1])))
    # A list that has changed meanwhile is nobody's doing.
    same = {name: rate for name, rate in old.by_device.items() if name in old.listed & new.listed}
    mine = set(taken.proposal.subjects)
    owners = mine if mine <= _workers(before) and mine <= _workers(after) else None
    found = measuring.measure(
        _of(before, owners), counted[0], _of(after, owners), counted[1], old.by_device, new.by_device | same
    )
    return msgspec.structs.replace(found, scope="subjects" if owners else "project")


def _are_comparable(old: Rates, new: Rates) -> bool:
    """Whether both sides are priced alike: where bills told before and lists do since, the bills have not come yet."""
    sources = [{name in side.listed for name in side.by_device} for side in (old, new)]
    both = old.by_device.keys() & new.by_device.keys()
    return sources[0] == sources[1] and all((name in old.listed) == (name in new.listed) for name in both)


def _workers(held: Iterable[Held]) -> set[str]:
    return {one.owner for one in held if sum(one.work.values()) > 0}


def _of(held: Sequence[Held], owners: set[str] | None) -> list[Held]:
    return [one for one in held if owners is None or one.owner in owners]


@operation(
    MeasureAdvice,
    permission="advice:decide",
    http=f"POST {_ADVICE}/{{advice}}/measure",
    cli="advice measure",
    prepare=_measure,
)
def measure_advice(tx: Transaction, request: MeasureAdvice, measured: Measured) -> Advice:
    """Raises NotFound, Conflict if it was not taken."""
    new = msgspec.structs.replace(_one(tx.sql, request.project, request.advice), measured=measured)
    _save(tx.sql, new)
    tx.record(new.ref, uses=new.proposal.subjects, measured=measured)
    return new
