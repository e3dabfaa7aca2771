"""What a token costs where models are bought by the token, from dated sources."""

import importlib.resources
from datetime import date
from functools import cache

import msgspec

from macadam.errors import InvalidInput, NotFound
from macadam.values import Money


class TokenPrice(msgspec.Struct, frozen=True, kw_only=True):
    """read, made: for a million tokens of the prompt and of the answer, without discounts for caches and batches.
    dated: the day on which the source said so. Raises InvalidInput.
    """

    name: str
    provider: str
    read: Money
    made: Money
    dated: date
    source: str

    def __post_init__(self) -> None:
        if min(self.read.micros, self.made.micros) < 0 or self.read.currency != self.made.currency:
            raise InvalidInput(
                f"{self.name} costs {self.read} and {self.made}.", next_step="Give two prices in one currency."
            )


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
