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
_DAY_TEXT = len("2026-11-21")


def allows(sql: sa.Connection, project: str, estimate: Money, now: datetime, *, subject: str = "") -> Verdict:
    """Whether work that may cost `estimate` may begin. Both the project's budget and the subject's are asked.

    Without a hard budget everything may; what a soft one would say is in the reason. An estimate whose currency a hard
    budget cannot count is refused: else changing the currency would be a way round it.
    """
    return _verdict(sql, project, estimate, now, subject, besides="")


def unpriced(sql: sa.Connection, project: str) -> str:
    """Why work may not begin of which nobody knows what it costs: under a hard budget, or it would be none. Else ''."""
    if not any(budget.hard and not budget.subject for budget in of_project(sql, project)):
        return ""
    return f"{project} has a hard budget, and nothing says what this costs: no price of a GPU-hour is set."


def reserve(
    sql: sa.Connection,
    project: str,
    key: str,
    estimate: Money,
    now: datetime,
    *,
    subject: str = "",
    on_bill: bool = True,
) -> Verdict:
    """Holds `estimate` for the work `key` if `allows` does; the same key again replaces what it holds.

    on_bill: whether a provider's bill will show this cost too, as it does not for hardware of one's own. Raises
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
    row |= {"spent": 0, "on_bill": on_bill, "at": known.at if known else now, "settled": None}
    sql.execute(sa.insert(reservations).values(row))
    return verdict


def settle(sql: sa.Connection, key: str, actual: Money, now: datetime) -> None:
    """Replaces what `key` holds by what it cost. The same cost again changes nothing. Raises NotFound, InvalidInput if
    it is below zero or of another currency than was reserved, Conflict if another cost was settled.
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
        if known.spent != actual.micros:
            said = Money(micros=known.spent, currency=known.currency)
            raise Conflict(f"{key} was settled with {said}, not {actual}.", next_step="Settle each work once.")
        return
    changed = sa.update(reservations).where(reservations.c.key == key)
    sql.execute(changed.values(held=0, spent=actual.micros, settled=max(now, known.at)))


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
    billed = convert.total(_billed(sql, budget, start, end))
    metered, unbilled, held = _metered(sql, budget, start, end, billed_to, besides)
    metered_sum, later_sum, held_sum = (convert.total(amounts) for amounts in (metered, unbilled, held))
    money = convert.money
    return Spending(
        spent=money(max(billed + later_sum, metered_sum)),
        held=money(held_sum),
        billed=money(billed),
        metered=money(metered_sum),
        others=convert.others(),
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
        verb = "has" if fits else "has only"
        reason = f"{whose} {verb} {left} of its {budget.amount} left this {budget.period}; this may cost {estimate}."
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


def _metered(
    sql: sa.Connection, budget: Budget, start: datetime, end: datetime, billed_to: datetime | None, besides: str
) -> tuple[Dated, Dated, Dated]:
    """By our own meter: all that ended in the period; of it what bills do not say; and what is held now.

    Added up by the database, as a month may have many thousand jobs and each admission asks: only work that a bill's end
    cuts through is looked at one by one.
    """
    c = reservations.c
    mine = [c.project == budget.project, c.key != besides]
    if budget.subject:
        mine.append(c.subject == budget.subject)
    ended = [*mine, c.settled >= start, c.settled < end]
    metered = _by_day(sql, c.spent, c.settled, ended)
    if billed_to is None:
        return metered, metered, _by_day(sql, c.held, c.at, [*mine, c.settled.is_(None)])
    unbilled = _by_day(sql, c.spent, c.settled, [*ended, sa.or_(~c.on_bill, c.at >= billed_to)])
    cut = sa.select(c.currency, c.spent, c.at, c.settled).where(
        *ended, c.on_bill, c.at < billed_to, c.settled > billed_to
    )
    for row in sql.execute(cut):
        later = _after(row.spent, row.at, row.settled, billed_to)
        unbilled.append((Money(micros=later, currency=row.currency), row.settled.date()))
    return metered, unbilled, _by_day(sql, c.held, c.at, [*mine, c.settled.is_(None)])


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
    _, unbilled, _ = _metered(sql, budget, since, end, billed_to, "")
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
