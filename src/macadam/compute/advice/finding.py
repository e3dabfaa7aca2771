"""Every rule over one project's window: the proposals, the largest expected saving first, each on what it stands.

Savings are not to be added up: a job that is stopped needs no smaller GPU.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec

from macadam.compute.advice import buying, sharing, smaller, stopping, tuning
from macadam.compute.advice.held import Held, days, hour_of
from macadam.compute.advice.rates import Rates
from macadam.compute.advice.types import Proposal
from macadam.values import digest_of

MOST = 200
"""Proposals kept at a time: nobody reads more, and a leaf has to name them."""
_STALE = "no bill names the device, so its hours are priced by the catalogue"


def proposals(
    held: Sequence[Held], rates: Rates, preemptible: Iterable[str], start: datetime, end: datetime, currency: str
) -> tuple[Proposal, ...]:
    """preemptible: owners that said that they may be interrupted. currency: in which offers are looked for."""
    over = days(start, end)
    by_device = rates.by_device
    committed = rates.cheapest("committed-1y", currency)
    on_demand = [o.price for o in rates.offers if o.price.kind == "on-demand" and not o.stale]
    found = [
        *stopping.stop(held, by_device, over, hour_of(end)),
        *stopping.scale_to_zero(held, by_device, over),
        *sharing.share(held, by_device, over),
        *smaller.smaller(held, by_device, on_demand, over),
        *buying.commit(held, rates.by_model(held), committed, over),
        *buying.on_spot(held, by_device, rates.cheapest("spot", currency), frozenset(preemptible), over),
        *tuning.precision(held, by_device, over),
        *tuning.batch(held, by_device, over),
    ]
    worth = [_with_prices(one, rates) for one in found if _is_worth(one)]
    return tuple(sorted(worth, key=_largest_first)[:MOST])


def topic(proposal: Proposal) -> str:
    """What it is about, whatever its figures are: the same advice of another day has the same topic."""
    about = [proposal.kind, *sorted(proposal.subjects)]
    return digest_of(msgspec.json.encode(about))


def believed(held: Iterable[Held]) -> float:
    """Part of the hours held on which no trust check cast doubt; 1 if there are none."""
    parts = [(one.hours, one.believed) for one in held]
    hours = sum(one for one, _ in parts)
    return sum(one * part for one, part in parts) / hours if hours else 1.0


def _is_worth(one: Proposal) -> bool:
    return one.saving.hours > 0 or (one.saving.expected is not None and one.saving.expected.micros > 0)


def _with_prices(one: Proposal, rates: Rates) -> Proposal:
    if one.saving.expected is None or not rates.listed & set(one.devices):
        return one
    return msgspec.structs.replace(one, assumes="; ".join(part for part in (one.assumes, _STALE) if part))


def _largest_first(one: Proposal) -> tuple[int, float, str, tuple[str, ...]]:
    money = one.saving.expected.micros if one.saving.expected else 0
    return (-money, -one.saving.hours, one.kind, one.subjects)
