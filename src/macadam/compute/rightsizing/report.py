"""The answer to `macadam rightsize llm`: the cheapest fleet, what the best of one kind would cost, and how far both can
be trusted.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.compute.catalogue.llms import Llm
from macadam.compute.rightsizing import calibration, holdout, planning, sensitivity
from macadam.compute.rightsizing.holdout import How, Judged, Split
from macadam.compute.rightsizing.measured import Fit
from macadam.compute.rightsizing.planning import Plan, Problem
from macadam.compute.rightsizing.sensitivity import Change
from macadam.compute.rightsizing.types import Efficiency, Engine, Offer, Slo, Trace
from macadam.errors import InvalidInput, MacadamError
from macadam.lazy import lazy
from macadam.operations import Progress
from macadam.values import Money

if TYPE_CHECKING:
    import numpy as np
else:
    np = lazy("numpy")

_MILLION = 1_000_000
_HOUR = 3600


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a fleet. tp: GPUs that share a replica. dated: when the price was read. measured: published
    measurements of that GPU which the model was held against.
    """

    machine: str
    gpu: str
    tp: int
    replicas: int
    machines: int
    hourly: Money
    dated: str
    source: str
    measured: int


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, over all requests that were served."""

    p50: float
    p99: float
    p995: float


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet and what it does. attained: on the requests that it was sized on, like all that follows; judged: on those
    that were held out, None if none were. per_million: of all tokens, read and made; per_million_made: of those made. reused:
    part of the tokens of prompts that were found in caches.
    """

    lines: tuple[Line, ...]
    hourly: Money
    attained: float
    judged: Judged | None
    ttft: Latency
    tpot: Latency
    per_million: Money
    per_million_made: Money
    busy: float
    preempted: int
    refused: int
    reused: float


class Single(msgspec.Struct, frozen=True, kw_only=True):
    """The cheapest fleet of one kind of GPU; without a choice, the reason for which there is none."""

    gpu: str
    choice: Choice | None
    why: str = ""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What was held out of the trace. how: 'blocks' of `block` seconds that take turns, the 'later' half, or 'none'. why: a
    sentence. sized, judged: requests of each part. load: tokens/s of the part held out over those of the other, 0 if there is none.
    """

    how: str
    why: str
    block: float
    sized: int
    judged: int
    load: float = 0.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """saving: of the mix against the best single kind that kept the promise in both parts, as a part of its cost. error: of the model's speed over
    published measurements that it was not fitted to. fits: to own
    measurements. spared: part of the requests in classes for which the promise is
    not planned.
    """

    requests: int
    seconds: float
    tokens_read: int
    tokens_made: int
    slo: Slo
    held: Held
    best: Choice
    singles: tuple[Single, ...]
    best_single: str
    saving: float
    error: calibration.Error
    sensitivity: tuple[Change, ...]
    spared: float
    fits: tuple[Fit, ...]


def rightsize(  # noqa: PLR0913 - each is a part of the question
    trace: Trace,
    llm: Llm,
    slo: Slo,
    offers: Sequence[Offer],
    *,
    engine: Engine,
    efficiency: Efficiency,
    tps: Sequence[int] = (1, 2, 4, 8),
    hold: How = "auto",
    fits: Sequence[Fit] = (),
    with_sensitivity: bool = True,
    progress: Progress = lambda _what, _done, _total: None,
) -> Report:
    """hold: what of the trace is held out while fleets are sized, to judge them on. fits: of GPUs that were measured. Raises InvalidInput if no fleet of these
    machines keeps the promise, or if so little cannot be divided.
    """
    planning.check_lengths(trace, slo, llm)
    parts = holdout.split(trace, hold)
    own = {fit.gpu: fit.efficiency for fit in fits}
    asked = planning.problem(parts.sized, slo, engine, planning.options(llm, offers, engine, tps), efficiency, own)
    kinds = sorted({option.offer.gpu for option in asked.options})
    single = {kind: _single(asked, kind, progress) for kind in kinds}
    alone = {kind: found for kind, found in single.items() if isinstance(found, Plan)}
    widened = {kind: _widened(asked, kind, plan) for kind, plan in alone.items()}
    mixed = _searched(asked, _titled(progress, "Mixes simulated")) if len(kinds) > 1 else single[kinds[0]]
    # A fleet of one kind is a mix too: the search over all kinds need not pass it.
    known = [*widened.values(), *([mixed] if isinstance(mixed, Plan) and len(kinds) > 1 else [])]
    if not known:
        raise (
            mixed if isinstance(mixed, MacadamError) else InvalidInput("No fleet was found.", next_step="Offer others.")
        )
    judged = {plan.fleet.replicas: _judged(asked, plan, parts.judged) for plan in known}
    # What missed the promise on requests that it never saw was cheap by luck; it counts only where nothing else is left.
    holding = [plan for plan in known if _holds(judged[plan.fleet.replicas], slo)]
    best = min(holding or known, key=lambda plan: plan.fleet.hourly)
    rivals = [kind for kind in alone if _holds(judged[widened[kind].fleet.replicas], slo) or not holding]
    cheapest = min(rivals, key=lambda kind: alone[kind].fleet.hourly, default="")
    saving = 1 - best.fleet.hourly / alone[cheapest].fleet.hourly if cheapest else 0.0
    # What if is asked of all requests that are known: fleets chosen then are judged on nothing else.
    whole = planning.problem(trace, slo, engine, asked.options, efficiency, own) if parts.judged else asked
    changes = sensitivity.changes(whole, best, efficiency, progress, own) if with_sensitivity else ()
    return Report(
        requests=len(trace),
        seconds=trace.seconds,
        tokens_read=sum(trace.prompt),
        tokens_made=sum(trace.output),
        slo=slo,
        held=_held(parts),
        best=choice(asked, best, trace, judged[best.fleet.replicas]),
        singles=tuple(
            Single(gpu=kind, choice=choice(asked, widened[kind], trace, judged[widened[kind].fleet.replicas]))
            if kind in widened
            else Single(gpu=kind, choice=None, why=str(single[kind]))
            for kind in kinds
        ),
        best_single=cheapest,
        saving=saving,
        error=calibration.error(calibration.ratios(Efficiency(), "test")),
        sensitivity=changes,
        spared=sum(asked.demand.rates[kind] for kind in asked.demand.spared) / sum(asked.demand.rates),
        fits=tuple(fits),
    )


def choice(asked: Problem, plan: Plan, trace: Trace, judged: Judged | None = None) -> Choice:
    """A plan as it is reported. trace: all requests, of which the tokens are paid. judged: what it kept on those that it was not
    sized on.
    """
    served = plan.served
    made = sum(trace.output)
    hours = trace.seconds / _HOUR
    micros = plan.fleet.hourly * hours
    return Choice(
        lines=tuple(_lines(asked, plan)),
        hourly=Money(micros=plan.fleet.hourly),
        attained=plan.attained,
        judged=judged,
        ttft=_latency(served.ttft),
        tpot=_latency(served.tpot),
        per_million=Money(micros=round(micros / (made + sum(trace.prompt)) * _MILLION)),
        per_million_made=Money(micros=round(micros / made * _MILLION)),
        busy=sum(served.busy) / (len(served.busy) * float(np.max(served.finish[np.isfinite(served.finish)]))),
        preempted=served.preempted,
        refused=served.refused,
        reused=served.reused,
    )


def _held(parts: Split) -> Held:
    said = Held(how=parts.how, why=parts.why, block=parts.block, sized=len(parts.sized), judged=0)
    if parts.judged is None:
        return said
    sized, judged = ((sum(part.prompt) + sum(part.output)) / part.seconds for part in (parts.sized, parts.judged))
    return msgspec.structs.replace(said, judged=len(parts.judged), load=judged / sized)


def _judged(asked: Problem, plan: Plan, held: Trace | None) -> Judged | None:
    return planning.judged(asked, plan.fleet, held) if held else None


def _holds(judged: Judged | None, slo: Slo) -> bool:
    return judged is None or judged.attained >= slo.attainment


def _single(asked: Problem, kind: str, progress: Progress) -> Plan | MacadamError:
    """The cheapest fleet of one kind."""
    kept = planning.only(asked, lambda option: option.offer.gpu == kind)
    return _searched(kept, _titled(progress, f"Fleets of {kind}"))


def _searched(asked: Problem, progress: Progress) -> Plan | MacadamError:
    """Why there is none is part of the answer."""
    try:
        return planning.plan(asked, progress)
    except InvalidInput as error:
        return error


def _widened(asked: Problem, kind: str, plan: Plan) -> Plan:
    """A plan for one kind, with its replicas counted among all options."""
    own = iter(plan.fleet.replicas)
    replicas = tuple(next(own) if option.offer.gpu == kind else 0 for option in asked.options)
    fleet = msgspec.structs.replace(plan.fleet, replicas=replicas)
    return Plan(fleet=fleet, served=plan.served, attained=plan.attained, busy=plan.busy)


def _lines(asked: Problem, plan: Plan) -> list[Line]:
    """By option; a machine that several options share is named with the first, and counted once."""
    counted: set[str] = set()
    found = []
    for option, count in zip(asked.options, plan.fleet.replicas, strict=True):
        if not count:
            continue
        machines = 0 if option.offer.name in counted else plan.fleet.machines[option.offer.name]
        counted.add(option.offer.name)
        found.append(
            Line(
                machine=option.offer.name,
                gpu=option.offer.gpu,
                tp=option.replica.tp,
                replicas=count,
                machines=machines,
                hourly=Money(micros=option.offer.hourly * machines),
                dated=option.offer.dated,
                source=option.offer.source,
                measured=calibration.rows_of(option.offer.gpu),
            )
        )
    return found


def _latency(seconds: "np.ndarray[Any, Any]") -> Latency:
    known = seconds[np.isfinite(seconds)]
    p50, p99, p995 = (float(x) for x in np.percentile(known, [50, 99, 99.5]))
    return Latency(p50=p50, p99=p99, p995=p995)


def _titled(progress: Progress, title: str) -> Progress:
    return lambda _what, done, total: progress(title, done, total)
