"""A project's own jobs as a trace: what the studies of queueing replay under another policy or on another pool, and what they have paid."""

from collections.abc import Iterable

from macadam.compute.jobs.types import WHOLE, AttemptRow, Job, JobCost
from macadam.compute.simulation.queue import Jobs
from macadam.errors import NotFound
from macadam.values import Money


def trace(jobs: Iterable[Job]) -> Jobs:
    """Of the jobs that succeeded on GPUs. Authors are the tenants; a part of a GPU counts as one, so the pool is never too small.

    Raises NotFound if there are none.
    """
    rows = sorted(
        (job.submitted.timestamp(), job.id, job.attained, max(1, job.spec.resources.gpus), job.author)
        for job in jobs
        if job.state == "succeeded" and job.attained > 0 and job.spec.resources.demand
    )
    if not rows:
        raise NotFound("The project has no job that succeeded on GPUs.", next_step="Give a file: --jobs FILE.")
    return Jobs(
        submitted=[at - rows[0][0] for at, *_ in rows],
        seconds=[seconds for _, _, seconds, _, _ in rows],
        gpus=[gpus for *_, gpus, _ in rows],
        tenant=[author for *_, author in rows],
    )


def costs(rows: Iterable[AttemptRow]) -> tuple[JobCost, ...]:
    """Of attempts that have ended and held GPUs, by what they were charged."""
    found: dict[tuple[str, str, Money | None, str], JobCost] = {}
    for row in rows:
        if row.ended is None or not row.milli:
            continue
        nothing = _of_its_kind(row)
        key = (nothing.gpu, nothing.price, nothing.per_gpu_hour, row.cost.currency if row.cost else "")
        before = found.get(key, nothing)
        paid = before.cost.micros if before.cost else 0
        found[key] = JobCost(
            gpu=before.gpu,
            per_gpu_hour=before.per_gpu_hour,
            price=before.price,
            gpu_hours=before.gpu_hours + row.gpu_ms / (WHOLE * 3600),
            cost=Money(micros=paid + row.cost.micros, currency=row.cost.currency) if row.cost else None,
            attempts=before.attempts + 1,
        )
    return tuple(sorted(found.values(), key=lambda one: (-(one.cost.micros if one.cost else 0), one.gpu, one.price)))


def _of_its_kind(row: AttemptRow) -> JobCost:
    prices = row.rate.prices if row.rate else ()
    return JobCost(
        gpu=" and ".join(sorted({price.model or "unknown" for price in prices})),
        per_gpu_hour=prices[0].per_gpu_hour if len(prices) == 1 else None,
        price="; ".join(f"{price.how}: {price.words}" for price in prices) or "no price was known",
        gpu_hours=0,
        cost=None,
        attempts=0,
    )


def an_hour(paid: Iterable[JobCost]) -> Money | None:
    """What an hour of a GPU has cost on average, with the cores beside it, rounded half to even; None if nothing was priced, or in several
    currencies.
    """
    priced = [(one.cost, one.gpu_hours) for one in paid if one.cost and one.gpu_hours > 0]
    if len({cost.currency for cost, _ in priced}) != 1:
        return None
    hours = sum(hours for _, hours in priced)
    return Money(micros=round(sum(cost.micros for cost, _ in priced) / hours), currency=priced[0][0].currency)
