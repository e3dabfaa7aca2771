"""A plan for replicas that come and go: how many each hour, what they cost, and what the same promise costs with a
number that never changes.

The planner knows the load of the hours before and the shape of the day, not the future. Replicas take time to come up
and are kept for a while before they go; both are paid.
"""

import math
from collections.abc import Sequence

import msgspec

from macadam.compute.rightsizing.types import Trace
from macadam.errors import InvalidInput

_HOUR = 3600.0
_MOST_STEPS = 1_000_000
_LEAST = 1e-9  # requests/s of a replica


class Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """capacity: requests/s that one replica serves while the promise holds. step: seconds between two looks. up:
    seconds until a new one serves. down: seconds in which fewer must have sufficed before one goes. least, most:
    replicas. headroom: of capacity that is left free for what was not foreseen. hourly: millionths of a USD of one
    replica.
    """

    capacity: float
    hourly: int
    step: float = 300.0
    up: float = 300.0
    down: float = 900.0
    least: int = 1
    most: int = 10_000
    headroom: float = 0.25

    def __post_init__(self) -> None:
        times = (self.step, self.up, self.down)
        if not (_LEAST <= self.capacity < math.inf) or not all(0 <= t < math.inf for t in times) or self.step <= 0:
            raise InvalidInput(
                f"Times must be above zero, and capacity at least {_LEAST:g} requests/s.", next_step="Correct them."
            )
        if not 0 <= self.least <= self.most or self.most < 1 or not 0 <= self.headroom < 1 or self.hourly < 0:
            raise InvalidInput(
                f"{self.least} to {self.most} replicas with {self.headroom} of headroom cannot be.",
                next_step="Give least up to most, and headroom of 0 or more and below 1.",
            )


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """start: seconds since the trace's. rate: requests/s that came. needed: replicas for it, with headroom. serving:
    those that were up. paid: with those that come up.
    """

    start: float
    rate: float
    needed: int
    serving: int
    paid: int


class Elastic(msgspec.Struct, frozen=True, kw_only=True):
    """cost, static_cost: millionths of a USD over the trace. static: the replicas that the busiest step needs. short:
    part of the requests that came while fewer served than were needed; those wait, or miss the promise.
    """

    steps: tuple[Step, ...]
    static: int
    cost: int
    static_cost: int
    saving: float
    short: float


def rates(trace: Trace, step: float) -> list[float]:
    """Requests/s in each step of the trace. Raises InvalidInput if there would be more than a million."""
    if trace.at[-1] / step >= _MOST_STEPS:
        raise InvalidInput(
            f"A trace of {trace.at[-1] / 86_400:.0f} days has more than {_MOST_STEPS} steps of {step:g} s.",
            next_step="Give a longer step, such as --step 1h, or a part of the trace.",
        )
    counts = [0] * (int(trace.at[-1] / step) + 1)
    for at in trace.at:
        counts[int(at / step)] += 1
    return [count / step for count in counts]


def plan(arrivals: Sequence[float], scaling: Scaling) -> Elastic:
    """arrivals: requests/s in each step. Looks back one step and asks for what that needed; never takes one away that
    was needed within `down`.
    """
    if not arrivals or not all(0 <= rate < math.inf for rate in arrivals):
        raise InvalidInput("There is no load to plan for.", next_step="Give requests/s of 0 or more for each step.")
    ahead = math.ceil(scaling.up / scaling.step)
    back = max(1, math.ceil(scaling.down / scaling.step))
    needed = [_needed(rate, scaling) for rate in arrivals]
    asked: list[int] = []
    steps = []
    for number, rate in enumerate(arrivals):
        seen = needed[max(0, number - back) : number] or [max(scaling.least, needed[0])]
        asked.append(min(scaling.most, max(scaling.least, *seen)))
        ready = min(
            asked[max(0, number - ahead) : number + 1]
        )  # what was asked for long enough ago, and is still asked for
        steps.append(
            Step(start=number * scaling.step, rate=rate, needed=needed[number], serving=ready, paid=asked[number])
        )
    hours = scaling.step / _HOUR
    static = min(scaling.most, max([*needed, scaling.least]))
    cost = round(sum(step.paid for step in steps) * hours * scaling.hourly)
    static_cost = round(static * len(steps) * hours * scaling.hourly)
    late = sum(step.rate for step in steps if step.serving < _bare(step.rate, scaling))
    return Elastic(
        steps=tuple(steps),
        static=static,
        cost=cost,
        static_cost=static_cost,
        saving=1 - cost / static_cost if static_cost else 0.0,
        short=late / sum(arrivals) if sum(arrivals) else 0.0,
    )


def _needed(rate: float, scaling: Scaling) -> int:
    return math.ceil(rate / (scaling.capacity * (1 - scaling.headroom)) - 1e-9)


def _bare(rate: float, scaling: Scaling) -> int:
    """Without headroom: fewer than that cannot serve it."""
    return math.ceil(rate / scaling.capacity - 1e-9)
