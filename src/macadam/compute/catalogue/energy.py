"""What electricity costs and how much CO₂ it stands for, by region, from dated sources; and what hardware of one's own costs.

Everything here is pure. Amounts are decimals until they are rounded once, half to even, to the micro.
"""

import importlib.resources
import math
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache
from typing import Literal, TypeVar

import msgspec

from macadam.errors import InvalidInput, NotFound
from macadam.values import Money

HOURS_PER_YEAR = 8766  # 365.25 days


class Carbon(msgspec.Struct, frozen=True, kw_only=True):
    """How much CO₂ equivalent a kWh of a grid stands for, location-based, in the mean of a year. region: a cloud's region
    or a country; names: what else it is called. dated: when the source was published.
    """

    region: str
    names: tuple[str, ...]
    grams_per_kwh: float
    year: int
    dated: date
    source: str


class Electricity(msgspec.Struct, frozen=True, kw_only=True):
    """What a kWh costs. kind: business prices are without refundable taxes, household prices with all of them."""

    region: str
    names: tuple[str, ...]
    kind: Literal["business", "household"]
    per_kwh: Money
    period: str
    dated: date
    source: str


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """A machine of one's own. years: until it is sold for `residual`. utilisation: the part of that time in which somebody
    uses it, over which it must be earned. watts: while it is used; pue: of the place, 1 or more.
    """

    capex: Money
    residual: Money
    years: float
    utilisation: float
    watts: float
    pue: float
    per_kwh: Money

    def __post_init__(self) -> None:
        numbers = (self.years, self.utilisation, self.watts, self.pue)
        currencies = {self.capex.currency, self.residual.currency, self.per_kwh.currency}
        if not all(map(math.isfinite, numbers)) or self.years <= 0 or not 0 < self.utilisation <= 1:
            raise InvalidInput(
                "A machine needs years above zero and a utilisation above 0, at most 1.",
                next_step="Give for how long it is kept, and the part of that time in which it is used.",
            )
        if self.watts < 0 or self.pue < 1 or self.per_kwh.micros < 0:
            raise InvalidInput(
                "A machine needs watts and a price of at least zero and a PUE of at least 1.",
                next_step="Give what it draws while it is used; the PUE is all power of the place over that of its machines.",
            )
        if self.capex.micros <= 0:
            raise InvalidInput(
                f"A machine's price is {self.capex}.",
                next_step="Give what was paid for it, with its part of the network.",
            )
        if not 0 <= self.residual.micros <= self.capex.micros:
            raise InvalidInput(
                "A machine is worth something between nothing and its price in the end.",
                next_step="Give what it sells for in the end, at most its price.",
            )
        if len(currencies) > 1:
            raise InvalidInput(
                f"A machine's prices are in {', '.join(sorted(currencies))}.", next_step="Give them in one currency."
            )


def per_hour(hardware: Hardware, parts: int = 1) -> Money:
    """What an hour of use of one of its `parts` costs (of its GPUs, or of its cores): amortisation, straight, and power.

    Raises InvalidInput.
    """
    if parts < 1:
        raise InvalidInput(f"A machine has no {parts} parts.", next_step="Give how many GPUs or cores it has.")
    used = Decimal(repr(hardware.years)) * HOURS_PER_YEAR * Decimal(repr(hardware.utilisation))
    worn = Decimal(hardware.capex.micros - hardware.residual.micros) / used
    kilowatts = Decimal(repr(hardware.watts)) * Decimal(repr(hardware.pue)) / 1000
    micros = (worn + kilowatts * hardware.per_kwh.micros) / parts
    return Money(micros=int(micros.to_integral_value(ROUND_HALF_EVEN)), currency=hardware.capex.currency)


def carbon(region: str) -> Carbon:
    """By a cloud's region, a country's name or its ISO code; '' is the world. Raises NotFound."""
    return _find(region, _tables().carbon, "carbon intensity")


def intensities() -> tuple[float, ...]:
    """Grams per kWh of every grid that is known."""
    return tuple(one.grams_per_kwh for one in _tables().carbon)


def electricity(region: str, kind: Literal["business", "household"] = "business") -> Electricity:
    """Raises NotFound."""
    return _find(region, tuple(e for e in _tables().electricity if e.kind == kind), f"{kind} price of electricity")


_T = TypeVar("_T", Carbon, Electricity)


class _Tables(msgspec.Struct, frozen=True):
    carbon: tuple[Carbon, ...]
    electricity: tuple[Electricity, ...]


@cache
def _tables() -> _Tables:
    text = importlib.resources.files("macadam.compute.catalogue").joinpath("energy.json").read_bytes()
    return msgspec.json.decode(text, type=_Tables)


def _find(region: str, rows: tuple[_T, ...], what: str) -> _T:
    wanted = region.strip().lower().replace(" ", "-")
    for row in rows:
        if wanted == row.region or wanted in row.names:
            return row
    raise NotFound(
        f"No {what} of {region!r} is known.",
        next_step="Choose one of: " + ", ".join(sorted({row.region for row in rows})) + ".",
    )
