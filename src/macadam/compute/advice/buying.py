"""How to pay for the same hours: how much to commit to, and what may run on spot.

The level to commit to is the newsvendor's (Arrow, Harris, Marschak 1951): commit to the k-th GPU as long as it is in use
in at least that part of the hours that the committed price is of the price on demand.
"""

from collections.abc import Iterable, Mapping, Sequence

from macadam.compute.advice.held import Held, by_day
from macadam.compute.advice.saving import MONTH, of_money
from macadam.compute.advice.types import Proposal
from macadam.compute.catalogue.prices import Price
from macadam.values import Money

ENOUGH = 28
"""Days of history before anybody should sign for a year."""
INTERRUPTED = 0.1
"""Part of the hours on spot that is done twice, after interruptions."""


def in_use(held: Iterable[Held], over: range) -> list[float]:
    """GPUs held at the same time, hour by hour of the days."""
    first = over.start * 24
    hours = [0.0] * (len(over) * 24)
    for one in held:
        for hour, value in one.when.items():
            if 0 <= hour - first < len(hours):
                hours[hour - first] += value
    return hours


def level(demand: Sequence[float], ratio: float) -> int:
    """How many GPUs to commit to. ratio: committed price over price on demand, 0 to 1."""
    if not demand or ratio >= 1:
        return 0
    ordered = sorted(demand, reverse=True)
    # The k-th GPU is in use in the hours whose demand is at least k.
    needed = max(1, -int(-ratio * len(ordered) // 1))
    return int(ordered[needed - 1] + 1e-9)


def commit(
    held: Sequence[Held], on_demand: Mapping[str, Money], committed: Mapping[str, Price], over: range
) -> list[Proposal]:
    """on_demand: what an hour costs now, by model. committed: the offer to be held against it, by model."""
    found = []
    for model in sorted({one.model for one in held} & set(on_demand) & set(committed)):
        mine = [one for one in held if one.model == model]
        offer, rate = committed[model], on_demand[model]
        if offer.per_gpu_hour.currency != rate.currency or len(over) < ENOUGH or rate.micros <= 0:
            continue
        demand = in_use(mine, over)
        number = level(demand, offer.per_gpu_hour.micros / rate.micros)
        if number:
            found.append(_commit(model, mine, number, demand, rate, offer, over))
    return found


def committed_saving(demand: Sequence[float], number: int, rate: Money, offer: Price) -> list[float]:
    """By day, in hours on demand that the money would have bought: less paid by the hour, minus the commitment."""
    ratio = offer.per_gpu_hour.micros / rate.micros
    hourly = [min(value, number) - number * ratio for value in demand]
    return [sum(hourly[at : at + 24]) for at in range(0, len(hourly), 24)]


def _commit(
    model: str,
    mine: Sequence[Held],
    number: int,
    demand: Sequence[float],
    rate: Money,
    offer: Price,
    over: range,
) -> Proposal:
    daily = committed_saving(demand, number, rate, offer)
    cheaper = 1 - offer.per_gpu_hour.micros / rate.micros
    used = sum(min(value, number) for value in demand) / (number * len(demand))
    years = {"committed-1y": "a year", "committed-3y": "three years"}.get(offer.kind, "its term")
    saving = of_money(daily, most=number * 24 * MONTH * cheaper, rate=rate)
    return Proposal(
        kind="commit",
        project=mine[0].project,
        subjects=tuple(sorted({one.owner for one in mine})),
        devices=tuple(sorted({one.device for one in mine})),
        what=f"Commit to {number} {model} for {years}: {offer.instance} of {offer.provider}, {offer.region}.",
        because=f"In {len(over)} days {number} of them were in use {used:.0%} of the time, and the committed price is "
        f"{cheaper:.0%} lower.",
        saving=saving,
        risk="high",
        risks="It is paid whether it is used or not, until it ends; prices of GPUs have fallen within a year.",
        undo="None before it ends, but to resell it where the provider allows.",
        assumes=f"the price of {offer.dated.isoformat()} ({offer.source}), and use like in these {len(over)} days",
    )


def on_spot(
    held: Sequence[Held],
    rates: Mapping[str, Money],
    spot: Mapping[str, Price],
    preemptible: frozenset[str],
    over: range,
) -> list[Proposal]:
    """spot: the offer to be taken, by model. preemptible: owners that said that they can be interrupted."""
    found = []
    for one in held:
        offer, rate = spot.get(one.model), rates.get(one.device)
        if one.owner not in preemptible or offer is None or rate is None:
            continue
        less = rate.micros - round(offer.per_gpu_hour.micros * (1 + INTERRUPTED))
        if offer.per_gpu_hour.currency == rate.currency and less > 0:
            found.append(_on_spot(one, Money(micros=less, currency=rate.currency), offer, over))
    return found


def _on_spot(one: Held, less: Money, offer: Price, over: range) -> Proposal:
    return Proposal(
        kind="spot",
        project=one.project,
        subjects=(one.owner,),
        devices=(one.device,),
        what=f"Run {one.owner} on spot: {offer.instance} of {offer.provider}, {offer.region}.",
        because=f"It can be interrupted and held {one.hours:.0f} GPU-hours at the full price.",
        saving=of_money(by_day(one.when, over), most=24 * MONTH * one.share, rate=less),
        risk="medium",
        risks="It is interrupted at short notice and may wait while there is no spot: give it a deadline, "
        "so that it goes back to on demand in time.",
        undo="Submit it without spot.",
        assumes=f"the price of {offer.dated.isoformat()} ({offer.source}), and {INTERRUPTED:.0%} of the work done twice",
    )
