"""What a GPU costs by the hour, from dated price lists: on demand, spot, committed, or owned.

Every price has the source that said so and its day; one that is old is said to be old, and used all the same. A home adds
and overrides prices with lists of its own (`own`).
"""

import importlib.resources
from collections.abc import Iterable
from datetime import date
from functools import cache
from typing import Annotated, Literal

import msgspec

from macadam.compute.catalogue import gpus
from macadam.errors import InvalidInput, NotFound
from macadam.values import Money

Kind = Literal["on-demand", "spot", "committed-1y", "committed-3y", "owned"]
Text = Annotated[str, msgspec.Meta(max_length=200)]

STALE = 90
"""Days after which a price is said to be old: providers change list prices a few times a year."""
STALE_SPOT = 14
"""The same of a spot price, which moves with supply and demand: AWS keeps 90 days of its changes, Azure three months."""


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """One offer. per_gpu_hour: of one GPU of the machine. gpu: the catalogue's name. gpus: how many the machine has, which is
    the least that can be rented. zone: where a price is of one zone of the region, as AWS's spot prices are; '' for all of it.
    dated: the day on which the source said so. listed: taken from the provider's own list, which anybody pays, and so not
    agreed on.
    """

    provider: Text
    region: Text
    instance: Text
    gpu: Text
    gpus: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    kind: Kind
    per_gpu_hour: Money
    dated: date
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    zone: Text = ""
    listed: bool = False

    def __post_init__(self) -> None:
        if self.per_gpu_hour.micros < 0:
            raise InvalidInput(
                f"{self.instance} of {self.provider} cannot cost {self.per_gpu_hour}.",
                next_step="Give a price of at least nothing.",
            )

    @property
    def offer(self) -> tuple[str, str, str, str, str, str]:
        """What is offered, without for how much and when."""
        return (self.provider, self.region, self.instance, self.gpu, self.kind, self.zone)


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A price on a day. age: days since its source said so; stale: whether that is long ago."""

    price: Price
    age: int
    stale: bool


@cache
def published() -> tuple[Price, ...]:
    """The prices that come with this release."""
    text = importlib.resources.files("macadam.compute.catalogue").joinpath("prices.json").read_bytes()
    return msgspec.json.decode(text, type=tuple[Price, ...])


def newest(some: Iterable[Price], at: date | None) -> tuple[Price, ...]:
    """Of each offer the price that holds on a day, None: the newest of all; of two of one day the later in order."""
    found: dict[tuple[str, ...], Price] = {}
    for price in some:
        known = found.get(price.offer)
        if (at is None or price.dated <= at) and (known is None or price.dated >= known.dated):
            found[price.offer] = price
    return tuple(found.values())


def is_stale(price: Price, at: date) -> bool:
    """Whether it is of so long ago that it is said to be old."""
    return (at - price.dated).days > (STALE_SPOT if price.kind == "spot" else STALE)


def offers(
    gpu: str = "",
    at: date | None = None,
    *,
    provider: str = "",
    region: str = "",
    kind: str = "",
    own: Iterable[Price] = (),
) -> tuple[Offer, ...]:
    """The newest price of each offer on a day, cheapest first within each currency, as currencies are not compared.

    gpu: any name that the catalogue knows, '' for all. at: the day that is asked about, so that no price of later is
    known; None: whatever is newest, and its age is 0. own: a home's prices; on the same day they go before published ones.
    Raises NotFound for a GPU that is not known.
    """
    wanted = gpus.find(gpu).name if gpu else ""

    def is_asked(price: Price) -> bool:
        filters = ((provider, price.provider), (region, price.region), (kind, price.kind), (wanted, price.gpu))
        return all(not asked or asked == said for asked, said in filters)

    found = [_offer(price, at) for price in newest(filter(is_asked, (*published(), *own)), at)]
    return tuple(
        sorted(found, key=lambda o: (o.price.per_gpu_hour.currency, o.price.per_gpu_hour.micros, o.price.offer))
    )


def cheapest(gpu: str, at: date, *, kind: str = "on-demand", currency: str = "USD", own: Iterable[Price] = ()) -> Offer:
    """The cheapest offer in a currency. Raises NotFound if there is none."""
    for offer in offers(gpu, at, kind=kind, own=own):
        if offer.price.per_gpu_hour.currency == currency:
            return offer
    raise NotFound(
        f"No {kind} price of {gpu} in {currency} is known on {at}.",
        next_step="Add one: macadam cost prices import FILE --from csv.",
    )


def _offer(price: Price, at: date | None) -> Offer:
    age = 0 if at is None else (at - price.dated).days
    return Offer(price=price, age=age, stale=at is not None and is_stale(price, at))
