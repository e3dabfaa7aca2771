"""What idles: stop it, or let an endpoint scale to zero. The saving is what stopping after a while would have saved."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from macadam.compute.advice.held import Held, by_day
from macadam.compute.advice.saving import least, of_hours
from macadam.compute.advice.types import Proposal
from macadam.values import Money

WORTH = 0.1
"""Below this part of the hours held, stopping saves too little to ask anybody for it."""
_AFTER_JOB, _AFTER_ENDPOINT = 2.0, 0.25  # hours of idling before it is stopped: people come back later than requests


def stop(
    held: Sequence[Held], rates: Mapping[str, Money], over: range, now_hour: int, *, after: float = _AFTER_JOB
) -> list[Proposal]:
    """Jobs, runs and notebooks that hold GPUs and do nothing with them. after: hours of idling before they are stopped."""
    return [
        found
        for owner, mine in _owners(held)
        if not owner.startswith("endpoint:") and (found := _stop(owner, mine, rates, over, now_hour, after))
    ]


def scale_to_zero(
    held: Sequence[Held], rates: Mapping[str, Money], over: range, *, after: float = _AFTER_ENDPOINT
) -> list[Proposal]:
    """Endpoints that hold GPUs while nobody asks. after: hours without a kernel before the last replica goes."""
    return [
        found
        for owner, mine in _owners(held)
        if owner.startswith("endpoint:") and (found := _scale(owner, mine, rates, over, after))
    ]


def _owners(held: Iterable[Held]) -> list[tuple[str, list[Held]]]:
    return [(owner, list(mine)) for owner, mine in groupby(held, key=lambda one: one.owner)]


def saved_by_day(held: Sequence[Held], over: range, after: float) -> list[float]:
    """Device-hours beyond the first `after` hours of each stretch of idling, spread over the days as the idling is."""
    sums = [0.0] * len(over)
    for one in held:
        idle = one.idle_hours
        beyond = one.share * sum(max(0.0, stretch - after) for stretch in one.stretches)
        if idle > 0 and beyond > 0:
            part = min(1.0, beyond / idle)
            sums = [total + part * hours for total, hours in zip(sums, by_day(one.idle, over), strict=True)]
    return sums


def _stop(
    owner: str, mine: Sequence[Held], rates: Mapping[str, Money], over: range, now_hour: int, after: float
) -> Proposal | None:
    daily = saved_by_day(mine, over, after)
    hours = sum(one.hours for one in mine)
    if sum(daily) < WORTH * hours:
        return None
    waiting = [one.stretches[-1] for one in mine if one.last_idle and max(one.when) >= now_hour - 1]
    now = len(waiting) == len(mine) and min(waiting) > after
    return Proposal(
        kind="idle",
        project=mine[0].project,
        subjects=(owner,),
        devices=tuple(one.device for one in mine),
        what=f"Stop {owner} now." if now else f"Have {owner} stopped after {after:g} h of idling.",
        because=f"It held {_devices(mine)} for {hours:.0f} GPU-hours and let them idle for {_idle(mine):.0f} of them"
        + (f", the last {min(waiting):.0f} h without a break." if now else "."),
        saving=of_hours(daily, devices=sum(one.share for one in mine), rate=least(rates, (one.device for one in mine))),
        risk="medium" if _keeps_memory(mine) else "low",
        risks="What it keeps in GPU memory is lost unless it is saved first."
        if _keeps_memory(mine)
        else "It has to be started again by whoever still needs it.",
        undo="Submit it again: macadam jobs submit.",
    )


def _scale(owner: str, mine: Sequence[Held], rates: Mapping[str, Money], over: range, after: float) -> Proposal | None:
    daily = saved_by_day(mine, over, after)
    hours = sum(one.hours for one in mine)
    if sum(daily) < WORTH * hours:
        return None
    spells = sum(stretch > after for one in mine for stretch in one.stretches)
    return Proposal(
        kind="scale-to-zero",
        project=mine[0].project,
        subjects=(owner,),
        devices=tuple(one.device for one in mine),
        what=f"Let {owner} scale to zero after {after * 60:.0f} min without a request.",
        because=f"It held {_devices(mine)} for {hours:.0f} GPU-hours and answered nobody in {_idle(mine):.0f} of them.",
        saving=of_hours(daily, devices=sum(one.share for one in mine), rate=least(rates, (one.device for one in mine))),
        risk="medium",
        risks=f"The first request after a pause waits for a cold start: {spells} times in this window.",
        undo="Set its least number of replicas back to 1.",
    )


def _devices(mine: Sequence[Held]) -> str:
    return "a GPU" if len(mine) == 1 else f"{len(mine)} GPUs"


def _idle(mine: Iterable[Held]) -> float:
    return sum(one.idle_hours for one in mine)


def _keeps_memory(mine: Iterable[Held]) -> bool:
    return any((one.memory_peak or 0) > (1 << 30) for one in mine)
