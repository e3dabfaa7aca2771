"""A whole fleet serving a trace: a router that sees prompts and not the future, and replicas under continuous batching."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from macadam.compute.rightsizing.batching import Machine
from macadam.compute.rightsizing.roofline import Speed
from macadam.compute.rightsizing.types import Engine, Slo, Trace
from macadam.lazy import lazy
from macadam.operations import Progress

if TYPE_CHECKING:
    import numpy as np
else:
    np = lazy("numpy")

_REPORT_EVERY = 2000  # requests


@dataclass(frozen=True, kw_only=True)
class Served:
    """What came of it, by request: times in seconds, infinite if it was refused; where: the replica's number, -1 if
    refused.
    """

    ttft: "np.ndarray[Any, Any]"
    tpot: "np.ndarray[Any, Any]"
    finish: "np.ndarray[Any, Any]"
    where: tuple[int, ...]
    busy: tuple[float, ...]  # seconds, by replica
    preempted: int
    iterations: int
    reused: float = 0.0  # part of the tokens of prompts that were found in caches

    @property
    def refused(self) -> int:
        return sum(1 for replica in self.where if replica < 0)

    def attained(self, slo: Slo) -> float:
        """The part of all requests for which both promises held."""
        return float(np.mean((self.ttft <= slo.ttft) & (self.tpot <= slo.tpot)))


def serve(
    trace: Trace,
    speeds: Sequence[Speed],
    engine: Engine,
    *,
    classes: Sequence[int],
    work: Sequence[Sequence[float]],
    progress: Progress = lambda _what, _done, _total: None,
) -> Served:
    """speeds: of each replica. classes: of each request, what the router takes it for. work[class][replica]: seconds of
    the replica's time that such a request is expected to take, infinite where it must not go. A request goes where the
    work that waits, with its own, is least.
    """
    first, finish = [math.inf] * len(trace), [math.inf] * len(trace)
    machines = [Machine(speed, engine, trace, first, finish) for speed in speeds]
    ahead = [0.0] * len(machines)
    where = [-1] * len(trace)
    plans: list[tuple[float, int, int]] = []

    def settle(until: float) -> None:
        while plans and plans[0][0] <= until:
            _, version, number = heapq.heappop(plans)
            machine = machines[number]
            if version != machine.version:
                continue
            for request in machine.advance():
                ahead[number] -= work[classes[request]][number]
            if machine.until < math.inf:
                heapq.heappush(plans, (machine.until, machine.version, number))

    for request, at in enumerate(trace.at):
        settle(at)
        costs = work[classes[request]]
        number = _least(machines, ahead, costs, request)
        if number >= 0:
            where[request] = number
            ahead[number] += costs[number]
            machine = machines[number]
            before = machine.version
            machine.arrive(request, at)
            if machine.version != before:
                heapq.heappush(plans, (machine.until, machine.version, number))
        if request % _REPORT_EVERY == 0:
            progress("Requests", request, len(trace))
    settle(math.inf)
    progress("Requests", len(trace), len(trace))
    return _served(trace, machines, first, finish, where)


def _least(machines: Sequence[Machine], ahead: Sequence[float], costs: Sequence[float], request: int) -> int:
    best, least = -1, math.inf
    for number, cost in enumerate(costs):
        total = ahead[number] + cost
        if total < least and machines[number].fits(request):
            best, least = number, total
    return best


def _served(
    trace: Trace, machines: Sequence[Machine], first: list[float], finish: list[float], where: list[int]
) -> Served:
    at = np.asarray(trace.at)
    began, ended = np.asarray(first), np.asarray(finish)
    more = np.maximum(np.asarray(trace.output) - 1, 1)
    gone = np.asarray(where) < 0
    with np.errstate(invalid="ignore"):  # infinity less infinity, where a request was refused
        tpot = np.where(gone, np.inf, (ended - began) / more)
    return Served(
        ttft=began - at,
        tpot=tpot,
        finish=ended,
        where=tuple(where),
        busy=tuple(machine.busy for machine in machines),
        preempted=sum(machine.preempted for machine in machines),
        iterations=sum(machine.iterations for machine in machines),
        reused=sum(machine.reused for machine in machines) / max(1, sum(machine.asked for machine in machines)),
    )
