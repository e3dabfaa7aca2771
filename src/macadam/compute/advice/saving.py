"""What a proposal is likely to save in 30 days, from what it would have saved on each day of the window."""

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from macadam.compute.advice.types import Saving
from macadam.lazy import lazy
from macadam.values import Money

if TYPE_CHECKING:
    from scipy import special
else:
    special = lazy("scipy.special")

MONTH = 30  # days
CONFIDENCE = 0.9
_ENOUGH = 3  # days; fewer give no spread worth the name


def interval(daily: Sequence[float], most: float) -> tuple[float, float, float]:
    """Mean, low and high of 30 days: Student's t over days, within 0 and `most`. With under three days: those bounds.

    Days are taken as independent; a weekly rhythm that the window cuts widens the interval, as it adds to the spread.
    """
    if not daily:
        return 0.0, 0.0, most
    mean = math.fsum(daily) / len(daily)
    expected = min(mean * MONTH, most)
    if len(daily) < _ENOUGH:
        return expected, 0.0, most
    variance = math.fsum((value - mean) ** 2 for value in daily) / (len(daily) - 1)
    reach = quantile(len(daily) - 1) * math.sqrt(variance / len(daily)) * MONTH
    return expected, max(0.0, expected - reach), min(most, expected + reach)


def quantile(freedom: int) -> float:
    """Student's t for a two-sided interval of CONFIDENCE."""
    return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))


def of_hours(daily: Sequence[float], *, devices: float, rate: Money | None) -> Saving:
    """daily: device-hours that would not have been paid, by day. devices: how many could be freed at most. rate: of an hour."""
    hours, low, high = interval(daily, devices * 24 * MONTH)
    return Saving(
        hours=hours,
        low_hours=low,
        high_hours=high,
        expected=times(rate, hours),
        low=times(rate, low),
        high=times(rate, high),
    )


def of_money(daily: Sequence[float], *, most: float, rate: Money) -> Saving:
    """Where hours stay and their price falls. daily: device-hours of each day; rate: what each of them costs less."""
    expected, low, high = interval(daily, most)
    return Saving(
        hours=0,
        low_hours=0,
        high_hours=0,
        expected=times(rate, expected),
        low=times(rate, low),
        high=times(rate, high),
    )


def times(rate: Money | None, hours: float) -> Money | None:
    """To the millionth, half to even."""
    return None if rate is None else Money(micros=round(rate.micros * hours), currency=rate.currency)


def least(rates: Mapping[str, Money], devices: Iterable[str]) -> Money | None:
    """The lowest hourly rate of several devices, so that no saving is overstated. None if one has none, or currencies differ."""
    found = [rates.get(device) for device in devices]
    known = [rate for rate in found if rate is not None]
    if not known or len(known) < len(found) or len({rate.currency for rate in known}) > 1:
        return None
    return min(known, key=attrgetter("micros"))
