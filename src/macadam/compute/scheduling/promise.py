"""A tenant's own share as a promise: no job starts for good later than it would if the tenant had its GPUs for itself, first come, first served.

That queue is kept in thought beside the real one. A job is *due* when it would start there; due jobs are held: they get GPUs at once and are not
stopped again. In that queue a job takes its GPUs for as long as it really ran, so nothing has to be known before it happens. As jobs
start in order there, and a job that ended sooner makes nobody later, no job ever ends later than on the share alone (plus
what preemptions before it was due have cost it): a bound for each single job, whatever order the pool is served in.
"""

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush

import msgspec

from macadam.errors import InvalidInput


class Share:
    """The queue in thought of one tenant. gpus: its own, in any unit that the jobs use too."""

    def __init__(self, gpus: int) -> None:
        self.gpus = self.spare = gpus
        self._queue: deque[tuple[int, int]] = deque()

    def enter(self, job: int, gpus: int) -> None:
        """A job is submitted. One that needs more than the share is promised nothing."""
        if gpus <= self.gpus:
            self._queue.append((job, gpus))

    def due(self) -> list[int]:
        """Those that start now, in order. Each takes its GPUs until `leave`."""
        started = []
        while self._queue and self._queue[0][1] <= self.spare:
            job, gpus = self._queue.popleft()
            self.spare -= gpus
            started.append(job)
        return started

    def leave(self, gpus: int) -> None:
        """A job has ended in thought: when it had run there as long as it really ran, or really ended if that was later."""
        self.spare += gpus


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one job of a tenant. seconds: how long it ran in all; ended: when; both None while it has not ended."""

    id: str
    gpus: int
    submitted: float
    seconds: float | None = None
    ended: float | None = None

    def __post_init__(self) -> None:
        if (self.seconds is None) != (self.ended is None) or (self.seconds or 0) < 0:
            raise InvalidInput(
                f"Job {self.id!r} has run {self.seconds} seconds and ended at {self.ended}.",
                next_step="Give both, or neither, and no negative duration.",
            )


def due_times(share: int, jobs: Iterable[Past], now: float, patience: float = 0) -> dict[str, float]:
    """When each job of one tenant became due, for those that have by `now`. share: its GPUs, as `jobs` count them.

    jobs: all that have not ended and those that ended in so far as others may have waited for them: a few weeks suffice.
    patience: seconds by which each counts as submitted later.
    """
    queue = Share(share)
    known = sorted(jobs, key=lambda job: (job.submitted, job.id))
    events: list[tuple[float, int, int]] = []  # instant, 0 = leaves or 1 = enters, which
    for at, job in enumerate(known):
        heappush(events, (job.submitted + patience, 1, at))
    due: dict[str, float] = {}
    while events and events[0][0] <= now:
        instant, enters, at = heappop(events)
        if enters:
            queue.enter(at, known[at].gpus)
        else:
            queue.leave(known[at].gpus)
        for started in queue.due():
            job = known[started]
            due[job.id] = instant
            if job.ended is not None and job.seconds is not None:
                heappush(events, (max(instant + job.seconds, job.ended), 0, started))
    return due
