"""What an hour of each device costs: as the bill says, else what jobs are charged for it, else the catalogue's cheapest offer on demand."""

from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from fractions import Fraction

import msgspec

from macadam.compute.advice.held import Held
from macadam.compute.billing.types import Charge
from macadam.compute.catalogue import prices
from macadam.compute.catalogue.gpus import gpus
from macadam.compute.catalogue.prices import Offer, Price
from macadam.values import Money


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """by_device: of one hour. listed: the devices whose rate no bill gave. offers: what else can be had on that day."""

    by_device: dict[str, Money]
    listed: frozenset[str]
    offers: tuple[Offer, ...]

    def cheapest(self, kind: str, currency: str) -> dict[str, Price]:
        """The cheapest offer of a kind by model."""
        found: dict[str, Price] = {}
        for offer in self.offers:  # cheapest first
            price = offer.price
            if price.kind == kind and price.per_gpu_hour.currency == currency:
                found.setdefault(price.gpu, price)
        return found

    def by_model(self, held: Iterable[Held]) -> dict[str, Money]:
        """The lowest rate that is paid for each model, of those in one currency; a model with two currencies is left out."""
        found: dict[str, list[Money]] = {}
        for one in held:
            if one.device in self.by_device:
                found.setdefault(one.model, []).append(self.by_device[one.device])
        return {
            model: Money(micros=min(rate.micros for rate in rates), currency=rates[0].currency)
            for model, rates in found.items()
            if len({rate.currency for rate in rates}) == 1
        }


def rates(
    held: Iterable[Held],
    charges: Iterable[Charge],
    own: Iterable[Price],
    at: date,
    currency: str,
    charged: Callable[[str, str], Money | None] = lambda _node, _model: None,
) -> Rates:
    """charges: of the time in question. own: the home's prices. currency: of list prices, where no bill says another. charged: what jobs
    are charged for an hour of a GPU, by its node and model.
    """
    billed = _billed(charges)
    listed: dict[str, Money] = {}
    offers = prices.offers(at=at, own=own)
    for offer in offers:  # cheapest first
        if offer.price.kind == "on-demand" and offer.price.per_gpu_hour.currency == currency:
            listed.setdefault(offer.price.gpu, offer.price.per_gpu_hour)
    found: dict[str, Money] = {}
    guessed: set[str] = set()
    for one in held:
        known = billed.get(one.device) or billed.get(one.node) or charged(one.node, one.model)
        if known is None and one.model in gpus() and one.model in listed:
            known = listed[one.model]
            guessed.add(one.device)
        if known is not None:
            found[one.device] = known
    return Rates(by_device=found, listed=frozenset(guessed), offers=offers)


def _billed(charges: Iterable[Charge]) -> dict[str, Money]:
    """Of one GPU's hour, by device and by machine: effective cost over GPU-hours billed. Left out where currencies differ.

    Several charges for the same machine and time (a commitment covers an hour in part) pay for its hours once.
    """
    sums: dict[str, tuple[Fraction, dict[tuple[datetime, datetime], Fraction], set[str]]] = {}
    for charge in charges:
        hours = Fraction(str(charge.gpus)) * Fraction((charge.end - charge.start).total_seconds()) / 3600
        if charge.category != "usage" or charge.commitment == "unused" or charge.capacity == "unused" or hours <= 0:
            continue
        for name in {charge.device, charge.node, charge.resource} - {""}:
            money, times, currencies = sums.get(name, (Fraction(), {}, set()))
            when = (charge.start, charge.end)
            times[when] = max(hours, times.get(when, Fraction()))
            sums[name] = (money + charge.effective.micros, times, currencies | {charge.effective.currency})
    return _of_an_hour(
        {name: (money, sum(times.values(), Fraction()), found) for name, (money, times, found) in sums.items()}
    )


def _of_an_hour(sums: Mapping[str, tuple[Fraction, Fraction, set[str]]]) -> dict[str, Money]:
    return {
        name: Money(micros=round(money / hours), currency=currencies.pop())
        for name, (money, hours, currencies) in sums.items()
        if len(currencies) == 1 and money > 0
    }
