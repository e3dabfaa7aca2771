"""Simulates a queue of jobs on a pool of GPUs, event by event: the decisions of `scheduling.decide`, kept up instead of made anew.

Where topology does not matter and quotas are promises without limits, a decision changes little from event to event. So the waiting
jobs lie in one heap for each number of GPUs and the running ones in a heap with the last in order on top, and an event costs
O(log n). A property test holds these decisions against those of `decide`; what else policies can say is left to `replay`.
"""

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import pairwise
from math import isfinite

import msgspec

from macadam.compute.scheduling.estimates import History
from macadam.compute.scheduling.order import LEVELS, level, reached, tolerated
from macadam.compute.scheduling.promise import Share
from macadam.compute.scheduling.types import Policy, Work
from macadam.errors import InvalidInput

_NEW, _WAITING, _RUNNING, _DONE = range(4)
_END, _LEVEL, _ENTER, _LEAVE = range(4)
_NEVER = float("inf")
_SERVED = [reached(passed) for passed in range(len(LEVELS) + 1)]


class Jobs(msgspec.Struct, frozen=True, kw_only=True):
    """A trace, in order of submission. submitted: seconds since any instant; seconds: how long each runs on all its GPUs."""

    submitted: list[float]
    seconds: list[float]
    gpus: list[int]
    tenant: list[str]

    def __len__(self) -> int:
        return len(self.submitted)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What happened. finished, began: instants, job by job, infinity for what can never run. stretches: (job, start, end) of each time that
    a job had its GPUs. lost: GPU-seconds of work that preemptions cost.
    """

    finished: list[float]
    began: list[float]
    stretches: list[tuple[int, float, float]]
    preemptions: int = 0
    lost: float = 0.0


class Simulation:
    """One run of a trace. Use `simulate`."""

    def __init__(self, jobs: Jobs, gpus: int, policy: Policy, promised: dict[str, int], cost: float) -> None:
        self.jobs, self.policy, self.cost = jobs, policy, cost
        n = len(jobs)
        self.free, self.now = gpus, 0.0
        self.todo = list(jobs.seconds)
        self.attained = [0.0] * n
        self.passed = [0] * n
        self.key = [0.0] * n
        self.since = [0.0] * n
        self.state = bytearray(n)
        self.held = bytearray(n)  # has claimed its tenant's own share: is not stopped again
        self.stamp = [0] * n
        self.began = [-1.0] * n
        self.finished = [0.0] * n
        self.events: list[tuple[float, int, int, int]] = []
        self.sizes = sorted(set(jobs.gpus))
        self.waiting: dict[int, list[tuple[float, int, int]]] = {size: [] for size in self.sizes}
        self.running: list[tuple[float, int, int]] = []
        self.preemptive = policy.preempt == "order"
        self.stoppable = self.preemptive or policy.reclaim != "never"
        self.claims: list[int] = []  # due since the last decision
        self.dirty = False  # something has happened since that may change it
        self.stretches: list[tuple[int, float, float]] = []
        self.preemptions, self.lost = 0, 0.0
        self._promises(promised)
        self._tables()

    def _promises(self, promised: dict[str, int]) -> None:
        """Numbers the tenants and gives each what it was promised; where nothing is, all share one promise: the pool."""
        tenants = self.jobs.tenant if promised else [""] * len(self.jobs)
        names = {name: at for at, name in enumerate(sorted(set(tenants)))}
        self.owner = [names[name] for name in tenants]
        self.shares = [Share(promised.get(name, 0) if promised else self.free) for name in names]
        self.delay = self.policy.patience if promised else self.policy.ageing
        self.due = [-1.0] * len(self.jobs)

    def _tables(self) -> None:
        """Gives each lane (jobs with the same estimates) its ranks by level."""
        order = self.policy.order
        self.history = History() if order in {"gittins", "shortest"} else None
        lanes: dict[tuple[str, int], int] = {}
        self.lane = [lanes.setdefault(each, len(lanes)) for each in zip(self.jobs.tenant, self.jobs.gpus, strict=True)]
        self.lanes = [Work(id="", tenant=tenant, gpus=gpus, submitted=0.0) for tenant, gpus in lanes]
        self.fixed = {"fifo": self.jobs.submitted, "oracle": self.jobs.seconds}.get(order)
        self.table = [self._table(work) for work in self.lanes]

    def _table(self, work: Work) -> list[float]:
        """The rank of one GPU's work by the number of levels passed."""
        if self.history is None:
            return _SERVED
        if self.policy.order == "shortest":
            return [self.history.remaining(work, 0.0)] * len(_SERVED)
        return self.history.table(work.tenant, work.gpus, work.group)

    def run(self, progress: Callable[[int], None] | None = None) -> Outcome:
        submitted, events, n = self.jobs.submitted, self.events, len(self.jobs)
        at, done = 0, 0
        while at < n or events:
            if at < n and (not events or submitted[at] < events[0][0]):
                self.now = submitted[at]
                self._arrive(at)
                at += 1
            else:
                self.now, kind, job, stamp = heappop(events)
                self._happen(kind, job, stamp)
                done += kind == _END
                if progress and kind == _END and not done % 10_000:
                    progress(done)
            # All that happens at one instant is decided on together.
            if self.dirty and not (at < n and submitted[at] == self.now) and not (events and events[0][0] == self.now):
                self.dirty = False
                self._settle()
        return Outcome(
            finished=self.finished,
            began=self.began,
            stretches=self.stretches,
            preemptions=self.preemptions,
            lost=self.lost,
        )

    # --- events

    def _happen(self, kind: int, job: int, stamp: int) -> None:
        """An event; of what a job does while it runs, only if it still runs that stretch."""
        if kind == _ENTER:
            self._enter(job)
        elif kind == _LEAVE:
            self.shares[job].leave(stamp)
            self._advance(job)
        elif stamp == self.stamp[job]:
            if kind == _END:
                self._end(job)
                self.dirty = True
            else:
                self._pass(job)

    def _arrive(self, job: int) -> None:
        self._wait(job)
        if self.policy.reclaim != "never":
            if self.delay:
                heappush(self.events, (self.now + self.delay, _ENTER, job, 0))
            else:
                self._enter(job)
        # Whoever waits already did not fit before, and needs no second look.
        if self.jobs.gpus[job] <= self.free or self.preemptive:
            self.dirty = True

    def _end(self, job: int) -> None:
        self.state[job] = _DONE
        self.stamp[job] += 1
        self.finished[job] = self.now
        self.free += self.jobs.gpus[job]
        self.stretches.append((job, self.since[job], self.now))
        lane = self.lane[job]
        if self.history is not None:
            work = self.lanes[lane]
            self.history.add(work.tenant, work.gpus, work.group, self.jobs.seconds[job])
            self.table[lane] = self._table(work)
        if self.due[job] >= 0:
            self._note_end(job)

    def _pass(self, job: int) -> None:
        """A running job has passed a level: its rank is another. Only if it is a worse one can that change a decision."""
        before = self.key[job]
        self.passed[job] += 1
        self.stamp[job] += 1
        self._rank(job)
        self._schedule(job)
        self.dirty |= self.key[job] > before

    # --- states of a job

    def _rank(self, job: int) -> None:
        if self.fixed is not None:
            self.key[job] = self.fixed[job]
        else:
            self.key[job] = self.table[self.lane[job]][self.passed[job]] * self.jobs.gpus[job]

    def _wait(self, job: int) -> None:
        self.state[job] = _WAITING
        self._rank(job)
        heappush(self.waiting[self.jobs.gpus[job]], (self.key[job], job, self.stamp[job]))

    def _start(self, job: int) -> None:
        self.state[job] = _RUNNING
        self.stamp[job] += 1
        self.since[job] = self.now
        self.free -= self.jobs.gpus[job]
        if self.began[job] < 0:
            self.began[job] = self.now
        self._schedule(job)

    def _schedule(self, job: int) -> None:
        """Notes when a running job ends or, if it may be stopped until then, passes its next level."""
        end = self.since[job] + self.todo[job]
        if self.stoppable and not self.held[job]:
            heappush(self.running, (-self.key[job], -job, self.stamp[job]))
            passed = self.passed[job]
            if self.fixed is None and passed < len(LEVELS):
                levels_up = self.since[job] + LEVELS[passed] - self.attained[job]
                if levels_up < end:
                    heappush(self.events, (levels_up, _LEVEL, job, self.stamp[job]))
                    return
        heappush(self.events, (end, _END, job, self.stamp[job]))

    def _stop(self, job: int) -> None:
        ran = self.now - self.since[job]
        self.free += self.jobs.gpus[job]
        self.stamp[job] += 1
        if ran:
            lost = min(ran, self.cost)
            self.attained[job] += ran
            self.passed[job] = level(self.attained[job])
            self.todo[job] += lost - ran
            self.stretches.append((job, self.since[job], self.now))
            self.preemptions += 1
            self.lost += lost * self.jobs.gpus[job]
        elif self.began[job] == self.now:
            self.began[job] = -1.0  # it was started at this very instant, and is not after all
        self._wait(job)

    # --- decisions

    def _settle(self) -> None:
        """Sees that what is due runs and goes on running, then fills what is left.

        What is held never exceeds what is promised, so that room can always be made.
        """
        claims, self.claims = sorted(self.claims), []
        for job in claims:
            self.held[job] = 1
            if self.state[job] == _RUNNING:
                self.stamp[job] += 1
                self._schedule(job)
        for job in claims:
            if self.state[job] == _WAITING:
                self._make_room(self.jobs.gpus[job], -_NEVER)
                self._start(job)
        self._fill()

    def _fill(self) -> None:
        """Starts whoever goes first, stopping who goes after it, until nothing changes."""
        while True:
            first, fitting = self._tops()
            if first is None:
                return
            if fitting is not first and not (self.preemptive and self._displace(first)):
                if fitting is None or self.policy.backfill == "none":
                    return
                first = fitting
            self._start(first[1])  # its entry is removed when it comes to the top

    def _tops(self) -> tuple[tuple[float, int, int] | None, tuple[float, int, int] | None]:
        """Who is first of all that wait, and who is first of those that fit."""
        first = fitting = None
        for size in self.sizes:
            heap = self.waiting[size]
            while heap and heap[0][2] != self.stamp[heap[0][1]]:
                heappop(heap)
            if heap and (first is None or heap[0] < first):
                first = heap[0]
            if size <= self.free:  # the sizes ascend: the first of those that fit
                fitting = first
        return first, fitting

    def _displace(self, first: tuple[float, int, int]) -> bool:
        """Makes room for the first by stopping the last in order, if enough of them rank `margin` behind it."""
        return self._make_room(self.jobs.gpus[first[1]], tolerated(first[0], self.policy))

    def _make_room(self, gpus: int, above: float) -> bool:
        heap, room = self.running, self.free
        chosen: list[tuple[float, int, int]] = []
        while room < gpus and heap:
            last = heap[0]
            if last[2] != self.stamp[-last[1]] or self.state[-last[1]] != _RUNNING:
                heappop(heap)
            elif -last[0] > above:
                chosen.append(heappop(heap))
                room += self.jobs.gpus[-last[1]]
            else:
                break
        if room < gpus:
            for entry in chosen:
                heappush(heap, entry)
            return False
        for entry in reversed(chosen):
            size = self.jobs.gpus[-entry[1]]
            if room - size >= gpus:  # it need not stop after all
                room -= size
                heappush(heap, entry)
            else:
                self._stop(-entry[1])
        return True

    # --- promises

    def _enter(self, job: int) -> None:
        """A job joins the queue of its tenant's own share, in thought."""
        self.shares[self.owner[job]].enter(job, self.jobs.gpus[job])
        self._advance(self.owner[job])

    def _advance(self, owner: int) -> None:
        """Holds what is due on a tenant's own share."""
        for job in self.shares[owner].due():
            self.due[job] = self.now
            if self.state[job] == _DONE:
                self._note_end(job)
            else:
                self.claims.append(job)
                self.dirty = True

    def _note_end(self, job: int) -> None:
        """Of a job that is done, so that its length is known."""
        end = max(self.now, self.due[job] + self.jobs.seconds[job])
        heappush(self.events, (end, _LEAVE, self.owner[job], self.jobs.gpus[job]))


def simulate(
    jobs: Jobs,
    gpus: int,
    policy: Policy,
    promised: dict[str, int] | None = None,
    cost: float = 30.0,
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Runs a trace on a pool. promised: GPUs of each tenant's own share; cost: seconds of work that each preemption loses.

    Raises InvalidInput where the trace or the policy is nothing that this simulation can do.
    """
    _check(jobs, gpus, policy, promised or {}, cost)
    return Simulation(jobs, gpus, policy, promised or {}, cost).run(progress)


def static_shares(jobs: Jobs, shares: dict[str, int]) -> Outcome:
    """What would have happened had each tenant its share for itself, first come, first served: nobody lends, nobody passes.

    A job that needs more than its tenant's share never runs.
    """
    began, finished = [_NEVER] * len(jobs), [_NEVER] * len(jobs)
    free, last = dict(shares), dict.fromkeys(shares, 0.0)
    ends: dict[str, list[tuple[float, int]]] = {tenant: [] for tenant in shares}
    for job, (tenant, gpus) in enumerate(zip(jobs.tenant, jobs.gpus, strict=True)):
        if gpus > shares.get(tenant, 0):
            continue
        now = max(last[tenant], jobs.submitted[job])
        while ends[tenant] and (free[tenant] < gpus or ends[tenant][0][0] <= now):
            ended, given = heappop(ends[tenant])
            now = max(now, ended)
            free[tenant] += given
        free[tenant] -= gpus
        last[tenant] = began[job] = now
        finished[job] = now + jobs.seconds[job]
        heappush(ends[tenant], (finished[job], gpus))
    stretches = [(job, began[job], finished[job]) for job in range(len(jobs)) if began[job] < _NEVER]
    return Outcome(finished=finished, began=began, stretches=stretches)


def check_pool(jobs: Jobs, gpus: int, cost: float) -> None:
    """Raises InvalidInput where a pool of so many GPUs cannot run each job, or a preemption cannot cost that."""
    if not jobs.gpus:
        raise InvalidInput("The trace has no jobs.", next_step="Give a file with at least one row.")
    if max(jobs.gpus) > gpus:
        raise InvalidInput(
            f"A job needs {max(jobs.gpus)} GPUs and the pool has {gpus}.",
            next_step=f"Give --gpus {max(jobs.gpus)} or more.",
        )
    if not (isfinite(cost) and cost >= 0):
        raise InvalidInput(f"A preemption cannot cost {cost} s.", next_step="Give --cost 0 or more seconds.")


def _check(jobs: Jobs, gpus: int, policy: Policy, promised: dict[str, int], cost: float) -> None:
    check_pool(jobs, gpus, cost)
    if sum(promised.values()) > gpus:
        raise InvalidInput(
            f"{sum(promised.values())} GPUs are promised and the pool has {gpus}.",
            next_step="Promise less, or add GPUs.",
        )
    if (
        policy.backfill == "easy"
        or policy.preempt == "lower-priority"
        or policy.reclaim not in {"never", "due"}
        or policy.half_life
    ):
        raise InvalidInput(
            "This simulation knows neither reservations nor priorities nor past use.",
            next_step="Replay the jobs instead.",
        )
    if not _sorted(jobs.submitted):
        raise InvalidInput("The jobs are not in order of submission.", next_step="Sort them first.")


def _sorted(values: Sequence[float]) -> bool:
    return all(before <= after for before, after in pairwise(values))
