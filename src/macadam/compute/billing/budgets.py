"""What is spent, reserved and left of budgets, in SQL, and whether more work may begin.

`allows` is asked and `reserve` called inside the transaction that admits the work. Writers take turns, so that two can
never both have the last euro. Amounts of different currencies are never added: see `exchange`.
"""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

import msgspec
import sqlalchemy as sa

from macadam.compute.billing import exchange, forecast, periods
from macadam.compute.billing.budget_types import Alert, AlertKind, Budget, BudgetState, Forecast, Spending, Verdict
from macadam.compute.billing.schema import alerts, bills, reservations, spend
from macadam.compute.billing.schema import budgets as table
from macadam.errors import Conflict, InvalidInput, NotFound
from macadam.operations import Transaction
from macadam.values import Money

_PERCENT = 100
_OWN = "/own"  # behind the key of work of which only a part is on bills: the other part
_DAY_TEXT = len("2026-11-21")


def allows(sql: sa.Connection, project: str, estimate: Money, now: datetime, *, subject: str = "") -> Verdict:
    """Whether work that may cost `estimate` may begin. Both the project's budget and the subject's are asked.

    Without a hard budget everything may; what a soft one would say is in the reason. An estimate whose currency a hard
    budget cannot count is refused: else changing the currency would be a way round it.
    """
    return _verdict(sql, project, estimate, now, subject, besides="")


def unpriced(sql: sa.Connection, project: str, why: str) -> str:
    """Why work may not begin of which nobody knows what it costs: under a hard budget, or it would be none. Else ''."""
    if not any(budget.hard and not budget.subject for budget in of_project(sql, project)):
        return ""
    return f"{project} has a hard budget, and nothing says what this costs: {why}."


def reserve(
    sql: sa.Connection,
    project: str,
    key: str,
    estimate: Money,
    now: datetime,
    *,
    subject: str = "",
    on_bill: bool = True,
    until: datetime | None = None,
) -> Verdict:
    """Holds `estimate` for the work `key` if `allows` does; the same key again replaces what it holds.

    on_bill: whether a provider's bill will show this cost too, as it does not for hardware of one's own. until: when what is held
    will have been used up, so that bills that come meanwhile count for their part of it; None: it counts in full beside them. Raises
    InvalidInput for an estimate below zero, Conflict if the work has been settled.
    """
    if estimate.micros < 0:
        raise InvalidInput(f"{key} cannot reserve {estimate}.", next_step="Estimate at least nothing.")
    known = sql.execute(sa.select(reservations).where(reservations.c.key == key)).first()
    if known is not None and known.settled is not None:
        raise Conflict(f"{key} was settled at {known.settled}.", next_step="Reserve for new work under its own key.")
    verdict = _verdict(sql, project, estimate, now, subject, besides=key)
    if not verdict.allowed:
        return verdict
    sql.execute(sa.delete(reservations).where(reservations.c.key == key))
    row = {"key": key, "project": project, "subject": subject, "currency": estimate.currency, "held": estimate.micros}
    row |= {"spent": 0, "on_bill": on_bill, "at": known.at if known else now, "until": until, "settled": None}
    sql.execute(sa.insert(reservations).values(row))
    return verdict


def book(
    sql: sa.Connection,
    project: str,
    key: str,
    actual: Money,
    start: datetime,
    end: datetime,
    *,
    own: Money | None = None,
) -> None:
    """Writes down what work has cost that had reserved nothing, as no price was known when it began. own: as of `settle`."""
    row = {"key": key, "project": project, "subject": "", "currency": actual.currency, "held": 0, "spent": 0}
    row |= {"on_bill": own is None or own.micros < actual.micros, "at": start, "until": None, "settled": None}
    sql.execute(sa.insert(reservations).values(row))
    settle(sql, key, actual, end, own=own)


def settle(sql: sa.Connection, key: str, actual: Money, now: datetime, *, own: Money | None = None) -> None:
    """Replaces what `key` holds by what it cost. own: the part of it that no bill will show, where one will show the rest. The same
    cost again changes nothing. Raises NotFound, InvalidInput if it is below zero or of another currency than was reserved, Conflict if
    another cost was settled.
    """
    known = sql.execute(sa.select(reservations).where(reservations.c.key == key)).first()
    if known is None:
        raise NotFound(f"Nothing is reserved for {key}.", next_step="Reserve before the work begins.")
    if actual.micros < 0 or actual.currency != known.currency:
        raise InvalidInput(
            f"{key} reserved {known.currency} and cannot cost {actual}.",
            next_step=f"Give what it cost in {known.currency}, not below zero.",
        )
    if known.settled is not None:
        said = Money(micros=known.spent + _apart(sql, key), currency=known.currency)
        if said != actual:
            raise Conflict(f"{key} was settled with {said}, not {actual}.", next_step="Settle each work once.")
        return
    apart = own.micros if own is not None and known.on_bill else 0
    if not 0 <= apart <= actual.micros or (own is not None and own.currency != actual.currency):
        raise InvalidInput(f"{own} of {actual} cannot be on no bill.", next_step="Give a part of what it cost.")
    ended = max(now, known.at)
    changed = sa.update(reservations).where(reservations.c.key == key)
    sql.execute(changed.values(held=0, spent=actual.micros - apart, settled=ended))
    if apart:
        row = known._asdict() | {"key": key + _OWN, "held": 0, "spent": apart, "on_bill": False, "settled": ended}
        sql.execute(sa.insert(reservations).values(row))


def _apart(sql: sa.Connection, key: str) -> int:
    """Micros of the work that are on no bill, where the rest is."""
    c = reservations.c
    return int(sql.execute(sa.select(c.spent).where(c.key == key + _OWN)).scalar() or 0)


def release(sql: sa.Connection, key: str, now: datetime) -> None:
    """Lets go of what `key` holds: the work never began. One that holds nothing, or was settled, is left as it is."""
    open_one = sa.and_(reservations.c.key == key, reservations.c.settled.is_(None))
    sql.execute(sa.update(reservations).where(open_one).values(held=0, settled=now))


def of_project(sql: sa.Connection, project: str) -> tuple[Budget, ...]:
    """The project's budgets, its own first."""
    rows = sql.execute(sa.select(table.c.document).where(table.c.project == project).order_by(table.c.subject))
    return tuple(msgspec.convert(row.document, Budget) for row in rows)


def spending(sql: sa.Connection, budget: Budget, now: datetime, *, besides: str = "") -> Spending:
    """Of the period that `now` is in. besides: the key of work whose reservation does not count."""
    start, end = periods.bounds(budget.period, now)
    convert = exchange.Converter(sql, budget.amount.currency, wanted=budget.convert)
    billed_to = _billed_to(sql, budget) if not budget.subject else None
    seen = _metered(sql, budget, start, end, billed_to, besides)
    billed, metered, later, held, held_later = (
        convert.sums(amounts)
        for amounts in (_billed(sql, budget, start, end), seen.ended, seen.unbilled, seen.held, seen.held_unbilled)
    )
    money, mine = convert.money, budget.amount.currency

    def spent_in(currency: str) -> int:
        return max(billed.get(currency, 0) + later.get(currency, 0), metered.get(currency, 0))

    def with_held(currency: str) -> int:
        """What runs is partly on bills already: by them, or by the meter, and by neither twice."""
        by_bills = billed.get(currency, 0) + later.get(currency, 0) + held_later.get(currency, 0)
        return max(by_bills, metered.get(currency, 0) + held.get(currency, 0))

    others = sorted({*billed, *metered, *later, *held} - {mine})
    return Spending(
        spent=money(spent_in(mine)),
        held=money(with_held(mine) - spent_in(mine)),
        billed=money(billed.get(mine, 0)),
        metered=money(metered.get(mine, 0)),
        others=tuple(Money(micros=m, currency=c) for c in others if (m := with_held(c))),
        billed_to=billed_to,
    )


def state(sql: sa.Connection, budget: Budget, now: datetime) -> BudgetState:
    """What a budget looks like now."""
    start, end = periods.bounds(budget.period, now)
    seen = spending(sql, budget, now)
    left = budget.amount.micros - seen.spent.micros - seen.held.micros
    expected = _forecast(sql, budget, now, seen)
    return BudgetState(
        project=budget.project,
        subject=budget.subject,
        amount=budget.amount,
        spent=seen.spent,
        held=seen.held,
        period=budget.period,
        period_start=start,
        period_end=end,
        billed=seen.billed,
        metered=seen.metered,
        others=seen.others,
        billed_to=seen.billed_to,
        thresholds=budget.thresholds,
        convert=budget.convert,
        method=expected.method,
        days=expected.days,
        low=expected.low,
        high=expected.high,
        level=expected.level,
        alerts=_raised(sql, budget, start),
        hard=budget.hard,
        left=Money(micros=left, currency=budget.amount.currency),
        forecast=expected.total,
    )


def raise_alerts(tx: Transaction, project: str) -> tuple[Alert, ...]:
    """Raises what is due of a project's budgets: an event in SQL and a leaf for each, once in a period."""
    found = new_alerts(tx.sql, project, tx.now)
    for alert in found:
        tx.record(f"budget:{project}", alert=facts(alert))
    return found


def reconsider(tx: Transaction, project: str) -> int:
    """After costs fell: takes back this period's alerts that what is left does not call for, with a leaf for each, so that
    they are raised again if it ever does; and raises what is due. Returns how many were taken back.
    """
    taken = 0
    for budget in of_project(tx.sql, project):
        now_state = state(tx.sql, budget, tx.now)
        due = {(alert.kind, alert.threshold) for alert in _due(now_state, tx.now)}
        for alert in now_state.alerts:
            if (alert.kind, alert.threshold) not in due:
                tx.sql.execute(sa.delete(alerts).where(*_same(alert)))
                tx.record(f"budget:{project}", alert=facts(alert), taken_back=1)
                taken += 1
    raise_alerts(tx, project)
    return taken


def _same(alert: Alert) -> tuple[sa.ColumnElement[bool], ...]:
    keys = ("project", "subject", "period_start", "threshold", "kind")
    return tuple(alerts.c[name] == getattr(alert, name) for name in keys)


def new_alerts(sql: sa.Connection, project: str, now: datetime) -> tuple[Alert, ...]:
    """Writes down which alerts are due that were not raised yet. Whoever asks records a leaf for each, with its `facts`.

    What was raised of another amount does not count, and gives way: who was allowed more is warned of that too.
    """
    found: list[Alert] = []
    for budget in of_project(sql, project):
        now_state = state(sql, budget, now)
        known = {(alert.kind, alert.threshold) for alert in now_state.alerts if alert.amount == budget.amount}
        found += [alert for alert in _due(now_state, now) if (alert.kind, alert.threshold) not in known]
    for alert in found:
        keys = {name: getattr(alert, name) for name in ("project", "subject", "period_start", "threshold", "kind")}
        sql.execute(sa.delete(alerts).where(*_same(alert)))
        sql.execute(sa.insert(alerts).values(**keys, at=alert.at, document=msgspec.to_builtins(alert)))
    return tuple(found)


def facts(alert: Alert) -> dict[str, object]:
    """What a leaf says of an alert."""
    return {
        "kind": alert.kind,
        "budget_of": alert.subject,
        "threshold_percent": alert.threshold,
        "amount_micros": alert.amount.micros,
        "seen_micros": alert.seen.micros,
        "currency": alert.amount.currency,
        "period_start": alert.period_start,
    }


def _due(seen: BudgetState, now: datetime) -> Iterable[Alert]:
    kinds: tuple[tuple[AlertKind, Money], ...] = (("actual", seen.spent), ("forecast", seen.forecast))
    for kind, value in kinds:
        for threshold in sorted(seen.thresholds):
            # A forecast is of the whole period, so half of the budget is no news: only whether it will be over.
            if kind == "forecast" and threshold < _PERCENT:
                continue
            if value.micros * _PERCENT >= seen.amount.micros * threshold:
                yield Alert(
                    project=seen.project,
                    subject=seen.subject,
                    kind=kind,
                    threshold=threshold,
                    amount=seen.amount,
                    seen=value,
                    period_start=seen.period_start,
                    at=now,
                )


# Verdicts


def _verdict(
    sql: sa.Connection, project: str, estimate: Money, now: datetime, subject: str, *, besides: str
) -> Verdict:
    asked = [b for b in of_project(sql, project) if b.subject in ("", subject)]
    if not asked:
        return Verdict(allowed=True, reason=f"{project} has no budget.", estimate=estimate)
    verdicts = [_of_budget(sql, budget, estimate, now, besides) for budget in asked]
    # A refusal decides; else what is tightest is what a person wants to see.
    return min(verdicts, key=lambda v: (v.allowed, v.left.micros if v.left is not None else 0))


def _of_budget(sql: sa.Connection, budget: Budget, estimate: Money, now: datetime, besides: str) -> Verdict:
    seen = spending(sql, budget, now, besides=besides)
    start, end = periods.bounds(budget.period, now)
    currency = budget.amount.currency
    left = Money(micros=budget.amount.micros - seen.spent.micros - seen.held.micros, currency=currency)
    asked = exchange.Converter(sql, currency, wanted=budget.convert).one(estimate, now)
    whose = f"{budget.subject} of {budget.project}" if budget.subject else budget.project
    if asked is None:
        fits, reason = False, f"The budget of {whose} is in {currency}, which {estimate.currency} is not counted in."
        step = "Estimate in its currency, or import exchange rates and set the budget with --convert."
    else:
        fits = asked <= left.micros
        reason = f"{_has(whose, left, budget, enough=fits)} this {budget.period}; this may cost {estimate}."
        step = (
            "" if fits else "Wait for other work to end, ask for less, or have the budget raised: macadam budgets set."
        )
    return Verdict(
        allowed=fits or not budget.hard,
        reason=reason,
        estimate=estimate,
        left=left,
        budget=budget.amount,
        subject=budget.subject,
        period_start=start,
        period_end=end,
        next_step=step,
    )


def _has(whose: str, left: Money, budget: Budget, *, enough: bool) -> str:
    if left.micros < 0:
        over = msgspec.structs.replace(left, micros=-left.micros)
        return f"{whose} has spent and promised {over} more than its {budget.amount}"
    return f"{whose} {'has' if enough else 'has only'} {left} of its {budget.amount} left"


# What was spent


def _billed(sql: sa.Connection, budget: Budget, start: datetime, end: datetime) -> list[tuple[Money, date]]:
    if budget.subject:  # bills say nothing of endpoints and runs
        return []
    rows = sql.execute(
        sa.select(spend.c.day, spend.c.currency, sa.func.sum(spend.c.micros).label("micros"))
        .where(spend.c.project == budget.project, *_within(start, end))
        .group_by(spend.c.day, spend.c.currency)
    )
    return [(Money(micros=int(r.micros), currency=r.currency), date.fromisoformat(r.day)) for r in rows]


def _within(start: datetime, end: datetime) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return spend.c.day >= start.date().isoformat(), spend.c.day < end.date().isoformat()


def _billed_to(sql: sa.Connection, budget: Budget) -> datetime | None:
    """The end of the last day for which a bill charges the project anything, and no later than that bill was imported: a
    fee for the whole month or year says nothing of what the days to come will cost.
    """
    rows = sql.execute(
        sa.select(sa.func.max(spend.c.day).label("last"), bills.c.at)
        .outerjoin(bills, bills.c.id == spend.c.bill)
        .where(spend.c.project == budget.project)
        .group_by(spend.c.bill, bills.c.at)
    )
    ends = [(_midnight(date.fromisoformat(row.last) + timedelta(days=1)), row.at) for row in rows]
    return max((min(end, at or end) for end, at in ends), default=None)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, datetime.min.time(), UTC)


Dated = list[tuple[Money, date]]


class _Meter(msgspec.Struct, frozen=True, kw_only=True):
    """By our own meter. ended: of work that ended in the period, without what bills of earlier periods say of it; unbilled: the same
    without what any bill says. held, held_unbilled: alike, of what work that has not ended holds.
    """

    ended: Dated
    unbilled: Dated
    held: Dated
    held_unbilled: Dated


def _metered(
    sql: sa.Connection, budget: Budget, start: datetime, end: datetime, billed_to: datetime | None, besides: str
) -> _Meter:
    c = reservations.c
    mine = [c.project == budget.project, c.key != besides]
    if budget.subject:
        mine.append(c.subject == budget.subject)
    ended = [*mine, c.settled >= start, c.settled < end]
    running = [*mine, c.settled.is_(None)]
    if billed_to is None:
        spent, held = _by_day(sql, c.spent, c.settled, ended), _by_day(sql, c.held, c.at, running)
        return _Meter(ended=spent, unbilled=spent, held=held, held_unbilled=held)
    before = min(start, billed_to)
    return _Meter(
        ended=_beyond(sql, c.spent, c.settled, ended, before),
        unbilled=_beyond(sql, c.spent, c.settled, ended, billed_to),
        held=_beyond(sql, c.held, c.until, running, before),
        held_unbilled=_beyond(sql, c.held, c.until, running, billed_to),
    )


def _beyond(
    sql: sa.Connection,
    amount: sa.Column[int],
    until: sa.Column[datetime],
    where: list[sa.ColumnElement[bool]],
    billed_to: datetime,
) -> Dated:
    """The part that was incurred after bills stop; all of it where no bill will show it.

    Added up by the database, as a month may have many thousand jobs and each admission asks: only work that a bill's end
    cuts through is looked at one by one.
    """
    c = reservations.c
    day = c.at if until is c.until else until
    found = _by_day(sql, amount, day, [*where, sa.or_(~c.on_bill, c.at >= billed_to, until.is_(None))])
    cut = sa.select(c.currency, amount.label("micros"), c.at, until.label("until"), day.label("day")).where(
        *where, c.on_bill, c.at < billed_to, until > billed_to
    )
    for row in sql.execute(cut):
        later = _after(row.micros, row.at, row.until, billed_to)
        found.append((Money(micros=later, currency=row.currency), row.day.date()))
    return found


def _by_day(
    sql: sa.Connection, amount: sa.Column[int], at: sa.Column[datetime], where: list[sa.ColumnElement[bool]]
) -> Dated:
    """Sums for each currency and day; instants are texts that begin with their day."""
    day = sa.func.substr(sa.cast(at, sa.String), 1, _DAY_TEXT).label("day")
    asked = sa.select(reservations.c.currency, day, sa.func.sum(amount).label("micros")).where(*where)
    rows = sql.execute(asked.group_by(reservations.c.currency, day))
    return [(Money(micros=int(r.micros), currency=r.currency), date.fromisoformat(r.day)) for r in rows]


def _after(micros: int, start: datetime, end: datetime, billed_to: datetime | None) -> int:
    """The part of a cost that was incurred after bills stop, by time, rounded up."""
    if billed_to is None or billed_to <= start:
        return micros
    if billed_to >= end:
        return 0
    whole, later = end - start, end - billed_to
    microsecond = timedelta(microseconds=1)
    return -(-micros * (later // microsecond) // (whole // microsecond))


def _forecast(sql: sa.Connection, budget: Budget, now: datetime, seen: Spending) -> Forecast:
    start, end = periods.bounds(budget.period, now)
    since = min(start, now - timedelta(days=forecast.HISTORY + 1))
    convert = exchange.Converter(sql, budget.amount.currency, wanted=budget.convert)
    billed_to = seen.billed_to
    unbilled = _metered(sql, budget, since, end, billed_to, "").unbilled
    daily: dict[date, int] = {}
    for money, day in [*_billed(sql, budget, since, end), *unbilled]:
        daily[day] = daily.get(day, 0) + (convert.one(money, _noon(day)) or 0)
    # Where only bills tell, days after the last of them are not complete, however long ago they were.
    yesterday = now.date() - timedelta(days=1)
    through = min(yesterday, billed_to.date() - timedelta(days=1)) if billed_to and not unbilled else yesterday
    found = forecast.project(daily, start=start.date(), end=end.date(), through=through, so_far=seen.spent.micros)
    money_of = convert.money
    return Forecast(
        total=money_of(found.total),
        method=found.method,
        days=found.days,
        low=None if found.low is None else money_of(found.low),
        high=None if found.high is None else money_of(found.high),
    )


def _noon(day: date) -> datetime:
    return _midnight(day) + timedelta(hours=12)


def _raised(sql: sa.Connection, budget: Budget, start: datetime) -> tuple[Alert, ...]:
    rows = sql.execute(
        sa.select(alerts.c.document)
        .where(alerts.c.project == budget.project, alerts.c.subject == budget.subject, alerts.c.period_start == start)
        .order_by(alerts.c.kind, alerts.c.threshold)
    )
    return tuple(msgspec.convert(row.document, Alert) for row in rows)
