"""Replays jobs against `scheduling.decide` itself, one decision after each event: exact for every policy, quota and cluster.

It is what a tenant's own history is replayed with, and what the fast simulation of `queue` is held against. An event costs a whole
decision, so a history of thousands of jobs takes minutes, where `queue` takes a fraction of a second.
"""

from collections.abc import Callable, Sequence
from heapq import heappop, heappush

import msgspec

from macadam.compute.scheduling.decide import decide
from macadam.compute.scheduling.estimates import History
from macadam.compute.scheduling.first_fit import FirstFit
from macadam.compute.scheduling.promise import Share
from macadam.compute.scheduling.types import (
    WHOLE,
    Decision,
    Node,
    Places,
    Policy,
    Quota,
    Running,
    Spent,
    State,
    Work,
)
from macadam.errors import InvalidInput

_END, _ENTER, _LEAVE = range(3)
_NEVER = float("inf")


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How one job went. began, ended: instants of its first start and of its end; preemptions: how often it was stopped; lost: seconds
    that it ran and that did not stand.
    """

    id: str
    began: float
    ended: float
    preemptions: int
    lost: float = 0.0


class _Job:
    """One job on its way. todo: seconds of service that it still needs as of its last start. lost: seconds so far."""

    def __init__(self, work: Work, cost: float) -> None:
        if not work.seconds > 0:
            raise InvalidInput(f"Job {work.id!r} ran for {work.seconds} seconds.", next_step="Leave it out.")
        self.work = msgspec.structs.replace(work, due=_NEVER, checkpoint_cost=work.checkpoint_cost or cost)
        self.todo = work.seconds
        self.running: Running | None = None
        self.began = self.ended = -1.0
        self.lost = 0.0
        self.stamp = 0

    def set_due(self, at: float) -> None:
        self.work = msgspec.structs.replace(self.work, due=at)
        if self.running:
            self.running = msgspec.structs.replace(self.running, work=self.work)


class Replay:
    """A queue over time. cost: seconds that each preemption loses beside what work has not saved, where it says nothing of its own."""

    def __init__(
        self,
        nodes: Sequence[Node],
        policy: Policy,
        quotas: Sequence[Quota] = (),
        cost: float = 30.0,
        places: Callable[[Sequence[Node]], Places] = FirstFit,
    ) -> None:
        self.nodes, self.quotas = tuple(nodes), tuple(quotas)
        self.policy, self.cost, self.places = policy, cost, places
        self.history = History()
        self.now = 0.0
        self._jobs: list[_Job] = []
        self._waiting: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._spent: dict[str, Spent] = {}
        self._events: list[tuple[float, int, int, int]] = []
        self._shares = {quota.tenant: Share(quota.gpus * WHOLE) for quota in quotas}
        if not quotas:
            self._shares[""] = Share(sum(node.gpus for node in nodes) * WHOLE)

    def run(self, works: Sequence[Work], watch: Callable[[float, State, Decision], None] | None = None) -> list[Ended]:
        """Runs work whose `seconds` are known. Returns how each job went that ended, in order of submission.

        watch: is called with each instant, state and decision.
        """
        self._jobs = [_Job(work, self.cost) for work in sorted(works, key=lambda work: (work.submitted, work.id))]
        arrived, again = 0, _NEVER
        while True:
            arrives = self._jobs[arrived].work.submitted if arrived < len(self._jobs) else _NEVER
            happens = self._events[0][0] if self._events else _NEVER
            self.now = min(arrives, happens, again)
            if self.now == _NEVER:
                break
            # All that happens at one instant is decided on together.
            changed = again <= self.now
            while self._events and self._events[0][0] <= self.now:
                changed |= self._happen(*heappop(self._events)[1:])
            while arrived < len(self._jobs) and self._jobs[arrived].work.submitted <= self.now:
                self._submit(arrived)
                arrived, changed = arrived + 1, True
            while self._events and self._events[0][0] <= self.now:
                changed |= self._happen(*heappop(self._events)[1:])
            if changed:
                again = self._decide(watch)
        done = [job for job in self._jobs if job.ended >= 0]
        return [
            Ended(id=one.work.id, began=one.began, ended=one.ended, preemptions=one.work.preemptions, lost=one.lost)
            for one in done
        ]

    # --- what happens

    def _submit(self, at: int) -> None:
        self._waiting[self._jobs[at].work.id] = at
        delay = self.policy.patience if self.quotas else self.policy.ageing
        if delay:
            heappush(self._events, (self.now + delay, _ENTER, at, 0))
        else:
            self._happen(_ENTER, at, 0)

    def _happen(self, kind: int, at: int, stamp: int) -> bool:
        """Returns whether the event still was one."""
        job = self._jobs[at]
        if kind == _END:
            if stamp == job.stamp:
                self._end(at)
            return stamp == job.stamp
        owner = job.work.tenant if self.quotas else ""
        share = self._shares.get(owner)
        if share is None:
            return False
        if kind == _ENTER:
            share.enter(at, job.work.demand)
        else:
            share.leave(job.work.demand)
        for due in share.due():
            self._jobs[due].set_due(self.now)
            if self._jobs[due].ended >= 0:
                self._leaves(due)
        return True

    def _end(self, at: int) -> None:
        job = self._jobs[at]
        self._pay(job)
        job.running, job.ended = None, self.now
        del self._running[job.work.id]
        self.history.add(job.work.tenant, job.work.gpus, job.work.group, job.work.seconds)
        if job.work.due is not None and job.work.due < _NEVER:
            self._leaves(at)

    def _leaves(self, at: int) -> None:
        """Notes when a job that is done would have ended on its tenant's own share."""
        job = self._jobs[at]
        heappush(self._events, (max(self.now, (job.work.due or 0.0) + job.work.seconds), _LEAVE, at, 0))

    # --- what is decided

    def _decide(self, watch: Callable[[float, State, Decision], None] | None) -> float:
        state = State(
            nodes=self.nodes,
            waiting=tuple(self._jobs[at].work for at in self._waiting.values()),
            running=tuple(running for at in self._running.values() if (running := self._jobs[at].running)),
            quotas=self.quotas,
            spent=self._spent,
        )
        decision = decide(self.now, state, self.policy, self.history, self.places)
        if watch:
            watch(self.now, state, decision)
        for preempt in decision.preemptions:
            self._stop(self._running.pop(preempt.id))
        for start in decision.starts:
            at = self._waiting.pop(start.id)
            job = self._jobs[at]
            job.running = Running(work=job.work, placement=start.placement, started=self.now)
            job.began = self.now if job.began < 0 else job.began
            self._running[start.id] = at
            heappush(self._events, (self.now + job.todo, _END, at, job.stamp))
        return _NEVER if decision.look_again is None else decision.look_again

    def _stop(self, at: int) -> None:
        job = self._jobs[at]
        ran, running = self._pay(job), job.running
        job.stamp += 1
        job.running = None
        self._waiting[job.work.id] = at
        if running and ran:
            lost = min(ran, job.work.price(ran))
            job.todo += lost - ran
            job.lost += lost
            job.work = running.stopped(self.now)
        elif job.began == self.now:
            job.began = -1.0  # it was started at this very instant, and is not after all

    def _pay(self, job: _Job) -> float:
        """Adds a stretch that ends to what its tenant has spent. Returns its seconds."""
        ran = self.now - (job.running.started if job.running else self.now)
        seconds = ran * job.work.demand / WHOLE
        before = self._spent.get(job.work.tenant) or Spent()
        self._spent = self._spent | {
            job.work.tenant: msgspec.structs.replace(
                before,
                gpu_seconds=before.gpu_seconds + seconds,
                micros=before.micros + -(-int(seconds * job.work.micros_per_gpu_hour) // 3600),
            )
        }
        return ran
