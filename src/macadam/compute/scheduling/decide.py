"""Who starts, who stops and why the others wait: one pure function for the live queue, replay of history and studies.

1. What a budget or a lost machine ends is stopped.
2. Jobs that are due on their tenant's own share (`promise`) are held: they get GPUs whoever else must stop, and go on. What one has run
   already it need not run again, so it is held that much later.
3. Jobs that nothing is promised and that have waited for `ageing` go before all who borrow, in order of submission.
4. The others start in order, as limits and room allow. The first that does not fit may stop those that rank behind it, as far as that
   gains more than it loses and each loses little of what it ran (`order.bearable`); a tenant may take back what it lends; what passes
   the first is the policy's backfill.
Whoever stops others stops those first whose stop is worth most (`order.worth`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush

from macadam.compute.scheduling.first_fit import FirstFit
from macadam.compute.scheduling.order import LEVELS, bearable, bearable_from, level, rank, tolerated, worth
from macadam.compute.scheduling.quota import Limits
from macadam.compute.scheduling.types import (
    EARLY,
    WHOLE,
    Decision,
    Estimates,
    Node,
    Placement,
    Places,
    Policy,
    Preempt,
    Running,
    Start,
    State,
    Wait,
    Work,
)

Key = tuple[float, float, float, str]
Behind = tuple[float, float, float, float, str]
_IN_GPUS = {"limit", "cohort"}
_WHY = {
    "due": "{by} is due on {owner}'s own share.",
    "aged": "{by} has waited so long that it goes before all who borrow.",
    "reclaimed": "{owner} takes back GPUs that it had lent, for {by}.",
    "priority": "{by} has a higher priority.",
    "order": "{by} is expected to finish much more for the GPU time it needs.",
    "gpu-hours": "{owner} has used up its GPU-hours.",
    "money": "{owner} has used up its money.",
    "node-lost": "A machine that it ran on is gone.",
}


def decide(
    now: float,
    state: State,
    policy: Policy,
    estimates: Estimates | None = None,
    places: Callable[[Sequence[Node]], Places] = FirstFit,
) -> Decision:
    """What to do at `now`. The same arguments always give the same answer. Raises InvalidInput if the state contradicts itself.

    estimates: from history, None = nothing is known. places: how to place, given the nodes.
    """
    return _Round(now, state, policy, estimates, places(state.nodes)).decide()


def _shape(work: Work) -> tuple[object, ...]:
    """What decides, besides its rank, whether work can start: those of one shape find the same limits and places."""
    asks = work.gpus, work.milli, work.models, work.nodes, work.cpu_milli, work.memory, work.markets
    reserves = (work.time_limit, work.attained) if work.time_limit else ()
    return work.tenant, *asks, work.priority, work.micros_per_gpu_hour, work.grace, *reserves


class _Round:
    """One decision while it is made."""

    def __init__(self, now: float, state: State, policy: Policy, estimates: Estimates | None, places: Places) -> None:
        self.now, self.state, self.policy, self.estimates, self.places = now, state, policy, estimates, places
        self.limits = Limits(now, state)
        self.running: dict[str, Running] = {}
        self.starts: dict[str, Start] = {}
        self.preemptions: dict[str, Preempt] = {}
        self.waits: dict[str, Wait] = {}
        self.held: set[str] = set()
        self.aged: set[str] = set()
        self.moves = 0  # starts and stops so far: what was found out stays true until the next
        self.worths: dict[str, tuple[float, float]] = {}  # of what runs: what a stop is worth, and less what it costs
        self.last: tuple[int, list[Running]] = -1, []
        self.stuck: dict[tuple[object, ...], tuple[int, float, Wait | None]] = {}
        # Thousandths of GPUs of those models that were bought there.
        self.kinds: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
        self.ahead = 0  # jobs that wait although no limit keeps them
        self.blocked: tuple[Work, float, int] | None = (
            None  # the first that does not fit, when it can start, what is spare then
        )

    def decide(self) -> Decision:
        waiting = {work.id: work for work in [*self.state.waiting, *self._take_stock()]}
        for work in self._due():
            waiting.update((stopped.id, stopped) for stopped in self._hold(work))
        self._serve_old(waiting)
        self._serve(waiting)
        for _ in range(len(self.aged)):
            before = self.moves
            self._serve_old(waiting)  # what has started meanwhile may be a borrower whose GPUs suffice
            if before == self.moves:
                break
            self._serve(waiting)
        return Decision(
            starts=tuple(self.starts.values()),
            preemptions=tuple(self.preemptions.values()),
            waits=self.waits,
            look_again=self._look_again([work for work in waiting.values() if work.id not in self.running]),
        )

    def _serve_old(self, waiting: dict[str, Work]) -> None:
        for work in self._grow_old(waiting):
            waiting.update((stopped.id, stopped) for stopped in self._yield_to(work))

    def _serve(self, waiting: dict[str, Work]) -> None:
        """Looks at all that wait, in order."""
        self.waits, self.ahead, self.blocked = {}, 0, None
        queue = [self._entry(work) for work in waiting.values() if work.id not in self.running]
        heapify(queue)
        while queue:
            key, work = heappop(queue)
            for stopped in self._consider(work, key[1]):
                waiting[stopped.id] = stopped
                heappush(queue, self._entry(stopped))

    # --- 1 what runs

    def _take_stock(self) -> Iterable[Work]:
        """Returns what can run no longer where it is."""
        nodes = {node.name for node in self.state.nodes}
        stopped: list[Work] = []
        exhausted = {running.work.id: reason for running, reason in self.limits.exhausted()}
        for running in self.state.running:
            work = running.work
            reason = exhausted.get(work.id, "")
            if any(slot.node not in nodes for slot in running.placement):
                reason = "node-lost"
            if reason:
                self.limits.remove(running)
                self._note(running, reason, "", work.tenant)
                stopped.append(self._again(running))
            else:
                self.places.take(work, running.placement)
                self.running[work.id] = running
        return stopped

    # --- 2 promises

    def _due(self) -> list[Work]:
        """What is due, in order, as far as it fits into its tenant's own share, and has no time to lose."""
        works = [*(running.work for running in self.running.values()), *self.state.waiting]
        due = [(at, work.submitted, work.id, work) for work in works if (at := self._due_at(work)) <= self.now]
        taken: dict[str, int] = {}
        chosen = []
        for *_, work in sorted(due, key=lambda entry: entry[:3]):
            owner = "" if self.limits.unlimited else work.tenant
            if work.demand > self.limits.own(work.tenant):
                continue  # nothing is promised to what is larger than the share
            taken[owner] = taken.get(owner, 0) + work.demand
            if taken[owner] <= self.limits.own(work.tenant) and self._held_at(work) <= self.now:
                chosen.append(work)
        self.held.update(work.id for work in chosen)
        return chosen

    def _due_at(self, work: Work) -> float:
        if self.policy.reclaim == "never":
            return float("inf")
        if work.due is not None:
            return work.due
        return work.submitted + (self.policy.ageing if self.limits.unlimited else self.policy.patience)

    def _held_at(self, work: Work) -> float:
        """From when on it must run to end no later than on its tenant's share, where it starts with nothing done; of what runs, from
        when on a stop would make it miss that.
        """
        one = self.running.get(work.id)
        if one is None:
            return self._due_at(work) + work.attained
        return self._due_at(work) + one.attained(self.now) - one.price(self.now) - EARLY

    def _hold(self, work: Work) -> list[Work]:
        """Gives it GPUs, if it has none. Returns whom that stopped."""
        if work.id in self.running:
            return []
        wait = self.limits.why_not(work)
        if wait and wait.reason not in _IN_GPUS:
            return []  # its budget is what it waits for; it is considered with the others
        useful = self._useful(work, wait, self._stoppable())
        return [] if useful is None else self._make_room(work, useful, "due") or []

    # --- 3 what waited long

    def _grow_old(self, waiting: Mapping[str, Work]) -> list[Work]:
        """What is larger than its tenant's share, so that nothing is promised to it, and was submitted `ageing` ago, in order."""
        works = {**waiting, **{name: running.work for name, running in self.running.items()}}
        old = [one for one in works.values() if self._ages_at(one) <= self.now]
        self.aged.update(one.id for one in old)
        return sorted(old, key=lambda one: (one.submitted, one.id))

    def _ages_at(self, work: Work) -> float:
        promised = self.limits.unlimited or work.demand <= self.limits.own(work.tenant)
        return float("inf") if promised else work.submitted + self.policy.ageing

    def _yield_to(self, work: Work) -> list[Work]:
        """Gives it what others borrow, if it has no GPUs. Returns whom that stopped."""
        wait = self.limits.why_not(work)
        if work.id in self.running or (wait and wait.reason not in _IN_GPUS):
            return []
        borrowers = [one for one in self._junior() if self.limits.borrowed(one.work.tenant)]
        useful = self._useful(work, wait, borrowers)
        return [] if useful is None else self._make_room(work, useful, "aged") or []

    # --- 4 the others in order

    def _entry(self, work: Work) -> tuple[Key, Work]:
        return (self._past(work), self._rank(work, work.attained), work.submitted, work.id), work

    def _past(self, work: Work) -> float:
        """What its tenant has had already, where it would borrow."""
        if self.policy.half_life and self.limits.used[work.tenant] + work.demand > self.limits.own(work.tenant):
            return self.limits.spent(work.tenant).decayed / self.limits.quota(work.tenant).weight
        return 0.0

    def _rank(self, work: Work, attained: float) -> float:
        return rank(work, attained, self.policy.order, self.estimates)

    def _consider(self, work: Work, ranked: float) -> Iterable[Work]:
        """Starts it or says why it waits. Returns whom it stopped."""
        shape = _shape(work)
        moves, least, limit = self.stuck.get(shape, (-1, 0.0, None))
        if moves == self.moves and least <= ranked:  # one like it that goes first found no way, and nothing has changed
            self._wait(work, limit)
            return ()
        limit = self.limits.why_not(work)
        if limit is None and self._may_pass(work):
            placement = self.places.place(work)
            if placement is not None:
                self._pass(work)
                self._start(work, placement)
                return ()
        for victims, reason in self._claims(work, limit):
            useful = self._useful(work, limit, victims)
            stopped = None if useful is None else self._make_room(work, useful, reason)
            if stopped is not None:
                return stopped
        if limit is not None or self.policy.backfill == "any":
            self.stuck[shape] = self.moves, ranked, limit
        self._wait(work, limit)
        return ()

    def _claims(self, work: Work, limit: Wait | None) -> Iterable[tuple[list[Running], str]]:
        """Whom this work may stop, and by which right. Stopping others of its cohort makes room under limits in GPUs too."""
        if limit is not None and limit.reason not in _IN_GPUS:
            return
        if self.blocked is None and self.policy.preempt == "order":
            most = tolerated(self._rank(work, work.attained), self.policy)
            yield [one for one in self._junior() if self.worths[one.work.id][0] > most and self._bearable(one)], "order"
        if self.policy.preempt == "lower-priority":
            mine = [one for one in self._junior() if one.work.tenant == work.tenant]
            yield [one for one in mine if one.work.priority < work.priority], "priority"
        within = self.limits.used[work.tenant] + work.demand <= self.limits.own(work.tenant)
        if within and self.policy.reclaim in {"any", "lower-priority"} and not self.limits.unlimited:
            any_priority = self.policy.reclaim == "any"
            lent = [one for one in self._stoppable() if self.limits.borrowed(one.work.tenant)]
            yield [one for one in lent if any_priority or one.work.priority < work.priority], "reclaimed"

    def _useful(self, work: Work, limit: Wait | None, victims: Sequence[Running]) -> list[Running] | None:
        """Those first whom the limit counts; None if all of them together hold too few GPUs, so that none is stopped to try."""
        if self.places.free() + sum(one.work.demand for one in victims) < work.demand:
            return None
        if limit is None:
            return list(victims)
        cohort = self.limits.quota(work.tenant).cohort

        def is_counted(one: Running) -> bool:
            own = one.work.tenant == work.tenant
            return own or (limit.reason == "cohort" and self.limits.quota(one.work.tenant).cohort == cohort)

        counted = [one for one in victims if is_counted(one)]
        if sum(one.work.demand for one in counted) < limit.needs:
            return None
        return [*counted, *(one for one in victims if not is_counted(one))]

    def _stoppable(self) -> list[Running]:
        """What may be stopped, the last in order first."""
        if self.last[0] != self.moves:
            free = [one for one in self.running.values() if one.work.preemptible and one.work.id not in self.held]
            self.last = self.moves, sorted(free, key=self._behind, reverse=True)
        return self.last[1]

    def _junior(self) -> list[Running]:
        """What may be stopped for the order's sake: what has waited long goes on until an owner wants its GPUs back."""
        return [one for one in self._stoppable() if one.work.id not in self.aged] if self.aged else self._stoppable()

    def _behind(self, one: Running) -> Behind:
        work = one.work
        if work.id not in self.worths:
            price = one.price(self.now)
            ranked = self._rank(work, one.attained(self.now))
            self.worths[work.id] = worth(ranked, price, work.demand, self.policy.order), -price * work.demand
        return self._past(work), *self.worths[work.id], work.submitted, work.id

    def _bearable(self, one: Running) -> bool:
        return bearable(one.price(self.now), one.ran(self.now), one.work.preemptions, self.policy)

    def _make_room(self, work: Work, victims: Sequence[Running], reason: str) -> list[Work] | None:
        """Starts it, stopping as few as will do; None, and nothing stopped, if all of them would not do."""
        stopped: list[Running] = []
        before = self.moves
        placement = self._room(work)
        for victim in victims:
            if placement is not None:
                break
            if reason in {"reclaimed", "aged"} and not self.limits.borrowed(victim.work.tenant):
                continue
            self._suspend(victim)
            stopped.append(victim)
            placement = self._room(work)
        if placement is None:
            for victim in stopped:
                self._resume(victim)
            self.moves = before
            return None
        for victim in reversed(stopped[:-1]):  # without the last of them it was seen to find no room
            placement = self._spare(victim, work, placement)
        self._start(work, placement)
        gone = [victim for victim in stopped if victim.work.id not in self.running]
        for victim in gone:
            self._note(victim, reason, work.id, work.tenant)
        return [self._again(victim) for victim in gone]

    def _again(self, running: Running) -> Work:
        """As it waits after this."""
        return running.stopped(self.now)

    def _room(self, work: Work) -> Placement | None:
        return None if self.limits.why_not(work) else self.places.place(work)

    def _suspend(self, victim: Running) -> None:
        self.moves += 1
        del self.running[victim.work.id]
        self.limits.remove(victim)
        self.places.release(victim.work, victim.placement)

    def _resume(self, victim: Running) -> None:
        self.moves += 1
        self.places.take(victim.work, victim.placement)
        self.limits.add(victim)
        self.running[victim.work.id] = victim

    def _spare(self, victim: Running, work: Work, placement: Placement) -> Placement:
        """Lets a job go on after all if there is room for both. Returns where the work goes then."""
        self.places.release(work, placement)
        self._resume(victim)
        other = self._room(work)
        if other is not None:
            return other
        self._suspend(victim)
        self.places.take(work, placement)
        return placement

    # --- what comes of it

    def _start(self, work: Work, placement: Placement) -> None:
        before = self.limits.borrowed(work.tenant)
        running = Running(work=work, placement=placement, started=self.now)
        self.worths.pop(work.id, None)  # what it was worth in the stretch before
        self.moves += 1
        self.running[work.id] = running
        self.limits.add(running)
        borrowed = 0 if self.limits.unlimited else self.limits.borrowed(work.tenant) - before
        self.starts[work.id] = Start(id=work.id, placement=placement, borrowed=borrowed)

    def _note(self, running: Running, reason: str, by: str, owner: str) -> None:
        """Records a stop: of a job that ran before this decision, as a preemption; of one that it started, as a start taken back."""
        if self.starts.pop(running.work.id, None) is None:
            words = _WHY[reason].format(by=by, owner=owner)
            self.preemptions[running.work.id] = Preempt(id=running.work.id, by=by, reason=reason, words=words)  # type: ignore[arg-type]

    def _wait(self, work: Work, limit: Wait | None) -> None:
        # A cohort that has nothing to lend because the cluster is full is no limit of its own.
        if limit is not None and not (limit.reason == "cohort" and self.places.free() < work.demand):
            self.waits[work.id] = limit
            return
        self.waits[work.id] = self._no_room(work, self.ahead)
        self.ahead += 1
        if self.blocked is None and self.waits[work.id].reason != "impossible":
            self.blocked = self._shadow(work)

    def _no_room(self, work: Work, ahead: int) -> Wait:
        kind = work.models, work.markets
        if kind not in self.kinds:
            fitting = [node for node in self.state.nodes if not work.models or node.model in work.models]
            bought = [node.gpus for node in fitting if not work.markets or node.market in work.markets]
            self.kinds[kind] = sum(bought) * WHOLE
        free, need = self.places.free(), work.demand
        if self.kinds[kind] < need:
            words = f"The cluster has no {need / WHOLE:g} GPUs of the kind it accepts."
            return Wait(reason="impossible", words=words, ahead=ahead, needs=need)
        if free < need:
            words = f"It needs {need / WHOLE:g} GPUs and {free / WHOLE:g} are free; {ahead} jobs go first."
            return Wait(reason="no-gpus", words=words, ahead=ahead, needs=need - free)
        if not self._may_pass(work) and self.blocked is not None:
            words = f"{self.blocked[0].id} goes first, and this would make it later."
            return Wait(reason="behind" if self.policy.backfill == "none" else "reserved", words=words, ahead=ahead)
        words = f"{free / WHOLE:g} GPUs are free, and nowhere {need / WHOLE:g} together with what else it needs."
        return Wait(reason="fragmented", words=words, ahead=ahead)

    # --- backfill

    def _may_pass(self, work: Work) -> bool:
        """Whether it may start although the first in order waits."""
        if self.blocked is None or self.policy.backfill == "any":
            return True
        if self.policy.backfill == "none":
            return False
        return self._ends_in_time(work) or work.demand <= min(self.blocked[2], self.places.free())

    def _ends_in_time(self, work: Work) -> bool:
        return self.blocked is None or self.now + self._lasts(work, work.attained) <= self.blocked[1]

    def _pass(self, work: Work) -> None:
        """It starts before the first: what it still has when the first can start is not spare."""
        if self.blocked is not None and self.policy.backfill == "easy" and not self._ends_in_time(work):
            first, at, spare = self.blocked
            self.blocked = first, at, spare - work.demand

    def _shadow(self, first: Work) -> tuple[Work, float, int]:
        """When the first can start as running work is expected to end, and how much is spare then (EASY: Lifka 1995)."""
        free = self.places.free()
        ends = sorted(
            (self.now + self._lasts(one.work, one.attained(self.now)), one.work.demand) for one in self.running.values()
        )
        for at, demand in ends:
            free += demand
            if free >= first.demand:
                return first, at, free - first.demand
        return first, float("inf"), 0

    def _lasts(self, work: Work, attained: float) -> float:
        """How long it goes on at most, as far as is known: its limit, or what nine of ten like it do not exceed."""
        if work.time_limit:
            return max(0.0, work.time_limit - attained)
        if self.policy.order == "oracle":
            return max(0.0, work.seconds - attained)
        return self.estimates.remaining(work, attained, 0.9) if self.estimates else float("inf")

    def _look_again(self, waiting: Sequence[Work]) -> float | None:
        """The next instant at which the answer may be another although nothing happens. waiting: whoever goes on waiting."""
        instants = [at for work in waiting for at in (self._held_at(work), self._ages_at(work))]
        if self.waits and self.policy.preempt == "order":
            ranks = [self._rank(work, work.attained) for work in waiting]
            most = tolerated(min(ranks, default=float("inf")), self.policy)
            for one in self.running.values():
                cost = one.work.checkpoint_cost
                if worth(self._rank(one.work, one.attained(self.now)), cost, one.work.demand, self.policy.order) > most:
                    instants.append(one.started + one.work.saves(one.ran(self.now)))
                passed = level(one.work.age(one.attained(self.now)))
                if passed < len(LEVELS):
                    instants.append(one.started + LEVELS[passed] - one.work.attained)
                instants.append(one.started + bearable_from(one.work, one.ran(self.now), self.policy))
        exhausts = self.limits.exhausts_at()
        later = [
            at for at in [*instants, *([exhausts] if exhausts is not None else [])] if self.now < at < float("inf")
        ]
        return min(later, default=None)
