"""What fits together: work that shares GPUs instead of half using one each, as far as memory and load allow.

Memory is never overcommitted, as running out of it kills both; load is added up at its 95th percentile, as if all were busy
at the same time. First fit decreasing packs within 11/9 of the fewest devices (Johnson 1973).
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from macadam.compute.advice.held import Held, by_day
from macadam.compute.advice.saving import least, of_hours
from macadam.compute.advice.types import Proposal
from macadam.compute.catalogue.gpus import gpus
from macadam.values import Money

LOAD = 0.8
"""How full a shared device may get: above, queueing makes both slower faster than sharing saves."""
HEADROOM = 1.1
"""Of memory: allocators grow by fragments that no peak has shown yet."""
BELIEVED = 0.8
"""Of the hours; with less of them trusted, nothing is concluded from the rest."""


def share(held: Sequence[Held], rates: Mapping[str, Money], over: range) -> list[Proposal]:
    """Owners of whole GPUs of one model in one project that would fit on fewer of them."""
    found = []
    fit = sorted((one for one in held if _may_share(one)), key=lambda one: (one.project, one.model))
    for (_, model), group in groupby(fit, key=lambda one: (one.project, one.model)):
        for together in _packed(list(group), gpus()[model].memory):
            proposal = _proposal(together, rates, over)
            if proposal is not None:
                found.append(proposal)
    return found


def _may_share(one: Held) -> bool:
    """Whether it is known what it needs, and that it is a whole device."""
    known = one.model in gpus() and one.memory_peak is not None and one.load is not None
    return known and one.believed >= BELIEVED and one.share > 1 - 1e-9 and "/mig:" not in one.device


def _packed(items: Iterable[Held], memory: int) -> list[list[Held]]:
    """Bins of what fits on one device, first fit decreasing by the larger of both needs; bins of one are left out."""
    bins: list[list[Held]] = []
    room: list[tuple[float, float]] = []
    for one in sorted(items, key=lambda one: (-max(_needs(one, memory)), one.owner, one.device)):
        load, part = _needs(one, memory)
        for number, (free_load, free_memory) in enumerate(room):
            if load <= free_load and part <= free_memory:
                bins[number].append(one)
                room[number] = (free_load - load, free_memory - part)
                break
        else:
            bins.append([one])
            room.append((LOAD - load, 1 - part))
    return [together for together in bins if len(together) > 1]


def _needs(one: Held, memory: int) -> tuple[float, float]:
    """Load and part of a device's memory."""
    return one.load or 0.0, HEADROOM * (one.memory_peak or 0) / memory


def freed(together: Sequence[Held]) -> dict[int, float]:
    """Device-hours by hour that one device for all would have saved: those in which more than one was held."""
    hours: dict[int, list[float]] = {}
    for one in together:
        for hour, value in one.when.items():
            hours.setdefault(hour, []).append(value)
    return {hour: sum(values) - max(values) for hour, values in hours.items() if len(values) > 1}


def _proposal(together: Sequence[Held], rates: Mapping[str, Money], over: range) -> Proposal | None:
    daily = by_day(freed(together), over)
    if sum(daily) <= 0:
        return None  # they never ran at the same time
    owners = tuple(sorted({one.owner for one in together}))
    load = sum(one.load or 0 for one in together)
    peak = sum(one.memory_peak or 0 for one in together)
    alone = len(owners) == 1
    name = gpus()[together[0].model].name
    return Proposal(
        kind="fewer-gpus" if alone else "consolidate",
        project=together[0].project,
        subjects=owners,
        devices=tuple(one.device for one in together),
        what=f"Run {owners[0]} on one GPU where it takes {len(together)}."
        if alone
        else f"Put {', '.join(owners)} on one GPU.",
        because=f"Together they need {peak / (1 << 30):.0f} GiB of {gpus()[name].memory / (1 << 30):.0f} and keep "
        f"{load:.0%} of a {name} busy at their 95th percentiles.",
        saving=of_hours(daily, devices=len(together) - 1, rate=least(rates, (one.device for one in together))),
        risk="medium",
        risks="They slow each other down when both are busy at once, and a fault of one can end the other: "
        "only MIG isolates them.",
        undo="Give each its own device again.",
        assumes="" if alone else "that all of them may run on the same machine",
    )
