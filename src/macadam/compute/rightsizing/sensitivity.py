"""What if the model, the load, the prices or the promise are a fifth off? The chosen fleet is simulated again, and the
search is run again.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from macadam.compute.rightsizing import planning, traces
from macadam.compute.rightsizing.planning import Plan, Problem
from macadam.compute.rightsizing.types import Efficiency, Option, Slo
from macadam.errors import InvalidInput
from macadam.operations import Progress
from macadam.values import Money

_FIFTH = 0.2
_TRIALS = 12  # fleets tried around each new solution: fewer than for the answer itself


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """what: is changed. attained: by the chosen fleet then. hourly: of the fleet that would be chosen then, None if
    none keeps the promise; same: whether it is of the same replicas.
    """

    what: str
    attained: float
    hourly: Money | None
    same: bool


def changes(
    asked: Problem,
    chosen: Plan,
    efficiency: Efficiency,
    progress: Progress,
    own: Mapping[str, Efficiency] | None = None,
) -> tuple[Change, ...]:
    """One change at a time, each by a fifth down and up. own: efficiencies of GPUs that were measured."""
    cases = list(_cases(asked, chosen, efficiency, own or {}))
    found = []
    for number, (what, changed) in enumerate(cases):
        progress("Changes looked at", number, len(cases))
        found.append(_changed(what, changed, chosen))
    progress("Changes looked at", len(cases), len(cases))
    return tuple(found)


def _changed(what: str, changed: Problem, chosen: Plan) -> Change:
    attained = planning.simulate(changed, chosen.fleet).attained(changed.slo)
    try:
        again = planning.plan(changed, trials=_TRIALS)
    except InvalidInput:  # no fleet keeps the promise then, which is the answer
        return Change(what=what, attained=attained, hourly=None, same=False)
    same = again.fleet.replicas == chosen.fleet.replicas
    if attained >= changed.slo.attainment:
        kept = planning.priced(changed, chosen.fleet)
        if kept <= again.fleet.hourly:  # the search need not pass the fleet that was chosen
            return Change(what=what, attained=attained, hourly=Money(micros=kept), same=True)
    return Change(what=what, attained=attained, hourly=Money(micros=again.fleet.hourly), same=same)


def _cases(
    asked: Problem, chosen: Plan, efficiency: Efficiency, own: Mapping[str, Efficiency]
) -> Iterator[tuple[str, Problem]]:
    for sign, factor in (("-", 1 - _FIFTH), ("+", 1 + _FIFTH)):
        fifth = f"{sign}{_FIFTH:.0%}"
        for name in ("compute", "bandwidth"):
            changed = _scaled(efficiency, name, factor)
            theirs = {gpu: _scaled(one, name, factor) for gpu, one in own.items()}
            yield (
                f"{name} {fifth}",
                planning.problem(asked.trace, asked.slo, asked.engine, asked.options, changed, theirs),
            )
        load = traces.faster(asked.trace, factor)
        yield f"load {fifth}", planning.problem(load, asked.slo, asked.engine, asked.options, efficiency, own)
        slo = Slo(ttft=asked.slo.ttft * factor, tpot=asked.slo.tpot * factor, attainment=asked.slo.attainment)
        yield f"promise {fifth}", planning.problem(asked.trace, slo, asked.engine, asked.options, efficiency, own)
        for gpu in sorted(
            {o.offer.gpu for o, count in zip(asked.options, chosen.fleet.replicas, strict=True) if count}
        ):
            options = _priced(asked.options, gpu, factor)
            yield (
                f"price of {gpu} {fifth}",
                planning.problem(asked.trace, asked.slo, asked.engine, options, efficiency, own),
            )


def _scaled(efficiency: Efficiency, name: str, factor: float) -> Efficiency:
    return msgspec.structs.replace(efficiency, **{name: min(1.0, getattr(efficiency, name) * factor)})


def _priced(options: Sequence[Option], gpu: str, factor: float) -> list[Option]:
    return [
        msgspec.structs.replace(o, offer=msgspec.structs.replace(o.offer, hourly=round(o.offer.hourly * factor)))
        if o.offer.gpu == gpu
        else o
        for o in options
    ]
