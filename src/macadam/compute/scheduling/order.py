"""Who goes first: a job's rank under each order. Lower goes first; the same function serves queue, replay and studies.

Ranks change only where a job's attained service passes one of a few levels, each twice the one before: a job is compared
anew a dozen times in its life and not at each instant (discretised 2D-LAS: Gu et al., Tiresias, NSDI 2019, section 3.2).
"""

from bisect import bisect_right

from macadam.compute.scheduling.types import WHOLE, Estimates, Order, Policy, Work

# Seconds. The first is what a preemption costs in the studies: what ran for less is not worth stopping.
LEVELS: tuple[float, ...] = tuple(30.0 * 2**k for k in range(18))


def level(attained: float) -> int:
    """How many of the levels a job has passed that has run so many seconds."""
    return bisect_right(LEVELS, attained)


def reached(passed: int) -> float:
    """The seconds at which that many levels are passed."""
    return LEVELS[passed - 1] if passed else 0.0


def rank(work: Work, attained: float, order: Order, estimates: Estimates | None) -> float:
    """The key of one job that has run `attained` seconds. Without estimates, what needs them is ordered by attained service."""
    if order == "fifo":
        return work.submitted
    if order == "priority":
        return float(-work.priority)
    if order == "oracle":
        return work.seconds
    if estimates is not None and order == "gittins":
        return estimates.index(work, attained)
    if estimates is not None and order == "shortest":
        return estimates.remaining(work, 0.0) * work.demand / WHOLE
    return reached(level(attained)) * work.demand / WHOLE


def tolerated(first: float, policy: Policy) -> float:
    """The highest rank that is not stopped for one of rank `first`. Instants and priorities have no ratio, so no margin."""
    return first if policy.order in {"fifo", "priority"} else first * policy.margin
