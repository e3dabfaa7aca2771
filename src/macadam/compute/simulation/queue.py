"""Simulates a queue of jobs on a pool of GPUs, event by event: the decisions of `scheduling.decide`, kept up instead of made anew.

Where topology does not matter, quotas are promises without limits and jobs save when they are asked to stop, a decision changes little from
event to event. So the waiting jobs stand in `lines` and the running ones in heaps with the one whose stop is worth most on top, and an event
costs O(log n). Property tests hold each start and end against those of `decide`; what else policies can say is left to `replay`.
"""

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import pairwise
from math import isfinite

import msgspec

from macadam.compute.scheduling.estimates import History, Learned
from macadam.compute.scheduling.order import LEVELS, bearable, bearable_from, level, reached, tolerated, worth
from macadam.compute.scheduling.promise import Share
from macadam.compute.scheduling.types import EARLY, WHOLE, Policy, Work
from macadam.compute.simulation.lines import STEPS, ByLane, First, Fixed, Lines
from macadam.errors import InvalidInput

_END, _LEVEL, _HOLD, _RIPE, _ENTER, _LEAVE, _AGE = range(7)
_NEVER = float("inf")
_SERVED = [reached(passed) for passed in range(STEPS)]
Running = tuple[float, float, int]
"""(less what a stop is worth, what it costs, less the job): whoever is to be stopped first sorts first."""


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
        self.attained = [0.0] * n  # that stand
        self.reached = [0.0] * n  # that it is known to last at least, as of its last stop
        self.passed = [0] * n
        self.since = [0.0] * n
        self.waiting, self.running = bytearray(n), bytearray(n)
        self.aged = bytearray(n)
        self.stopped = bytearray(n)  # whether it ever was
        self.stamp = [0] * n  # of stretches
        self.ripe = bytearray(n)  # has run for so long that it may be stopped for the order's sake
        self.entry: list[Running | None] = [None] * n  # of what runs and may be stopped
        self.began, self.finished = [-1.0] * n, [0.0] * n
        self.events: list[tuple[float, int, int, int]] = []
        self.sizes = sorted(set(jobs.gpus))
        self.junior: list[Running] = []  # what may be stopped for the order's sake; entries that count no more included
        self.preemptive = policy.preempt == "order"
        self.owes = policy.reclaim != "never" or bool(promised)
        self.unripe = bearable_from(
            Work(id="", tenant="", submitted=0.0, checkpoint_cost=cost, preemptions=1), 0.0, policy
        )
        self.tried = bearable(cost, 0.0, 0, policy)
        self.claims: list[int] = []  # due since the last decision
        self.old: list[int] = []  # have aged and not ended
        self.dirty = False  # something has happened since that may change it
        self.below = -_NEVER  # a stop for the order's sake could change it where its entry is lower
        self.stretches: list[tuple[int, float, float]] = []
        self.preemptions, self.lost = 0, 0.0
        self._promises(promised)
        self._ranks()

    def _promises(self, promised: dict[str, int]) -> None:
        """Numbers the tenants and gives each what it was promised; where nothing is, all share one promise: the pool."""
        tenants = self.jobs.tenant if promised else [""] * len(self.jobs)
        names = {name: at for at, name in enumerate(sorted(set(tenants)))}
        self.owner = [names[name] for name in tenants]
        self.shares = [Share(promised.get(name, 0) if promised else self.free) for name in names]
        self.used = [0] * len(names)
        self.ages = bool(promised)
        self.delay = self.policy.patience if promised else self.policy.ageing
        self.due = [-1.0] * len(self.jobs)

    def _ranks(self) -> None:
        """Gives each lane (jobs with the same estimates) its ranks by level, and each its waiting line."""
        order, jobs = self.policy.order, self.jobs
        self.history = History() if order in {"gittins", "shortest"} else None
        lanes: dict[tuple[str, int], int] = {}
        self.lane = [lanes.setdefault(each, len(lanes)) for each in zip(jobs.tenant, jobs.gpus, strict=True)]
        self.lanes = [Work(id="", tenant=tenant, gpus=gpus, submitted=0.0) for tenant, gpus in lanes]
        self.members: list[set[int]] = [set() for _ in lanes]  # what runs
        self.learned: list[Learned | None] = [None] * len(lanes)
        self.fixed = {"fifo": jobs.submitted, "oracle": jobs.seconds}.get(order)
        self.least: list[list[float]] = []  # less what a stop is worth, by lane and levels passed
        if self.fixed is not None:
            self.lines: Lines = Fixed(self.fixed, jobs.gpus, self.waiting)
            return
        self.by_lane = ByLane(self.lane, [work.gpus for work in self.lanes], self.waiting)
        self.lines = self.by_lane
        self.least = [[0.0] * STEPS for _ in lanes]
        for lane in range(len(lanes)):
            self._rank(lane, _SERVED)
        self._learn(range(len(lanes)))

    def _rank(self, lane: int, ranks: Sequence[float]) -> None:
        """The ranks of one GPU's work of that lane are these from now on, by levels passed."""
        demand = self.lanes[lane].demand
        weighed = [one * demand / WHOLE for one in ranks]
        self.by_lane.rank(lane, weighed)
        self.least[lane] = [-worth(one, self.cost, demand, self.policy.order) for one in weighed]

    def _least(self, ranked: float, job: int) -> float:
        return -worth(ranked, self.cost, self.jobs.gpus[job] * WHOLE, self.policy.order)

    def _learn(self, lanes: Sequence[int]) -> None:
        """Ranks those lanes anew of which history now says something else."""
        if self.history is None:
            return
        for lane in lanes:
            work = self.lanes[lane]
            learned = self.history.learned(work.tenant, work.gpus, work.group)
            if learned is self.learned[lane]:
                continue
            self.learned[lane] = learned
            ranks = learned.ranks if self.policy.order == "gittins" else [learned.median] * STEPS
            self._rank(lane, ranks)
            for job in self.members[lane]:
                if self.entry[job] is not None:
                    self._expose(job)

    def run(self, progress: Callable[[int], None] | None = None) -> Outcome:
        submitted, events, n, stamps = self.jobs.submitted, self.events, len(self.jobs), self.stamp
        at, done = 0, 0
        while at < n or events:
            if at < n and (not events or submitted[at] < events[0][0]):
                self.now = submitted[at]
                self._arrive(at)
                at += 1
            else:
                self.now, kind, job, stamp = heappop(events)
                if kind > _RIPE:
                    self._happen(kind, job, stamp)
                elif stamp == stamps[job]:  # else it has stopped or started since
                    if kind == _LEVEL:
                        self._pass(job)
                    elif kind == _END:
                        self._end(job)
                        done += 1
                        if progress and not done % 10_000:
                            progress(done)
                    else:
                        self._bring(kind, job)
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

    def _bring(self, kind: int, job: int) -> None:
        """Time has made it what may be stopped for the order's sake, or what has no time to lose."""
        if kind == _RIPE:
            self._ripen(job)
        else:
            self.claims.append(job)
            self.dirty = True

    def _happen(self, kind: int, job: int, gpus: int) -> None:
        """What has nothing to do with what the job does meanwhile."""
        if kind == _ENTER:
            self._enter(job)
        elif kind == _LEAVE:
            self.shares[job].leave(gpus)
            self._advance(job)
        else:
            self._grow_old(job)

    def _arrive(self, job: int) -> None:
        self._wait(job)
        if self.policy.reclaim != "never":
            if self.delay:
                heappush(self.events, (self.now + self.delay, _ENTER, job, 0))
            else:
                self._enter(job)
        if self.ages and self.jobs.gpus[job] > self.shares[self.owner[job]].gpus:
            heappush(self.events, (self.now + self.policy.ageing, _AGE, job, 0))
        # Whoever waits already did not fit before, and only the first may stop others: neither needs a second look.
        if self.jobs.gpus[job] <= self.free or (self.preemptive and self._is_first(job)):
            self.dirty = True

    def _is_first(self, job: int) -> bool:
        first = self.lines.first()
        return first is not None and first[1] == job

    def _end(self, job: int) -> None:
        self._pause(job)
        self.finished[job] = self.now
        self.dirty = True
        if self.aged[job]:
            self.old.remove(job)
        if self.history is not None:
            work, before = self.lanes[self.lane[job]], self.history.anybody
            self.history.add(work.tenant, work.gpus, work.group, self.jobs.seconds[job])
            known = self.history.anybody is before
            self._learn((self.lane[job],) if known else range(len(self.lanes)))
        if self.due[job] >= 0:
            self._note_end(job)

    def _pass(self, job: int) -> None:
        """A running job has passed a level: its rank is another. Only a worse one can change a decision, if whoever waits first gains enough."""
        entry = self.entry[job]
        if entry is not None:  # it is not held
            passed = self.passed[job] = self.passed[job] + 1
            least = self.least[self.lane[job]][passed]
            if self.old and least < entry[0]:
                self.dirty = True
            entry = self.entry[job] = least, entry[1], entry[2]
            if self.ripe[job]:
                self._offer(entry)
        self._foresee(job)

    # --- states of a job

    def _wait(self, job: int) -> None:
        self.waiting[job] = 1
        self.lines.join(job, self.passed[job])
        if self.due[job] >= 0:
            latest = max(self.now, self.due[job] + self.attained[job])
            heappush(self.events, (latest, _HOLD, job, self.stamp[job]))

    def _start(self, job: int) -> None:
        self.waiting[job], self.running[job] = 0, 1
        self.lines.leave(job)
        self.stamp[job] += 1
        self.since[job] = self.now
        self.free -= self.jobs.gpus[job]
        self.used[self.owner[job]] += self.jobs.gpus[job]
        if self.began[job] < 0:
            self.began[job] = self.now
        self.members[self.lane[job]].add(job)
        self.ripe[job] = 0
        if self._keep(job) or not (self.preemptive or self.owes):
            self._foresee(job)
            return
        if self.preemptive and not self.aged[job]:
            self.ripe[job] = self.tried and not self.stopped[job]
            if not self.ripe[job] and self.unripe < self.todo[job]:
                heappush(self.events, (self.now + self.unripe, _RIPE, job, self.stamp[job]))
        self._expose(job)
        self._foresee(job)

    def _foresee(self, job: int) -> None:
        """Notes when a running job ends or, if it may be stopped until then, passes its next level."""
        end = self.since[job] + self.todo[job]
        passed = self.passed[job]
        if self.entry[job] is not None and self.fixed is None and passed < len(LEVELS):
            at = self.since[job] + LEVELS[passed] - self.attained[job]
            if at < end:
                heappush(self.events, (at, _LEVEL, job, self.stamp[job]))
                return
        heappush(self.events, (end, _END, job, self.stamp[job]))

    def _expose(self, job: int) -> None:
        """Notes what the stop of a running job is worth from now on, to whoever may make it."""
        least = (
            self.least[self.lane[job]][self.passed[job]] if self.fixed is None else self._least(self.fixed[job], job)
        )
        entry = self.entry[job] = least, self.cost * self.jobs.gpus[job], -job
        if self.ripe[job]:
            heappush(self.junior, entry)

    def _ripen(self, job: int) -> None:
        """It may be stopped for the order's sake from now on, unless it is held."""
        if (entry := self.entry[job]) is not None:
            self.ripe[job] = 1
            self._offer(entry)

    def _offer(self, entry: Running) -> None:
        """Its stop is worth as much from now on to whoever waits first."""
        heappush(self.junior, entry)
        if entry[0] < self.below:
            self.dirty = True

    def _keep(self, job: int) -> bool:
        """Holds a running job whose stop would make it end later than on its tenant's own share."""
        latest = self.due[job] + self.attained[job] - self.cost - EARLY
        if self.due[job] < 0 or self.since[job] < latest:
            return False
        self.entry[job] = None
        return True

    def _pause(self, job: int) -> None:
        """It gives its GPUs back."""
        self.running[job] = 0
        self.entry[job] = None
        self.stamp[job] += 1
        self.free += self.jobs.gpus[job]
        self.used[self.owner[job]] -= self.jobs.gpus[job]
        self.members[self.lane[job]].remove(job)
        if self.now > self.since[job]:
            self.stretches.append((job, self.since[job], self.now))

    def _stop(self, job: int) -> None:
        self._pause(job)
        ran = self.now - self.since[job]
        if ran:
            lost = min(ran, self.cost)
            stood = self.attained[job] + ran
            self.reached[job] = max(self.reached[job], stood)
            self.attained[job] = stood - lost
            self.passed[job] = level(self.reached[job])
            self.todo[job] += lost - ran
            self.stopped[job] = 1
            self.preemptions += 1
            self.lost += lost * self.jobs.gpus[job]
        elif self.began[job] == self.now:
            self.began[job] = -1.0  # it was started at this very instant, and is not after all
        self._wait(job)

    # --- decisions

    def _settle(self) -> None:
        """Sees that what is due runs and goes on running and that what has aged runs if it can, then fills what is left."""
        if self.claims:
            self._claim()
        self._serve_old()
        while self._fill() and self._serve_old():  # what has started may be a borrower whose GPUs suffice
            pass

    def _serve_old(self) -> bool:
        """Starts what has aged, if others borrow enough. Returns whether it did."""
        waiting = [job for job in self.old if self.waiting[job]]
        for job in waiting:
            need = self.jobs.gpus[job]
            # Where all that borrowers have is too little, a look at each is of no use.
            if self._borrowed() + self.free >= need and self._make_room(need, of_borrowers=True):
                self._start(job)
        return any(self.running[job] for job in waiting)

    def _borrowed(self) -> int:
        """GPUs of those tenants that have more than their own: no more can be taken from them."""
        return sum(used for used, share in zip(self.used, self.shares, strict=True) if used > share.gpus)

    def _claim(self) -> None:
        """What is held never exceeds what is promised, so that room can always be made."""
        claims, self.claims = sorted(self.claims, key=lambda job: (self.due[job], job)), []
        for job in claims:
            if self.running[job]:
                self._keep(job)
        for job in claims:
            if not self.waiting[job]:
                continue
            latest = self.due[job] + self.attained[job]
            if latest <= self.now:
                self._make_room(self.jobs.gpus[job])
                self._start(job)
            else:
                heappush(self.events, (latest, _HOLD, job, self.stamp[job]))

    def _fill(self) -> bool:
        """Starts whoever goes first, stopping who goes after it, until nothing changes. Returns whether any did."""
        started = False
        while (first := self.lines.first()) is not None:
            if self.jobs.gpus[first[1]] > self.free and not (self.preemptive and self._displace(first)):
                fitting = None if self.policy.backfill == "none" else self._fitting()
                if fitting is None:
                    break
                first = fitting
            self._start(first[1])
            started = True
        return started

    def _fitting(self) -> First | None:
        """Who is first of those that fit."""
        found = None
        for size in self.sizes:
            if size > self.free:
                break
            top = self.lines.first(size)
            if top is not None and (found is None or top < found):
                found = top
        return found

    def _displace(self, first: First) -> bool:
        """Makes room for the first by stopping those whose stop is worth most, if it is worth enough."""
        heap, below = self.junior, -tolerated(first[0], self.policy)
        self.below = below
        room, missing = self.free, self.jobs.gpus[first[1]]
        chosen: list[Running] = []
        while room < missing and heap and (last := heap[0])[0] < below:
            heappop(heap)
            job = -last[2]
            if self.entry[job] is last and not self.aged[job]:
                chosen.append(last)
                room += self.jobs.gpus[job]
        if room < missing:
            for entry in chosen:
                heappush(heap, entry)
            return False
        for entry in self._stop_least(chosen, room - missing):
            heappush(heap, entry)
        return True

    def _make_room(self, gpus: int, *, of_borrowers: bool = False) -> bool:
        """The same for whom that is owed, by any right to stop or only by that to stop borrowers."""
        room, chosen = self.free, []
        if room >= gpus:
            return True
        over = [used - share.gpus for used, share in zip(self.used, self.shares, strict=True)]
        victims = [entry for lane in self.members for job in lane if (entry := self.entry[job]) is not None]
        for entry in sorted(victims):
            job = -entry[2]
            if of_borrowers and (self.aged[job] or over[self.owner[job]] <= 0):
                continue
            over[self.owner[job]] -= self.jobs.gpus[job]
            chosen.append(entry)
            room += self.jobs.gpus[job]
            if room >= gpus:
                break
        if room >= gpus:
            self._stop_least(chosen, room - gpus)
        return room >= gpus

    def _stop_least(self, chosen: list[Running], spare: int) -> list[Running]:
        """Stops them, but for those that need not stop after all, which it returns; the last chosen are spared first."""
        spared = []
        for entry in reversed(chosen):
            job = -entry[2]
            if self.jobs.gpus[job] <= spare:
                spare -= self.jobs.gpus[job]
                spared.append(entry)
            else:
                self._stop(job)
        return spared

    # --- promises

    def _enter(self, job: int) -> None:
        """A job joins the queue of its tenant's own share, in thought."""
        self.shares[self.owner[job]].enter(job, self.jobs.gpus[job])
        self._advance(self.owner[job])

    def _advance(self, owner: int) -> None:
        """Notes what is due on a tenant's own share."""
        for job in self.shares[owner].due():
            self.due[job] = self.now
            if self.waiting[job] or self.running[job]:
                self.claims.append(job)
                self.dirty = True
            else:
                self._note_end(job)

    def _note_end(self, job: int) -> None:
        """Of a job that is done, so that its length is known."""
        end = max(self.now, self.due[job] + self.jobs.seconds[job])
        heappush(self.events, (end, _LEAVE, self.owner[job], self.jobs.gpus[job]))

    def _grow_old(self, job: int) -> None:
        """It goes before all who borrow, unless it has ended."""
        if self.waiting[job] or self.running[job]:
            self.aged[job] = 1
            self.old.append(job)  # they age in order of submission
            self.dirty = True


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
