"""What a token costs where models are bought by the token, from dated sources."""

import importlib.resources
from datetime import date
from functools import cache

import msgspec

from macadam.errors import InvalidInput, NotFound
from macadam.values import Money


class TokenPrice(msgspec.Struct, frozen=True, kw_only=True):
    """read, made: for a million tokens of the prompt and of the answer. cached: of the prompt that the provider had read
    before, None if no source says. batch: what requests that may wait cost, as a part of the price; None if no source says.
    most: tokens of a prompt up to which these prices hold, 0 for any. What writing into a cache costs is not in it. dated: the
    day on which the source said so. Raises InvalidInput.
    """

    name: str
    provider: str
    read: Money
    made: Money
    dated: date
    source: str
    cached: Money | None = None
    batch: float | None = None
    most: int = 0

    def __post_init__(self) -> None:
        prices = [price for price in (self.read, self.made, self.cached) if price is not None]
        if min(price.micros for price in prices) < 0 or len({price.currency for price in prices}) > 1:
            raise InvalidInput(
                f"{self.name} costs {self.read} and {self.made}.", next_step="Give prices in one currency."
            )
        if self.cached is not None and self.cached.micros > self.read.micros:
            raise InvalidInput(f"{self.name} costs more from the cache.", next_step="Correct tokens.json.")
        if self.batch is not None and not 0 < self.batch <= 1:
            raise InvalidInput(f"{self.name} costs {self.batch} times in batches.", next_step="Correct tokens.json.")


@cache
def published() -> dict[str, TokenPrice]:
    """The prices that come with this release, by name."""
    text = importlib.resources.files("macadam.compute.catalogue").joinpath("tokens.json").read_bytes()
    return {price.name: price for price in msgspec.json.decode(text, type=list[TokenPrice])}


def find(name: str) -> TokenPrice:
    """Raises NotFound with the names there are."""
    if name not in published():
        raise NotFound(
            f"No price of {name!r} is known.",
            next_step=f"Give read and made per million tokens yourself, or choose one of: {', '.join(sorted(published()))}.",
        )
    return published()[name]
