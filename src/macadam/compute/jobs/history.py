"""How long jobs are thought to run, from those like them that succeeded, and what scheduling learns from all that ended."""

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from math import ceil, inf

import msgspec
import sqlalchemy as sa

from macadam.compute.jobs import registry
from macadam.compute.jobs.types import WHOLE, Job, Quota
from macadam.compute.scheduling.estimates import History
from macadam.compute.scheduling.fragmentation import Typical
from macadam.compute.scheduling.packed import typical_work
from macadam.compute.scheduling.promise import Past, due_times
from macadam.compute.scheduling.types import Work

_WEEKS = timedelta(days=14)
"""What ended before that is forgotten: where a project's own share is further behind in thought, its jobs are due sooner than promised."""
_MOST_ESTIMATES = 5000
_ENOUGH = 3
"""Fewer are no history; a median of two is a guess."""
_USUAL = 20
"""With fewer jobs nothing is said of what usually comes, and work is placed by best fit."""
_NEWS = 0.05
"""Part of the jobs that has to be new before what usually comes is counted anew."""


class Durations(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that a whole job runs. None: nothing is known. basis: what it rests on, in words."""

    likely: float | None
    late: float | None
    basis: str

    def at(self, late: bool) -> float | None:  # noqa: FBT001 - which of the two
        return self.late if late else self.likely


def of(sql: sa.Connection, job: Job, ran: float = 0) -> Durations:
    """Of jobs that are alike; else of its project's time limit; never more than the limit. ran: seconds it has run so far."""
    like = registry.finished_like(sql, job.project, job.spec.likeness)
    return expected([one.attained for one in like], job.spec.time_limit, ran)


def expected(like: Sequence[float], limit: float, ran: float = 0) -> Durations:
    """like: how long those that are alike ran. What has outlived some of them is compared with the others; what has outlived all of
    them is expected to run as long again. limit: seconds, 0 = none.
    """
    if len(like) >= _ENOUGH:
        longer = sorted(seconds for seconds in like if seconds > ran) or [2 * ran]
        likely, late = quantile(longer, 0.5), quantile(longer, 0.9)
        if longer[-1] > max(like):
            basis = f"it has outlived all {len(like)} like it, and may run as long again"
        else:
            beyond = f" of {len(like)} that ran for longer than {ran:.0f} s" if len(longer) < len(like) else ""
            basis = f"{len(longer)} like it{beyond} ran {likely:.0f} s at the median and {late:.0f} s at the 90th percentile"
        most = limit if limit > ran else late  # each attempt has its limit, so that all of them may pass it
        return Durations(likely=min(likely, most), late=min(late, most), basis=basis)
    if limit:
        return Durations(
            likely=limit, late=limit, basis=f"its time limit of {limit:g} s, as nothing like it has finished"
        )
    return Durations(likely=None, late=None, basis="nothing like it has finished, and it has no time limit")


def quantile(ordered: Sequence[float], part: float) -> float:
    """The smallest value that at least `part` of them do not exceed."""
    return ordered[max(0, ceil(part * len(ordered)) - 1)]


class Memory:
    """What jobs that have ended say about those that have not: how long they run, what they usually ask for, and when each project's own
    share is due to start them.

    Kept from turn to turn and brought up to date with what ended since; nothing is in it that SQL does not say again.
    """

    def __init__(self) -> None:
        self.estimates = History()
        self._asked: deque[Work] = deque(maxlen=_MOST_ESTIMATES)
        self._news = 0
        self._typical: tuple[Typical, ...] = ()
        self._since: datetime | None = None
        self._past: dict[str, dict[str, Past]] = {}
        self._ends = 0  # how often something had ended
        self._dues: dict[str, tuple[tuple[object, ...], dict[str, float]]] = {}

    def update(self, sql: sa.Connection, now: datetime) -> None:
        """Takes in what has ended since the last time; at the first time, what has in the last weeks."""
        first, since = self._since is None, self._since or now - _WEEKS
        ended = registry.ended_after(sql, since)
        for job in registry.finished(sql, _MOST_ESTIMATES) if first else ended:
            self._learn(job)
        for job in ended:
            if job.ended is not None:
                self._past.setdefault(job.project, {})[job.id] = _past(job)
        self._since = max((job.ended for job in ended if job.ended), default=since)
        self._ends += bool(ended)
        for known in self._past.values() if ended else ():
            for gone in [one for one, past in known.items() if (past.ended or 0) < (now - _WEEKS).timestamp()]:
                del known[gone]

    def typical(self) -> tuple[Typical, ...]:
        """What usually comes, by how often it came, as of jobs that have ended; () while they are too few."""
        if len(self._asked) >= _USUAL and self._news > _NEWS * len(self._asked):
            self._typical, self._news = typical_work(self._asked), 0
        return self._typical

    def due(self, quotas: Sequence[Quota], jobs: Iterable[Job], now: datetime, patience: float) -> dict[str, float]:
        """By job's id, for those of projects with quotas that are due by now. jobs: all with GPUs that have not ended."""
        still: dict[str, list[Past]] = {one.project: [] for one in quotas}
        for job in jobs:
            if job.project in still and job.spec.resources.demand:
                still[job.project].append(_past(job))
        found: dict[str, float] = {}
        for one in quotas:
            if works := still[one.project]:
                whole = self._all_due(one, works, patience)
                found |= {job: at for job, at in whole.items() if at <= now.timestamp()}
        return found

    def _all_due(self, quota: Quota, still: Sequence[Past], patience: float) -> dict[str, float]:
        """Of those that have not ended, now or later: until one is submitted or ends that stays as it is, however much time passes."""
        known = quota.gpus, patience, self._ends, tuple(one.id for one in still)
        if self._dues.get(quota.project, (None, {}))[0] != known:
            past = [*self._past.get(quota.project, {}).values(), *still]
            whole, of = due_times(quota.gpus * WHOLE, past, inf, patience), {one.id for one in still}
            self._dues[quota.project] = known, {job: at for job, at in whole.items() if job in of}
        return self._dues[quota.project][1]

    def _learn(self, job: Job) -> None:
        if job.spec.resources.demand:
            self._asked.append(asked(job))
            self._news += 1
        if job.state != "cancelled" and job.attained > 0:
            self.estimates.add(job.project, job.spec.resources.gpus, job.spec.likeness, job.attained)


def asked(job: Job) -> Work:
    """What it asks for, without what it may or has done so far."""
    wanted = job.spec.resources
    return Work(
        id=job.id,
        tenant=job.project,
        submitted=job.submitted.timestamp(),
        gpus=wanted.gpus,
        milli=wanted.milli,
        models=wanted.models,
        nodes=wanted.nodes,
        cpu_milli=wanted.cpu_milli,
        memory=wanted.memory,
    )


def _past(job: Job) -> Past:
    return Past(
        id=job.id,
        gpus=job.spec.resources.demand,
        submitted=job.submitted.timestamp(),
        seconds=None if job.ended is None else job.attained,
        ended=None if job.ended is None else job.ended.timestamp(),
    )
