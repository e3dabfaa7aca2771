"""Which job held which device when, and what jobs used: the seam to telemetry's attribution and to bills."""

from datetime import datetime

import sqlalchemy as sa

from macadam.compute.jobs import registry
from macadam.compute.jobs.types import WHOLE, Usage
from macadam.compute.telemetry.types import Holding
from macadam.values import Money


def holdings(sql: sa.Connection, start: datetime, end: datetime) -> tuple[Holding, ...]:
    """Every holding that overlaps the interval (UTC, end excluded), whole and not cut to it, in order of its start."""
    return tuple(
        Holding(
            device=device,
            project=row.project,
            owner=f"job:{row.job}",
            start=row.started,
            end=row.ended,
            share=milli / WHOLE,
        )
        for row in registry.between(sql, start, end)
        for place in row.places
        for device, milli in place.devices.items()
    )


def used(sql: sa.Connection, start: datetime, end: datetime, project: str = "") -> tuple[Usage, ...]:
    """By job: GPU-seconds held within the interval, and what was measured of attempts that ended in it. '' = all projects."""
    found: dict[str, Usage] = {}
    for row in registry.between(sql, start, end, project):
        held = (min(row.ended or end, end) - max(row.started, start)).total_seconds()
        ended_here = row.ended is not None and start <= row.ended < end
        before = found.get(row.job)
        costs = [cost for cost in (before.cost if before else None, row.cost if ended_here else None) if cost]
        found[row.job] = Usage(
            project=row.project,
            job=f"job:{row.job}",
            gpu_seconds=(before.gpu_seconds if before else 0) + held * row.milli / WHOLE,
            cpu_seconds=(before.cpu_seconds if before else 0) + (row.cpu_seconds if ended_here else 0),
            peak_bytes=max(before.peak_bytes if before else 0, row.peak_bytes if ended_here else 0),
            cost=_sum(costs),
        )
    return tuple(found.values())


def _sum(costs: list[Money]) -> Money | None:
    """None for nothing, and for several currencies: they are not added."""
    if len({cost.currency for cost in costs}) != 1:
        return None
    return Money(micros=sum(cost.micros for cost in costs), currency=costs[0].currency)
