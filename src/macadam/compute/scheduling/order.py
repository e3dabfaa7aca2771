"""Who goes first: a job's rank under each order. Lower goes first; the same function serves queue, replay and studies.

Ranks change only where a job's attained service passes one of a few levels, each twice the one before: a job is compared
anew a dozen times in its life and not at each instant (discretised 2D-LAS: Gu et al., Tiresias, NSDI 2019, section 3.2).
"""

from bisect import bisect_right
from math import ceil, inf

from macadam.compute.scheduling.types import EARLY, WHOLE, Estimates, Order, Policy, Work

# Seconds. The first is what a preemption costs in the studies: what ran for less is not worth stopping.
LEVELS: tuple[float, ...] = tuple(30.0 * 2**k for k in range(18))
_RATIOLESS = frozenset({"fifo", "priority"})


def level(attained: float) -> int:
    """How many of the levels a job has passed that has run so many seconds."""
    return bisect_right(LEVELS, attained + EARLY)


def reached(passed: int) -> float:
    """The seconds at which that many levels are passed."""
    return LEVELS[passed - 1] if passed else 0.0


def rank(work: Work, attained: float, order: Order, estimates: Estimates | None) -> float:
    """The key of one job of which `attained` seconds stand. Without estimates, what needs them is ordered by attained service.

    What a stop lost does not make a job look new: its age is what it had reached, and what has to be run again beside the usual
    cost of a stop comes on top.
    """
    if order == "fifo":
        return work.submitted
    if order == "priority":
        return float(-work.priority)
    if order == "oracle":
        return work.seconds
    age = work.age(attained)
    if estimates is not None and order == "gittins":
        again = max(0.0, age - attained - work.checkpoint_cost)
        return estimates.index(work, age) + again * work.demand / WHOLE
    if estimates is not None and order == "shortest":
        return estimates.usual(work) * work.demand / WHOLE
    return reached(level(age)) * work.demand / WHOLE


def tolerated(first: float, policy: Policy) -> float:
    """The highest worth of a stop (`worth`) that is not made for one of rank `first`. Instants and priorities have no ratio, so no margin."""
    return first if policy.order in _RATIOLESS else first * policy.margin


def worth(ranked: float, price: float, demand: int, order: Order) -> float:
    """What a stop of running work is worth: its rank, less the GPU-seconds that the stop costs where ranks are GPU-seconds.

    By Smith's exchange, the sum of completion times gains by the stop what the one behind would still have held its GPUs, and pays
    what the one before will hold them and what has to be done again.
    """
    return ranked if order in _RATIOLESS else ranked - price * demand / WHOLE


def bearable(price: float, ran: float, preemptions: int, policy: Policy) -> bool:
    """Whether running work may be stopped for the order's sake at that price, after a stretch of `ran` seconds.

    Each stretch that such a stop ends loses at most `loss` of itself, but for the first, which may lose `trial`. So of all that a job
    runs, at most that part and one trial are lost for the order's sake, whatever arrives.
    """
    if policy.order == "priority" or (not preemptions and price <= policy.trial):
        return True
    return price <= policy.loss * ran + EARLY


def bearable_from(work: Work, ran: float, policy: Policy) -> float:
    """After how many seconds of its stretch, `ran` or later, such work may next be stopped for the order's sake; infinity: never."""
    if bearable(work.price(ran), ran, work.preemptions, policy):
        return ran
    if work.checkpoint_every == inf:
        return inf
    tried = not work.preemptions and work.checkpoint_cost <= policy.trial
    at = ran if tried else max(ran, work.checkpoint_cost / policy.loss)
    if bearable(work.price(at), at, work.preemptions, policy):
        return at
    # The loss grows faster than what may be lost, until it saves.
    return ceil(at / work.checkpoint_every) * work.checkpoint_every
