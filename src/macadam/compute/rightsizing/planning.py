"""The search for the cheapest fleet that keeps a promise: solve, simulate, add margin until it is kept; then try what
is cheaper.

The programme in mix.py knows rates and means; queues, bursts and full memories only the simulator knows. A fleet counts
only if the simulator saw the promise kept on the very trace.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from macadam.compute.catalogue import gpus
from macadam.compute.catalogue.llms import Llm
from macadam.compute.rightsizing import capacity, holdout, mix, roofline, serving
from macadam.compute.rightsizing.capacity import Demand
from macadam.compute.rightsizing.holdout import Judged
from macadam.compute.rightsizing.roofline import Speed
from macadam.compute.rightsizing.types import BYTES, Efficiency, Engine, Fleet, Offer, Option, Replica, Slo, Trace
from macadam.errors import InvalidInput
from macadam.operations import Progress

_STEPS = 4  # halvings between the margin that failed and the one that held
_LESS = 0.88  # each time that the promise is missed, replicas are planned to be that much less busy
_MOST = 2.0  # busy; a trace is not endless, so that more than all of the time may do
_LEAST = 0.15  # busy; below that something else than the load breaks the promise
_TRIALS = 60  # fleets that are tried around the one that was found
_AT_ONCE = 12  # of them before the search moves on or ends
_ALIKE = 1.02  # times as busy is hardly busier
_MORE = 4  # replicas of one kind in the place of those that are left out
_LOOKED_AT = 400  # fleets whose load is computed
_REPLICAS = 10_000  # of one fleet: each is simulated


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is asked. speeds, works: of each option; works by class of requests, infinite where the promise cannot be
    kept.
    """

    trace: Trace
    slo: Slo
    engine: Engine
    demand: Demand
    options: tuple[Option, ...]
    speeds: tuple[Speed, ...]
    works: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A fleet and what the simulator saw. busy: the load that replicas were planned for, 1 is all of their time."""

    fleet: Fleet
    served: serving.Served
    attained: float
    busy: float


@dataclass(kw_only=True)
class _Seen:
    """What was simulated already."""

    problem: Problem
    report: Callable[[], None]
    plans: dict[tuple[int, ...], Plan] = field(default_factory=dict)

    def plan(self, fleet: Fleet, busy: float) -> Plan:
        if fleet.replicas not in self.plans:
            served = simulate(self.problem, fleet)
            self.plans[fleet.replicas] = Plan(
                fleet=fleet, served=served, attained=served.attained(self.problem.slo), busy=busy
            )
            self.report()
        return self.plans[fleet.replicas]


def options(llm: Llm, offers: Iterable[Offer], engine: Engine, tps: Sequence[int]) -> tuple[Option, ...]:
    """Every way to run the model on what is offered. Offers on which it does not fit are left out. Raises InvalidInput
    if none is left.
    """
    found, considered = [], list(offers)
    for offer in considered:
        gpu = gpus.find(offer.gpu)
        for tp in tps:
            if tp > offer.gpus or llm.heads % tp or llm.kv_heads % tp or engine.weights not in gpu.peak:
                continue
            replica = Replica(llm=llm, gpu=gpu, tp=tp)
            try:
                roofline.kv_tokens(replica, engine)
            except InvalidInput:
                continue
            found.append(Option(offer=offer, replica=replica))
    if not found:
        raise _nowhere(llm, considered, engine, tps)
    return tuple(found)


def _nowhere(llm: Llm, offers: Sequence[Offer], engine: Engine, tps: Sequence[int]) -> InvalidInput:
    """Why: what the weights need, and the most that GPUs which may share them have."""
    allowed = [tp for tp in tps if llm.heads % tp == 0 and llm.kv_heads % tp == 0]
    rooms = {
        (offer, tp): tp * (gpus.find(offer.gpu).memory * engine.memory_share - engine.reserve)
        for offer in offers
        for tp in allowed
        if tp <= offer.gpus and engine.weights in gpus.find(offer.gpu).peak
    }
    if not rooms:
        return InvalidInput(
            f"{llm.name} in {engine.weights} fits on none of the machines offered: none computes in {engine.weights} and has as many GPUs "
            f"as may share it (--tp {','.join(map(str, tps))}; its {llm.heads} heads over {llm.kv_heads} of keys must divide among them).",
            next_step="Offer other machines, allow another number of GPUs a replica, or choose another format (--weights).",
        )
    (offer, tp), room = max(rooms.items(), key=lambda item: item[1])
    needed = llm.parameters * BYTES[engine.weights]
    return InvalidInput(
        f"{llm.name} in {engine.weights} fits on none of the machines offered: its weights take {needed / 1e9:,.0f} GB, and the most that may share them, "
        f"{tp} x {offer.gpu} of {offer.name}, have {max(0.0, room) / 1e9:,.0f} GB for weights and keys. Replicas over several machines "
        f"(pipeline parallelism) are not planned.",
        next_step="Offer larger machines, allow more GPUs a replica (--tp 8), or choose a shorter format (--weights fp8).",
    )


def check_lengths(trace: Trace, slo: Slo, llm: Llm) -> None:
    """Raises InvalidInput if so many requests are longer than what the model reads that the promise cannot be kept."""
    if not llm.context:
        return
    longer = sum(1 for p, o in zip(trace.prompt, trace.output, strict=True) if p + o > llm.context)
    if longer > (1 - slo.attainment) * len(trace):
        raise InvalidInput(
            f"{longer} of {len(trace)} requests have more than {llm.context:,} tokens, which is all that {llm.name} reads; every engine refuses them.",
            next_step="Leave them out of the trace, or choose a model that reads more.",
        )


def problem(
    trace: Trace,
    slo: Slo,
    engine: Engine,
    chosen: Sequence[Option],
    efficiency: Efficiency,
    own: Mapping[str, Efficiency] | None = None,
) -> Problem:
    """Computes what each option can do for each class of requests. own: efficiencies of GPUs that were measured."""
    wanted = capacity.demand(trace, slo)
    known = own or {}
    speeds = tuple(roofline.speed(o.replica, engine, known.get(o.replica.gpu.name, efficiency)) for o in chosen)
    works = tuple(capacity.works(pace, engine, wanted, slo) for pace in speeds)
    return Problem(
        trace=trace,
        slo=slo,
        engine=engine,
        demand=_with_hopeless(wanted, works, slo),
        options=tuple(chosen),
        speeds=speeds,
        works=works,
    )


def _with_hopeless(wanted: Demand, works: Sequence[Sequence[float]], slo: Slo) -> Demand:
    """Classes for which nothing keeps the promise are spared too, as long as it can be kept for enough without them."""
    kinds = range(len(wanted.rates))
    spared = wanted.spared | {kind for kind in kinds if all(math.isinf(work[kind]) for work in works)}
    if sum(wanted.rates[kind] for kind in spared) > (1 - slo.attainment) * sum(wanted.rates):
        return wanted
    return msgspec.structs.replace(wanted, spared=frozenset(spared))


def only(asked: Problem, keep: Callable[[Option], bool]) -> Problem:
    """The same with some of its options. Raises InvalidInput if none is left."""
    kept = [number for number, option in enumerate(asked.options) if keep(option)]
    if not kept:
        raise InvalidInput("No machine of that kind is offered.", next_step="Choose another GPU.")
    works = tuple(asked.works[number] for number in kept)
    return Problem(
        trace=asked.trace,
        slo=asked.slo,
        engine=asked.engine,
        demand=_with_hopeless(asked.demand, works, asked.slo),
        options=tuple(asked.options[number] for number in kept),
        speeds=tuple(asked.speeds[number] for number in kept),
        works=works,
    )


def simulate(asked: Problem, fleet: Fleet) -> serving.Served:
    """Serves the trace with that fleet."""
    numbers = [option for option, count in enumerate(fleet.replicas) for _ in range(count)]
    work = [[asked.works[option][kind] for option in numbers] for kind in range(len(asked.demand.rates))]
    for kind, costs in enumerate(work):
        if all(math.isinf(cost) for cost in costs):  # nobody keeps the promise for it: rather anywhere than nowhere
            work[kind] = [1.0] * len(costs)
    return serving.serve(
        asked.trace, [asked.speeds[option] for option in numbers], asked.engine, classes=asked.demand.classes, work=work
    )


def judged(asked: Problem, fleet: Fleet, trace: Trace) -> Judged:
    """What that fleet, with the router that was set up for what it was sized on, keeps on other requests."""
    other = dataclasses.replace(
        asked, trace=trace, demand=msgspec.structs.replace(asked.demand, classes=capacity.classes(asked.demand, trace))
    )
    served = simulate(other, fleet)
    return holdout.judge(trace, asked.slo, served.ttft, served.tpot)


def priced(asked: Problem, fleet: Fleet) -> int:
    """What a fleet costs at these prices, in millionths of a USD an hour."""
    return mix.housed(asked.options, fleet.replicas).hourly


def plan(asked: Problem, progress: Progress = lambda _what, _done, _total: None, *, trials: int = _TRIALS) -> Plan:
    """The cheapest fleet found that keeps the promise in the simulator. Raises InvalidInput if none does."""
    simulated = 0
    expected = _STEPS + trials // 2

    def report() -> None:
        nonlocal simulated
        simulated += 1
        progress("Fleets simulated", simulated, max(expected, simulated))

    seen = _Seen(problem=asked, report=report)
    best, missed = _with_margin(asked, seen)
    for _ in range(_STEPS):
        if missed is None:
            break
        busy = (best.busy + missed) / 2
        tried = seen.plan(_solved(asked, busy), busy)
        if tried.attained >= asked.slo.attainment:
            best = tried if tried.fleet.hourly <= best.fleet.hourly else best
            best = Plan(fleet=best.fleet, served=best.served, attained=best.attained, busy=busy)
        else:
            missed = busy
    return _descend(asked, seen, best, trials)


def _with_margin(asked: Problem, seen: _Seen) -> tuple[Plan, float | None]:
    """The first fleet that keeps the promise, and the load at which the one before did not."""
    busy, missed, closest = 1.0, None, 0.0
    while busy >= _LEAST:
        tried = seen.plan(_solved(asked, busy), busy)
        if tried.attained >= asked.slo.attainment:
            return (tried, missed) if missed else _with_less(asked, seen, tried)
        missed, closest = busy, max(closest, tried.attained)
        busy *= _LESS
    raise InvalidInput(
        f"No fleet of these machines keeps the promise: {closest:.2%} of the requests at most, where {asked.slo.attainment:.2%} are asked for.",
        next_step="Relax the promise, or offer faster GPUs.",
    )


def _with_less(asked: Problem, seen: _Seen, best: Plan) -> tuple[Plan, float | None]:
    """The promise is kept without margin: what if replicas are planned to do more than they seem to have time for?"""
    busy = best.busy / _LESS
    while busy <= _MOST:
        tried = seen.plan(_solved(asked, busy), busy)
        if tried.attained < asked.slo.attainment:
            return best, busy
        best = Plan(fleet=tried.fleet, served=tried.served, attained=tried.attained, busy=busy)
        busy /= _LESS
    return best, None


def _descend(asked: Problem, seen: _Seen, best: Plan, trials: int) -> Plan:
    """Takes other replicas in the place of one or two, as long as that is cheaper and the promise holds. Of all such
    fleets the most promising are simulated.
    """
    works, rates = _planned(asked)
    left = trials
    while left > 0:
        fresh = [fleet for fleet in _cheaper(asked, best.fleet) if fleet.replicas not in seen.plans]
        fresh = _promising(fresh, mix.busiest(works, rates, best.fleet.replicas), works, rates)
        tried = [seen.plan(fleet, best.busy) for fleet in fresh[:left]]
        left -= len(tried)
        kept = [plan for plan in tried if plan.attained >= asked.slo.attainment]
        if not kept:
            return best
        best = min(kept, key=lambda plan: (plan.fleet.hourly, -plan.attained))
    return best


def _promising(
    fleets: Sequence[Fleet], held: float, works: Sequence[Sequence[float]], rates: Sequence[float]
) -> list[Fleet]:
    """First the cheapest of those that would be hardly busier than the fleet that holds, then the least busy of the
    others.
    """
    busy = {fleet.replicas: mix.busiest(works, rates, fleet.replicas) for fleet in fleets}
    alike = [fleet for fleet in fleets if busy[fleet.replicas] <= held * _ALIKE]
    others = [fleet for fleet in fleets if held * _ALIKE < busy[fleet.replicas] < math.inf]
    half = _AT_ONCE // 2
    alike = sorted(alike, key=lambda fleet: fleet.hourly)[:half]
    return alike + sorted(others, key=lambda fleet: busy[fleet.replicas])[: _AT_ONCE - len(alike)]


def _cheaper(asked: Problem, fleet: Fleet) -> list[Fleet]:
    """Fleets that cost less, with one or two replicas less and up to four more of one kind, or one each of two kinds;
    not those that are plainly too small. Dearest first, and no more than can be looked at.
    """
    used = [option for option, count in enumerate(fleet.replicas) if count]
    kinds = [
        option
        for option, works in enumerate(asked.works)
        if any(not math.isinf(work) for kind, work in enumerate(works) if kind not in asked.demand.spared)
    ]
    more: list[tuple[int, ...]] = [(kind,) * count for kind in kinds for count in range(1, _MORE + 1)]
    more += [(), *list(itertools.combinations(kinds, 2))]
    found: dict[tuple[int, ...], Fleet] = {}
    for out in [(option,) for option in used] + list(itertools.combinations_with_replacement(used, 2)):
        for into in more:
            changed = list(fleet.replicas)
            for option in out:
                changed[option] -= 1
            for option in into:
                changed[option] += 1
            if min(changed) >= 0 and any(changed):
                candidate = mix.housed(asked.options, changed)
                if candidate.hourly < fleet.hourly and _carries(asked, candidate):
                    found[candidate.replicas] = candidate
    return sorted(found.values(), key=lambda f: f.hourly, reverse=True)[:_LOOKED_AT]


def _carries(asked: Problem, fleet: Fleet) -> bool:
    """Whether its time would about suffice if each class went where it takes the least. A trace that ends, or a promise
    with time to wait, allows more than all of it.
    """
    used = [option for option, count in enumerate(fleet.replicas) if count]
    needed = 0.0
    for kind, rate in enumerate(asked.demand.rates):
        least = min(asked.works[option][kind] for option in used)
        if math.isinf(least) and kind not in asked.demand.spared:
            return False
        needed += 0.0 if math.isinf(least) else rate * least
    return needed <= fleet.size * _MOST


def _solved(asked: Problem, busy: float) -> Fleet:
    works, rates = _planned(asked)
    for kind in range(len(rates)):
        if all(math.isinf(work[kind]) for work in works):
            raise _impossible(asked, kind)
    fleet = mix.cheapest(asked.options, works, [rate / busy for rate in rates])
    if fleet.size > _REPLICAS:
        raise InvalidInput(
            f"{fleet.size} replicas would be needed for {sum(rates):.3g} requests/s; up to {_REPLICAS} are simulated.",
            next_step="Give a part of the load (--load 0.1), and take the fleet as many times.",
        )
    return fleet


def _impossible(asked: Problem, place: int) -> InvalidInput:
    """place: of the class, among those that are planned for."""
    kind = [kind for kind in range(len(asked.demand.rates)) if kind not in asked.demand.spared][place]
    buckets = [bucket for bucket in asked.demand.buckets if bucket.kind == kind]
    tokens = sum(b.prompt * b.rate for b in buckets) / sum(b.rate for b in buckets)
    share = asked.demand.rates[kind] / sum(asked.demand.rates)
    return InvalidInput(
        f"None keeps the promise for prompts of about {tokens:.0f} tokens ({share:.1%} of the requests), even alone.",
        next_step="Relax the promise, allow more GPUs a replica (--tp), or offer faster GPUs.",
    )


def _planned(asked: Problem) -> tuple[list[list[float]], list[float]]:
    """Works and rates of the classes that the promise is kept for. The rest is too little to be counted."""
    kinds = [kind for kind in range(len(asked.demand.rates)) if kind not in asked.demand.spared]
    return [[work[kind] for kind in kinds] for work in asked.works], [asked.demand.rates[kind] for kind in kinds]
