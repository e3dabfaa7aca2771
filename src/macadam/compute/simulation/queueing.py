"""The study of queueing: what a trace's jobs and tenants would have waited under each policy, and what pool does the same work for less.

Reads files of the shape timestamp, duration, num_gpus, gpu_time, cluster (the virtual cluster is the tenant), such as those of
Microsoft's Philly cluster (Jeon et al., USENIX ATC 2019). No policy but the oracle knows durations before jobs have ended.
"""

import csv
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import accumulate
from math import ceil, floor, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from macadam.compute.scheduling.types import Policy
from macadam.compute.simulation import queue
from macadam.compute.simulation.queue import Jobs, Outcome
from macadam.errors import InvalidInput, SourceInvalid, TooLarge
from macadam.lazy import lazy
from macadam.operations import Progress

if TYPE_CHECKING:
    import numpy as np
else:
    np = lazy("numpy")

COLUMNS = ("timestamp", "duration", "num_gpus", "cluster")
_LARGEST = 512 * 2**20  # bytes: some ten million rows
_LONGEST = 36_525 * 86400.0  # seconds that a trace may span
_MOST = 2**31  # GPUs
_HOUR = 3600.0
_STEPS = 12  # the bill is no smooth curve of the pool, and some pools between two that do are too slow
_HALVINGS = 2
_BLOCK = 8  # GPUs of a machine: what an elastic pool rents at once

Name = Literal["default", "gittins", "least-attained", "shortest", "fifo-backfill", "fifo", "oracle", "static"]
POLICIES: dict[Name, Policy] = {
    "default": Policy(),
    "gittins": Policy(reclaim="never"),
    "least-attained": Policy(order="least-attained", reclaim="never"),
    "shortest": Policy(order="shortest", preempt="never", reclaim="never"),
    "fifo-backfill": Policy(order="fifo", preempt="never", reclaim="never"),
    "fifo": Policy(order="fifo", backfill="none", preempt="never", reclaim="never"),
    "oracle": Policy(order="oracle", preempt="never", reclaim="never"),
    "static": Policy(order="fifo", backfill="none", preempt="never", reclaim="never"),
}


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant's jobs. share: its GPUs, in proportion to its demand. wait_p95: seconds that were not service; alone_p95: on its own share."""

    tenant: str
    jobs: int
    share: int
    wait_p95: float
    alone_p95: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One policy on one pool. mean, median, p95, p99: completion times (seconds from submission to end; infinite where jobs never run,
    as on a static share that is smaller than they are). lost_gpu_hours: what preemptions
    cost. pool_gpu_hours: the whole pool from the first submission to the last end; elastic_gpu_hours: machines of 8 GPUs rented by the
    hour while they are needed. seconds: processor time of the simulation; jobs_per_second: of it; both 0 for static shares, which are simulated once for all policies. worse: tenants whose p95 wait is longer than on their own share.
    """

    policy: str
    gpus: int
    jobs: int
    mean: float
    median: float
    p95: float
    p99: float
    preemptions: int
    lost_gpu_hours: float
    pool_gpu_hours: float
    elastic_gpu_hours: float
    seconds: float
    jobs_per_second: float
    worse: tuple[str, ...]
    tenants: tuple[Tenant, ...]


class Saving(msgspec.Struct, frozen=True, kw_only=True):
    """The same work for less. baseline: static shares, first come first served; found: the smallest bill among the pools that were tried, at
    a mean and p95 that are no worse. saved, saved_elastic: parts of the baseline's GPU-hours; saved_at_most: what no schedule could exceed
    in a fixed pool of the size that was found (`least_paid`).
    """

    baseline: Summary
    found: Summary
    elastic: Summary
    work_gpu_hours: float
    saved: float
    saved_elastic: float
    saved_at_most: float


def read_jobs(path: Path) -> Jobs:
    """Raises SourceInvalid with the line that is wrong, TooLarge."""
    if not path.is_file():
        raise InvalidInput(f"{path} is no file.", next_step=f"Give a CSV file with the columns {', '.join(COLUMNS)}.")
    if path.stat().st_size > _LARGEST:
        raise TooLarge(f"{path} is larger than {_LARGEST} bytes.", next_step="Give a part of it.")
    found = sorted(_rows(path))
    if not found:
        raise SourceInvalid(f"{path} has no jobs.", next_step="Give a file with at least one row.")
    first, last = found[0][0], max(row[0] + row[2] for row in found)
    if last - first > _LONGEST:
        raise SourceInvalid(
            f"{path} reaches over {(last - first) / 86400:.3g} days.",
            next_step=f"Correct its dates and durations: {_LONGEST / 86400:.0f} days at most.",
        )
    return Jobs(
        submitted=[row[0] - first for row in found],
        seconds=[row[2] for row in found],
        gpus=[row[3] for row in found],
        tenant=[row[4] for row in found],
    )


def _rows(path: Path) -> Iterator[tuple[float, int, float, int, str]]:
    """When, in which line, how long, on how many GPUs, whose. A byte-order mark is passed over."""
    zones: set[bool] = set()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            names = rows.fieldnames or ()
            missing = [column for column in COLUMNS if list(names).count(column) != 1]
            if missing:
                raise SourceInvalid(
                    f"{path} has not one column {missing[0]!r}.", next_step=f"Give {', '.join(COLUMNS)}."
                )
            for row in rows:
                at, seconds, gpus, tenant = _row(path, rows.line_num, row)
                zones.add(at.tzinfo is not None)
                if len(zones) > 1:
                    raise _wrong(path, rows.line_num, "some timestamps have a zone and others have none")
                # Such traces often have no zone; only differences count.
                at = at if at.tzinfo else at.replace(tzinfo=UTC)
                yield at.timestamp(), rows.line_num, seconds, gpus, tenant
    except (csv.Error, UnicodeDecodeError) as error:
        raise SourceInvalid(f"{path} is no CSV file in UTF-8: {error}.", next_step="Export it anew.") from error


def _wrong(path: Path, number: int, what: str) -> SourceInvalid:
    return SourceInvalid(f"{path}, line {number}: {what}.", next_step="Correct or remove the line.")


def _row(path: Path, number: int, row: Mapping[str | None, object]) -> tuple[datetime, float, int, str]:
    timestamp, duration, need, tenant = (row[column] for column in COLUMNS)
    if None in row or tenant is None:
        raise _wrong(path, number, "it has not as many fields as the header")
    try:
        at, seconds, gpus = datetime.fromisoformat(str(timestamp)), float(str(duration)), float(str(need))
    except ValueError as error:
        raise _wrong(path, number, str(error)) from error
    if not (isfinite(seconds) and seconds > 0 and 0 < gpus < _MOST and gpus.is_integer() and tenant):
        raise SourceInvalid(
            f"{path}, line {number}: a job of {duration} s on {need} GPUs of {tenant!r}.",
            next_step="Give a duration above 0, a whole number of GPUs above 0, and a tenant.",
        )
    return at, seconds, int(gpus), str(tenant)


def proportional(jobs: Jobs, gpus: int) -> dict[str, int]:
    """Each tenant's static share: in proportion to its GPU-seconds, and at least its largest job, as that could not run otherwise.

    Where the largest jobs together need more than there is, in proportion alone: what is larger than its share is then promised nothing.
    """
    demand: dict[str, float] = defaultdict(float)
    largest: dict[str, int] = defaultdict(int)
    for tenant, need, seconds in zip(jobs.tenant, jobs.gpus, jobs.seconds, strict=True):
        demand[tenant] += need * seconds
        largest[tenant] = max(largest[tenant], need)
    least = dict(largest) if sum(largest.values()) <= gpus else {}
    fixed: dict[str, int] = {}
    while True:
        rest = gpus - sum(fixed.values())
        free = {tenant: seconds for tenant, seconds in demand.items() if tenant not in fixed}
        whole = sum(free.values())
        low = [tenant for tenant in free if free[tenant] / whole * rest < least.get(tenant, 0)]
        if not low:
            return fixed | _whole({tenant: seconds / whole * rest for tenant, seconds in free.items()})
        fixed |= {tenant: least[tenant] for tenant in low}


def _whole(parts: Mapping[str, float]) -> dict[str, int]:
    """Rounds so that the sum stays (largest remainders; ties by name)."""
    down = {name: floor(part + 1e-9) for name, part in parts.items()}
    over = round(sum(parts.values())) - sum(down.values())
    for name in sorted(parts, key=lambda name: (down[name] - parts[name], name))[:over]:
        down[name] += 1
    return down


def run(
    jobs: Jobs,
    gpus: int,
    name: Name,
    *,
    shares: Mapping[str, int] | None = None,
    cost: float = 30.0,
    progress: Progress | None = None,
) -> tuple[Summary, Outcome]:
    """One policy on one pool. shares: of tenants, None = `proportional`. cost: seconds of work that a preemption loses.

    Raises InvalidInput where the pool cannot run each job, whatever the policy.
    """
    queue.check_pool(jobs, gpus, cost)
    owned = dict(shares) if shares is not None else proportional(jobs, gpus)
    alone = queue.static_shares(jobs, owned)
    policy = POLICIES[name]
    report = _reporting(name, len(jobs), progress)
    began = time.process_time()
    outcome = (
        alone
        if name == "static"
        else queue.simulate(jobs, gpus, policy, owned if name == "default" else None, cost, report)
    )
    spent = 0.0 if name == "static" else time.process_time() - began  # what was known already took no time to measure
    return summarise(jobs, gpus, name, outcome, alone, owned, spent), outcome


def _reporting(name: str, total: int, progress: Progress | None) -> Callable[[int], None] | None:
    if progress is None:
        return None
    say = progress
    return lambda done: say(f"{name}: jobs", done, total)


def summarise(
    jobs: Jobs, gpus: int, name: str, outcome: Outcome, alone: Outcome, shares: Mapping[str, int], seconds: float
) -> Summary:
    """The figures of one run beside what each tenant would have had alone."""
    submitted, needed = np.asarray(jobs.submitted), np.asarray(jobs.seconds)
    spent = np.asarray(outcome.finished) - submitted
    with np.errstate(invalid="ignore"):  # between two that never end
        found = np.nan_to_num([spent.mean(), *np.quantile(spent, [0.5, 0.95, 0.99])], nan=np.inf, posinf=np.inf)
    mean, median, p95, p99 = (float(one) for one in found)
    waits = spent - needed
    tenants = tuple(_tenants(jobs, waits, np.asarray(alone.finished) - submitted - needed, shares))
    return Summary(
        policy=name,
        gpus=gpus,
        jobs=len(jobs),
        mean=mean,
        median=median,
        p95=p95,
        p99=p99,
        preemptions=outcome.preemptions,
        lost_gpu_hours=outcome.lost / _HOUR,
        pool_gpu_hours=gpus * (max(outcome.finished) - jobs.submitted[0]) / _HOUR,
        elastic_gpu_hours=elastic(jobs, outcome),
        seconds=seconds,
        jobs_per_second=len(jobs) / seconds if seconds else 0.0,
        worse=tuple(one.tenant for one in tenants if one.wait_p95 > one.alone_p95 + 1e-6),
        tenants=tenants,
    )


def _tenants(jobs: Jobs, waits: "np.ndarray", alone: "np.ndarray", shares: Mapping[str, int]) -> Iterator[Tenant]:
    owners = np.asarray(jobs.tenant)
    for tenant in sorted(set(jobs.tenant)):
        mine = owners == tenant
        yield Tenant(
            tenant=tenant,
            jobs=int(mine.sum()),
            share=shares.get(tenant, 0),
            wait_p95=float(np.quantile(waits[mine], 0.95, method="higher")),
            alone_p95=float(np.quantile(alone[mine], 0.95, method="higher")),
        )


def elastic(jobs: Jobs, outcome: Outcome, block: int = _BLOCK) -> float:
    """GPU-hours of a pool that rents machines of `block` GPUs by the hour: for each clock hour the most in use, rounded up to machines.

    Least that can be paid: it supposes that jobs are moved together when an hour ends, and no time to rent and to give back.
    """
    if not outcome.stretches:
        return 0.0
    which, began, ended = (np.asarray(column) for column in zip(*outcome.stretches, strict=True))
    need = np.asarray(jobs.gpus)[which.astype(int)]
    instants = np.concatenate([began, ended])
    # At one instant what ends comes before what starts.
    order = np.lexsort((np.repeat([1, 0], len(began)), instants))
    used = np.cumsum(np.concatenate([need, -need])[order])
    instants = instants[order]
    hours = (instants // _HOUR).astype(int)
    peak = np.zeros(int(hours.max()) + 1)
    rises = order < len(began)
    np.maximum.at(peak, hours[rises], used[rises])
    # What goes on when an hour begins counts for it too.
    last = np.searchsorted(instants, np.arange(len(peak)) * _HOUR, side="right") - 1
    peak = np.maximum(peak, np.where(last >= 0, used[last], 0))
    return float((np.ceil(peak / block) * block).sum())


def save(
    jobs: Jobs,
    gpus: int,
    *,
    name: Name = "default",
    shares: Mapping[str, int] | None = None,
    cost: float = 30.0,
    least: float = 0.5,
    progress: Progress | None = None,
) -> Saving:
    """What pool does the same work for less than static shares of `gpus`, first come first served, at a mean and p95 that are no worse.

    Tries pools from `least` of it to all of it: a smaller one works longer, so the smallest is not always the cheapest.
    """
    queue.check_pool(jobs, gpus, cost)
    baseline, _ = run(jobs, gpus, "static", shares=shares, cost=cost)
    if not isfinite(baseline.mean):
        raise InvalidInput(
            "Some jobs are larger than their tenant's share, and never run in the baseline.",
            next_step=f"Give a pool of {sum(_largest(jobs).values())} GPUs or more.",
        )
    fitting = _fitting(jobs, gpus, name, baseline, cost, least, progress)
    if not fitting:
        raise InvalidInput(f"No pool of up to {gpus} GPUs is as fast.", next_step="Give another policy.")
    found = min(fitting, key=lambda one: (one.pool_gpu_hours, one.mean))
    cheapest = min(fitting, key=lambda one: (one.elastic_gpu_hours, one.mean))
    return Saving(
        baseline=baseline,
        found=found,
        elastic=cheapest,
        work_gpu_hours=sum(need * seconds for need, seconds in zip(jobs.gpus, jobs.seconds, strict=True)) / _HOUR,
        saved=1 - found.pool_gpu_hours / baseline.pool_gpu_hours,
        saved_elastic=1 - cheapest.elastic_gpu_hours / baseline.pool_gpu_hours,
        saved_at_most=1 - least_paid(jobs, found.gpus) / baseline.pool_gpu_hours,
    )


def _fitting(
    jobs: Jobs, gpus: int, name: Name, baseline: Summary, cost: float, least: float, progress: Progress | None
) -> list[Summary]:
    """Pools that are no slower than the baseline: some from `least` of it to all of it, then those halfway to the best one's neighbours."""
    steps = (ceil(gpus * (least + (1 - least) * step / _STEPS)) for step in range(_STEPS + 1))
    todo = sorted({max(*jobs.gpus, size) for size in steps})
    total = len(todo) + 2 * _HALVINGS
    tried: dict[int, Summary] = {}
    fitting: list[Summary] = []
    for _ in range(1 + _HALVINGS):
        for size in todo:
            tried[size] = run(jobs, size, name, cost=cost)[0]
            if progress:
                progress("pools", len(tried), total)
        fitting = [one for one in tried.values() if one.mean <= baseline.mean and one.p95 <= baseline.p95]
        if not fitting:
            break
        best, sizes = min(fitting, key=lambda one: (one.pool_gpu_hours, one.mean)).gpus, sorted(tried)
        at = sizes.index(best)
        halfway = {(best + other) // 2 for other in sizes[max(0, at - 1) : at + 2]}
        todo = sorted(halfway - set(sizes))
    return fitting


def least_paid(jobs: Jobs, gpus: int) -> float:
    """GPU-hours that a fixed pool costs from the first submission to the last end under any schedule: even one that knows what comes, splits
    jobs over all GPUs and moves them for nothing has yet to do, after each instant, what is submitted from then on.
    """
    end, rest = 0.0, 0.0
    for job in reversed(range(len(jobs))):
        at, seconds = jobs.submitted[job], jobs.seconds[job]
        rest += jobs.gpus[job] * seconds
        end = max(end, at + seconds, at + rest / gpus)
    return gpus * (end - jobs.submitted[0]) / _HOUR


def ample(jobs: Jobs) -> int:
    """GPUs for the most that are in use at once if no job ever waits, and for the largest job of each tenant."""
    ends = [at + seconds for at, seconds in zip(jobs.submitted, jobs.seconds, strict=True)]
    changes = [*zip(ends, (-need for need in jobs.gpus), strict=True), *zip(jobs.submitted, jobs.gpus, strict=True)]
    return max(*accumulate(change for _, change in sorted(changes)), sum(_largest(jobs).values()))


def _largest(jobs: Jobs) -> dict[str, int]:
    found: dict[str, int] = {}
    for tenant, need in zip(jobs.tenant, jobs.gpus, strict=True):
        found[tenant] = max(found.get(tenant, 0), need)
    return found


def curve(jobs: Jobs, outcome: Outcome, points: Iterable[float] = ()) -> list[tuple[float, float]]:
    """(hours from submission to end, % of jobs that took no longer), for a picture on a log axis. What never ends is left out."""
    spent = np.sort(np.asarray(outcome.finished) - np.asarray(jobs.submitted)) / _HOUR
    parts = list(points) or [step / 100 for step in range(1, 100)] + [0.995, 0.999, 1.0]
    ended = ((float(max(spent[ceil(part * len(spent)) - 1], 1e-3)), 100 * part) for part in parts)
    return [point for point in ended if isfinite(point[0])]
