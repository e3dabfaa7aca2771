"""Decides where a job with a deadline runs next: on a spot machine in some zone, on demand, or nowhere for now.

Pure: (job, standing, market, policy) → choice. The loop that runs jobs, the replay of history and the study call it at every step.
Whatever the policy wishes, `decide` never lets a job come to a point from which on-demand machines could not save its deadline, even
if spot were lost at once with all that was not saved. That presumes that on-demand machines can be had. Times are seconds.
"""

from typing import Literal

import msgspec

from macadam.compute.scheduling import spot_plan
from macadam.errors import InvalidInput

ON_DEMAND, NOWHERE = "on-demand", ""
MOST_STEPS = 10_000_000  # of one job: a step of seconds and a deadline of months; a unit was mistaken for another
SPOT_PRICE = 0.33
"""Of the on-demand price: p3.2xlarge in us-west-2b, from Wu et al., "Can't Be Late", NSDI 2024, table 4 (prices of 2023)."""

Name = Literal["on-demand", "greedy", "time-sliced", "uniform-progress", "expected-cost"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """work: seconds that it takes without any interruption. deadline: seconds after its start. changeover: from the request for a
    machine until the job goes on there (boot, set up, restore). checkpoint_every: seconds of work between checkpoints, 0 = it is saved
    all the time; checkpoint_cost: seconds that one takes. step: seconds between two decisions.

    Raises InvalidInput for a deadline that on-demand machines could not meet, or that is millions of steps away.
    """

    work: float
    deadline: float
    changeover: float = 720.0
    checkpoint_every: float = 0.0
    checkpoint_cost: float = 0.0
    step: float = 60.0

    def __post_init__(self) -> None:
        times = (self.work, self.changeover, self.checkpoint_every, self.checkpoint_cost)
        if not all(0 <= time < float("inf") for time in times) or not 0 < self.step < float("inf") or not self.work:
            raise InvalidInput(
                f"A job of {self.work:g} s of work, {self.changeover:g} s to start, a checkpoint of {self.checkpoint_cost:g} s every "
                f"{self.checkpoint_every:g} s, decided on every {self.step:g} s, cannot be.",
                next_step="Give work and step above 0, and no time below 0.",
            )
        if not self.work + self.changeover <= self.deadline < float("inf"):
            raise InvalidInput(
                f"{self.work:g} s of work and {self.changeover:g} s to start cannot be done in {self.deadline:g} s.",
                next_step="Give a later deadline, or run it on demand and accept that it is late.",
            )
        if self.deadline > MOST_STEPS * self.step:
            raise InvalidInput(
                f"A deadline in {self.deadline:g} s is more than {MOST_STEPS} decisions away.",
                next_step="Give an earlier deadline or a longer step.",
            )

    def worth_saving(self, unsaved: float) -> bool:
        """Whether who leaves a machine on purpose should save first. A checkpoint longer than a step may be cut off by the loss
        of the machine, and what it took would be lost with it: nothing can be built on it.
        """
        return self.checkpoint_cost < unsaved and self.checkpoint_cost <= self.step


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a job stands. elapsed: seconds since its start. saved: seconds of work that no interruption can undo; unsaved: done since.
    where: ON_DEMAND, the name of a zone, or NOWHERE. starting: seconds until the machine there goes on with the work.
    available: zone → seconds for which spot has been had there without a break.
    """

    elapsed: float
    saved: float = 0.0
    unsaved: float = 0.0
    where: str = NOWHERE
    starting: float = 0.0
    available: dict[str, float] = {}

    @property
    def done(self) -> float:
        """Seconds of work, saved or not."""
        return self.saved + self.unsaved

    @property
    def on_spot(self) -> bool:
        """Whether it has a spot machine."""
        return self.where not in (ON_DEMAND, NOWHERE)


class Market(msgspec.Struct, frozen=True, kw_only=True):
    """What is expected of spot machines, from what was seen BEFORE now. price: of the on-demand price. loss: interruptions per second on
    a machine. elsewhere: how likely another zone has spot when one loses it. comeback: per second, while no zone has any.
    """

    price: float = SPOT_PRICE
    loss: float = 1 / 14_400
    elsewhere: float = 0.0
    comeback: float = 1 / 3600

    def __post_init__(self) -> None:
        rates = all(0 <= rate < float("inf") for rate in (self.price, self.loss, self.comeback))
        if not rates or not 0 <= self.elsewhere <= 1:
            raise InvalidInput(
                f"{self} is no market.", next_step="Give a price and rates of 0 or more, and a probability."
            )


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What to wish for; the deadline is kept under each of them.

    - on-demand: never spot
    - greedy: spot whenever there is any, else nothing until the deadline forces on-demand
    - time-sliced: greedy within each of `slices` equal parts of the time, each with its part of the work
    - uniform-progress: on demand whenever progress is behind the straight line to the deadline (Wu et al., NSDI 2024, section 5.2)
    - expected-cost: what costs least to the end, if spot comes and goes as `Market` says (see spot_plan)
    """

    name: Name = "expected-cost"
    slices: int = 8

    def __post_init__(self) -> None:
        if self.slices < 1:
            raise InvalidInput("A time cannot have less than one slice.", next_step="Give slices of 1 or more.")


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Where to be until the next step. reason: for the person who asks. forced: the deadline left no other choice."""

    where: str
    reason: str
    forced: bool = False


def decide(job: Job, standing: Standing, market: Market, policy: Policy) -> Choice:
    """Where to run until the next decision."""
    return settle(job, standing, wished(job, standing, market, policy))


def wished(job: Job, standing: Standing, market: Market, policy: Policy) -> str:
    """Where the policy would have it run, whatever its deadline: a zone, ON_DEMAND or NOWHERE."""
    return _WISHES[policy.name](job, standing, market, policy)


def settle(job: Job, standing: Standing, wish: str) -> Choice:
    """The wish, if the deadline is certain under it. Who wished some time ago may ask this at every instant: it is quickly answered."""
    if wish == ON_DEMAND or safe(job, standing, wish):
        return Choice(where=wish, reason=_words(job, standing, wish))
    # To keep a machine that it has is no safer than to leave it, since who leaves saves first what is worth it.
    return Choice(where=ON_DEMAND, reason="Only on demand is the deadline certain from here on.", forced=True)


def safe(job: Job, standing: Standing, where: str) -> bool:
    """Whether on-demand machines could still meet the deadline if this step made no progress and what is not saved were lost."""
    left = job.deadline - standing.elapsed - job.step
    kept = standing.saved
    if where != standing.where and job.worth_saving(standing.unsaved):
        kept, left = standing.done, left - job.checkpoint_cost  # who leaves on purpose saves first
    return left >= job.work - kept + job.changeover


def slack(job: Job, standing: Standing) -> float:
    """Seconds that may be lost before only on-demand machines can meet the deadline."""
    left = job.deadline - standing.elapsed - standing.starting
    return left - (job.work - standing.done) - job.changeover


def best_zone(standing: Standing) -> str:
    """The zone to take: the one it has, else the one that has had spot for longest, which tends to have it for longest yet."""
    if standing.where in standing.available:
        return standing.where
    return max(standing.available, key=lambda zone: (standing.available[zone], zone), default=NOWHERE)


def _on_demand(_job: Job, _standing: Standing, _market: Market, _policy: Policy) -> str:
    return ON_DEMAND


def _greedy(job: Job, standing: Standing, _market: Market, _policy: Policy) -> str:
    if standing.where == ON_DEMAND and slack(job, standing) < job.changeover:
        return ON_DEMAND  # there is no time for another changeover and back
    return best_zone(standing)


def _time_sliced(job: Job, standing: Standing, market: Market, policy: Policy) -> str:
    number = min(policy.slices, int(standing.elapsed / job.deadline * policy.slices) + 1)
    part = number / policy.slices
    end, goal = job.deadline * part, job.work * part
    if standing.done >= goal:
        return best_zone(standing)
    if end - standing.elapsed < goal - standing.done + 2 * job.changeover and not standing.on_spot:
        return ON_DEMAND
    return _greedy(job, standing, market, policy)


def _uniform_progress(job: Job, standing: Standing, _market: Market, _policy: Policy) -> str:
    def expected(elapsed: float) -> float:
        return job.work * elapsed / job.deadline

    short = slack(job, standing) < job.changeover  # R(t) < C(t) + 2d, the safety net
    if standing.where == ON_DEMAND:
        behind = standing.done < expected(standing.elapsed + 2 * job.changeover)
        return ON_DEMAND if behind or short else best_zone(standing)
    if standing.available:
        return ON_DEMAND if short and not standing.on_spot else best_zone(standing)
    return ON_DEMAND if short or standing.done < expected(standing.elapsed) else NOWHERE


def _expected_cost(job: Job, standing: Standing, market: Market, _policy: Policy) -> str:
    every, cost = job.checkpoint_every, job.checkpoint_cost
    plan = spot_plan.plan(
        job.work,
        job.deadline,
        job.changeover,
        market.price,
        market.loss,
        market.elsewhere,
        market.comeback,
        pace=every / (every + cost) if every else 1.0,
        undone=min(job.work, every) / 2,  # a loss comes in the middle between two checkpoints, in the mean
    )
    zone = best_zone(standing)
    now: spot_plan.Mode = "spot" if standing.on_spot and zone == standing.where else "nowhere"
    if standing.where == ON_DEMAND:
        now = "on-demand"
    chosen = plan.best(
        now, job.deadline - standing.elapsed - standing.starting, job.work - standing.done, spot=bool(zone)
    )
    return {"spot": zone, "on-demand": ON_DEMAND, "nowhere": NOWHERE}[chosen]


def _words(job: Job, standing: Standing, where: str) -> str:
    spare = f"{slack(job, standing) / 3600:.1f} h may still be lost"
    if where == ON_DEMAND:
        return f"On demand, so as not to fall behind: {spare}."
    if where == NOWHERE:
        return f"Waits for spot: {spare}."
    return f"Spot in {where}: {spare}."


_WISHES = {
    "on-demand": _on_demand,
    "greedy": _greedy,
    "time-sliced": _time_sliced,
    "uniform-progress": _uniform_progress,
    "expected-cost": _expected_cost,
}
