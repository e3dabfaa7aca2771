"""What projects have used of their quotas' windows, and how much of past use still counts in their fair share."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from macadam.compute.jobs import registry
from macadam.compute.jobs.schema import attempts
from macadam.compute.jobs.types import Quota, Window
from macadam.compute.scheduling.types import Spent

_MS = 1000
_HALVINGS = 10  # behind them a thousandth is left


def window_start(window: Window, now: datetime) -> datetime:
    """Midnight in UTC of today, of Monday, or of the first of the month."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if window == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if window == "month" else day


def spent(sql: sa.Connection, project: str, since: datetime) -> Spent:
    """GPU-seconds and µ$ of attempts that have ended, as far as they lie in the window that began then."""
    query = sa.select(sa.func.sum(attempts.c.gpu_ms), sa.func.sum(attempts.c.micros)).where(
        attempts.c.project == project, attempts.c.ended > since
    )
    gpu_ms, micros = sql.execute(query).one()
    before_ms, before_micros = _before(sql, project, since)
    return Spent(gpu_seconds=(int(gpu_ms or 0) - before_ms) / _MS, micros=int(micros or 0) - before_micros)


def _before(sql: sa.Connection, project: str, since: datetime) -> tuple[int, int]:
    """What attempts that reach into the window used before it."""
    gpu_ms = micros = 0
    for row in registry.between(sql, since, since + timedelta(microseconds=1), project):
        if row.ended is not None and row.started < since:
            part = (since - row.started) / (row.ended - row.started)
            gpu_ms += round(row.gpu_ms * part)
            micros += round(row.cost.micros * part) if row.cost else 0
    return gpu_ms, micros


def of_quotas(sql: sa.Connection, quotas: Sequence[Quota], now: datetime) -> dict[str, Spent]:
    """By project; those whose quotas have no limit by time or money are left out."""
    return {
        one.project: spent(sql, one.project, window_start(one.window, now))
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
