"""What a period will have cost, from what its days have cost: pure, an estimate, and said to be one.

Method: the mean of each weekday over the last eight weeks, as spending follows the working week; with less than two
weeks of history the mean of all days (Hyndman & Athanasopoulos, Forecasting: Principles and Practice, 3rd ed., 5.2: mean
method, here by season). The interval is normal: residuals of independent days, and the error of the means, section 5.5.
"""

import math
from collections.abc import Mapping
from datetime import date, timedelta
from statistics import NormalDist

import msgspec

from macadam.errors import InvalidInput

HISTORY = 56  # days: eight of each weekday, so that a changed habit is forgotten within two months
_WEEKLY_FROM = 14  # days of history: each weekday seen twice
_LEAST = 3  # days of history: of two nobody can say how much days differ
_OLDEST = 14  # days that bills may lag behind the period; what is older says little of it
_WEEK = 7


class Projection(msgspec.Struct, frozen=True, kw_only=True):
    """In micros. total: spent so far and what is expected of the days that are left. low, high: None without interval."""

    total: int
    low: int | None
    high: int | None
    method: str
    days: int


def project(
    daily: Mapping[date, int], *, start: date, end: date, through: date, so_far: int, level: float = 0.9
) -> Projection:
    """daily: micros by day; a day that is missing cost nothing. start, end: the period, end excluded. through: the last
    day that is complete. so_far: micros of the period until now. Raises InvalidInput.
    """
    if end <= start or not 0 < level < 1:
        raise InvalidInput(
            f"A period from {start} to {end} at a level of {level} cannot be forecast.",
            next_step="Let the period end after it starts, and the level lie between 0 and 1.",
        )
    left = _days(max(start, through + timedelta(days=1)), end)
    known = _history(daily, through)
    if not left or len(known) < _LEAST or (start - through).days > _OLDEST:
        method = (
            "what was spent: no day is left" if not left else "what was spent: too little is known of the last days"
        )
        return Projection(total=so_far, low=None, high=None, method=method, days=len(known))
    means, errors = _fit(known)
    expected = sum(means[day.weekday()][0] for day in left)
    complete = sum(micros for day, micros in daily.items() if start <= day <= through)
    total = max(round(complete + expected), so_far)
    spread = _spread(means, errors, left) * NormalDist().inv_cdf(0.5 + level / 2)
    low = max(round(complete + expected - spread), so_far)
    return Projection(
        total=total, low=min(low, total), high=max(round(total + spread), total), method=_method(known), days=len(known)
    )


def _days(start: date, end: date) -> list[date]:
    return [start + timedelta(days=n) for n in range(max(0, (end - start).days))]


def _history(daily: Mapping[date, int], through: date) -> dict[date, int]:
    """The last days that are complete, from the first that cost anything; those without cost between them count."""
    first = min((day for day in daily if day <= through), default=None)
    if first is None:
        return {}
    first = max(first, through - timedelta(days=HISTORY - 1))
    return {day: daily.get(day, 0) for day in _days(first, through + timedelta(days=1))}


def _fit(known: Mapping[date, int]) -> tuple[dict[int, tuple[float, int]], float]:
    """For each weekday its mean and how many days it stands on, and the standard deviation of what is left over."""
    weekly = len(known) >= _WEEKLY_FROM
    means: dict[int, tuple[float, int]] = {}
    for weekday in range(_WEEK):
        seen = [micros for day, micros in known.items() if not weekly or day.weekday() == weekday]
        means[weekday] = (math.fsum(seen) / len(seen), len(seen))
    squares = math.fsum((micros - means[day.weekday()][0]) ** 2 for day, micros in known.items())
    freedom = len(known) - (_WEEK if weekly else 1)
    return means, math.sqrt(squares / freedom) if freedom > 0 else 0.0


def _spread(means: Mapping[int, tuple[float, int]], error: float, left: list[date]) -> float:
    """The standard deviation of the sum of the days that are left."""
    counts: dict[int, int] = {}
    for day in left:
        counts[day.weekday()] = counts.get(day.weekday(), 0) + 1
    return error * math.sqrt(math.fsum(n + n * n / means[weekday][1] for weekday, n in counts.items()))


def _method(known: Mapping[date, int]) -> str:
    weekly = len(known) >= _WEEKLY_FROM
    return f"mean of each weekday over {len(known)} days" if weekly else f"mean of {len(known)} days"
