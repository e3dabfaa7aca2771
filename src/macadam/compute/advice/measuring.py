"""What taken advice saved: the price of the same work, on the days before and since.

Work is what the devices could have done in the time for which their multiprocessors were active: active time times the peak of
the model. So stopping what idles, sharing, a smaller GPU and a lower price all show as what they are, and doing less does not
pass for saving. The price is a ratio of sums over days, its interval the jackknife's (Quenouille 1956; Efron, Stein 1981).
"""

import math
from collections.abc import Collection, Mapping, Sequence

from macadam.compute.advice.held import Held, by_day
from macadam.compute.advice.saving import MONTH, quantile
from macadam.compute.advice.types import Measured, Verdict
from macadam.compute.catalogue.gpus import gpus
from macadam.values import Money

ENOUGH = 3
"""Whole days on either side; with fewer a jackknife says nothing."""
_PETA_HOURS = 1e3 * 1e15  # 1,000 petaFLOP-hours in FLOP/s * hours


def measure(
    before: Sequence[Held],
    days_before: range,
    since: Sequence[Held],
    days_since: range,
    rates: Mapping[str, Money],
    rates_since: Mapping[str, Money],
) -> Measured:
    """before, since: of the same owners' project and devices of all models that they used; rates: of an hour, by device, as
    they were before and are since, for a lower price is a saving too.
    """
    counted = (len(days_before), len(days_since))
    if min(counted) < ENOUGH:
        return Measured(verdict="too early", days=counted)
    sides = ((before, rates), (since, rates_since))
    currencies = {known[one.device].currency for held, known in sides for one in held if one.device in known}
    unpriced = any(one.device not in known for held, known in sides for one in held)
    worth = _worth({one.model for one in (*before, *since)})
    old, new = _daily(before, days_before, rates, worth), _daily(since, days_since, rates_since, worth)
    if unpriced or len(currencies) != 1 or not sum(old[1]) or not sum(new[1]):
        return Measured(verdict="nothing shown", days=counted)
    return _compared(old, new, counted, currencies.pop())


def _daily(
    held: Sequence[Held], over: range, rates: Mapping[str, Money], worth: Mapping[str, float]
) -> tuple[list[float], list[float]]:
    """Millionths of money, and work, by day."""
    money, work = [0.0] * len(over), [0.0] * len(over)
    for one in held:
        rate = rates[one.device].micros if one.device in rates else 0
        money = [total + rate * hours for total, hours in zip(money, by_day(one.when, over), strict=True)]
        done = by_day(one.work, over)
        work = [total + worth[one.model] * hours for total, hours in zip(work, done, strict=True)]
    return money, work


def _worth(models: Collection[str]) -> dict[str, float]:
    """Work of an active hour by model: 1,000 petaFLOP-hours, or thousands of hours if one of them is unknown."""
    if not set(models) <= set(gpus()):
        return dict.fromkeys(models, 1e-3)
    peaks = {model: gpus()[model].peak for model in models}
    return {model: max(peak.get("fp16", 0.0), peak.get("fp32", 0.0)) / _PETA_HOURS for model, peak in peaks.items()}


Daily = tuple[Sequence[float], Sequence[float]]


def _compared(old: Daily, new: Daily, counted: tuple[int, int], currency: str) -> Measured:
    was, spread_was = ratio(*old)
    now, spread_now = ratio(*new)
    work = MONTH * sum(new[1]) / len(new[1])
    less = was - now
    reach = quantile(min(counted) - 1) * math.hypot(spread_was, spread_now)
    if not math.isfinite(reach):
        return Measured(verdict="nothing shown", days=counted, before=was / 1e6, after=now / 1e6)
    return Measured(
        verdict=_verdict(less, reach),
        days=counted,
        before=was / 1e6,
        after=now / 1e6,
        saving=Money(micros=round(less * work), currency=currency),
        low=Money(micros=round((less - reach) * work), currency=currency),
        high=Money(micros=round((less + reach) * work), currency=currency),
    )


def _verdict(less: float, reach: float) -> Verdict:
    if less - reach > 0:
        return "saved"
    return "cost more" if less + reach < 0 else "nothing shown"


def ratio(over: Sequence[float], under: Sequence[float]) -> tuple[float, float]:
    """Sum over sum, and its standard error by leaving out one day at a time. Infinite where one day holds all the work."""
    total_over, total_under = math.fsum(over), math.fsum(under)
    value = total_over / total_under
    count = len(over)
    left = [
        (total_over - a) / (total_under - b) if total_under - b > 0 else math.inf
        for a, b in zip(over, under, strict=True)
    ]
    if math.inf in left:
        return value, math.inf
    middle = math.fsum(left) / count
    return value, math.sqrt((count - 1) / count * math.fsum((one - middle) ** 2 for one in left))
