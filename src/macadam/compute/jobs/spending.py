"""What projects have used of their quotas' windows, and how much of past use still counts in their fair share."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta

import msgspec
import sqlalchemy as sa

from macadam.compute.billing import exchange
from macadam.compute.jobs import registry
from macadam.compute.jobs.schema import attempts
from macadam.compute.jobs.types import Quota, Window
from macadam.compute.scheduling.types import Spent
from macadam.values import Money

_MS = 1000
_ANY = "USD"  # where no limit is in money, none of the sums is looked at
_HALVINGS = 10  # behind them a thousandth is left


def window_start(window: Window, now: datetime) -> datetime:
    """Midnight in UTC of today, of Monday, or of the first of the month."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if window == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if window == "month" else day


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What a project has used of a window. others: what it has paid in currencies of which nothing says what they are worth."""

    spent: Spent
    others: tuple[Money, ...] = ()


def counted(sql: sa.Connection, project: str, since: datetime, currency: str) -> Counted:
    """Of attempts that have ended, as far as they lie in the window that began then. Amounts in other currencies count at the imported
    rates of the days on which the attempts ended.
    """
    c = attempts.c
    day = sa.func.substr(sa.cast(c.ended, sa.String), 1, 10).label("day")
    query = (
        sa.select(c.currency, day, sa.func.sum(c.gpu_ms).label("gpu_ms"), sa.func.sum(c.micros).label("micros"))
        .where(c.project == project, c.ended > since)
        .group_by(c.currency, day)
    )
    rows = sql.execute(query).all()
    before_ms, before = _before(sql, project, since)
    paid = [(Money(micros=int(r.micros), currency=r.currency), date.fromisoformat(r.day)) for r in rows if r.currency]
    sums = exchange.Converter(sql, currency, wanted=True).sums([*paid, *before])
    micros = sums.pop(currency, 0)
    return Counted(
        spent=Spent(gpu_seconds=(sum(int(r.gpu_ms) for r in rows) - before_ms) / _MS, micros=micros),
        others=tuple(Money(micros=m, currency=other) for other, m in sorted(sums.items()) if m),
    )


def _before(sql: sa.Connection, project: str, since: datetime) -> tuple[int, list[tuple[Money, date]]]:
    """What attempts that reach into the window used before it; the money as what is to be taken off."""
    gpu_ms, off = 0, []
    for row in registry.between(sql, since, since + timedelta(microseconds=1), project):
        if row.ended is not None and row.started < since:
            part = (since - row.started) / (row.ended - row.started)
            gpu_ms += round(row.gpu_ms * part)
            if row.cost:
                money = Money(micros=-round(row.cost.micros * part), currency=row.cost.currency)
                off.append((money, row.ended.date()))
    return gpu_ms, off


def of_quotas(sql: sa.Connection, quotas: Sequence[Quota], now: datetime) -> dict[str, Counted]:
    """By project; those whose quotas have no limit by time or money are left out."""
    return {
        one.project: counted(sql, one.project, window_start(one.window, now), one.money.currency if one.money else _ANY)
        for one in quotas
        if one.gpu_hours is not None or one.money is not None
    }


def decayed(sql: sa.Connection, half_life: float, now: datetime) -> dict[str, float]:
    """GPU-seconds by project, each halved for every half-life (seconds) since its attempt ended."""
    query = sa.select(attempts.c.project, attempts.c.ended, attempts.c.gpu_ms).where(
        attempts.c.ended > now - timedelta(seconds=half_life * _HALVINGS), attempts.c.gpu_ms > 0
    )
    found: dict[str, float] = {}
    for project, ended, gpu_ms in sql.execute(query):
        age = max(0.0, (now - ended).total_seconds())
        found[project] = found.get(project, 0.0) + gpu_ms / _MS * 0.5 ** (age / half_life)
    return found
