"""The closed set of functions that request features may use, as plain Python: serving never runs a project's code.

Training sets call the very same functions, value by value, so nothing can differ between the two. A missing
argument gives a missing value.

    number(x)              x as a number; true is 1
    category(x)            x as text
    hour_of_day(t)         0-23 on the clock of `zone`
    minute_of_day(t)       0-1439 on the clock of `zone`
    day_of_week(t)         0 (Monday) - 6 in `zone`
    day_of_year(t)         1-366 in `zone`
    month(t)               1-12 in `zone`
    years_since(y, t)      the year of t in `zone`, less y
    clock_minutes(hhmm)    1745 → 1065
    difference(a, b)       a - b
    ratio(a, b)            a / b; missing if b is 0
    equal(a, b)            1 or 0
    cross(a, b)            'a|b', a category

t is 'event_time'. Numbers are float64.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from macadam.errors import InvalidInput

Value = float | str | None
Function = Callable[..., Value]


class Entry(NamedTuple):
    """arguments: a letter each: n number, c category, a any, t event time. category: what it returns is one."""

    arguments: str
    category: bool
    make: Callable[[ZoneInfo], Function]


def _clocked(read: Callable[[datetime], int]) -> Callable[[ZoneInfo], Function]:
    return lambda zone: lambda at: float(read(at.astimezone(zone)))


def _plain(function: Function) -> Callable[[ZoneInfo], Function]:
    return lambda _zone: function


def _ratio(a: float, b: float) -> Value:
    return a / b if b else None


def _clock_minutes(clock: float) -> Value:
    hours, minutes = divmod(clock, 100)
    return hours * 60 + minutes


def _years_since(zone: ZoneInfo) -> Function:
    return lambda year, at: float(at.astimezone(zone).year) - year


FUNCTIONS: dict[str, Entry] = {
    "number": Entry("n", False, _plain(float)),
    "category": Entry("c", True, _plain(str)),
    "hour_of_day": Entry("t", False, _clocked(lambda at: at.hour)),
    "minute_of_day": Entry("t", False, _clocked(lambda at: at.hour * 60 + at.minute)),
    "day_of_week": Entry("t", False, _clocked(lambda at: at.weekday())),
    "day_of_year": Entry("t", False, _clocked(lambda at: at.timetuple().tm_yday)),
    "month": Entry("t", False, _clocked(lambda at: at.month)),
    "years_since": Entry("nt", False, _years_since),
    "clock_minutes": Entry("n", False, _plain(_clock_minutes)),
    "difference": Entry("nn", False, _plain(lambda a, b: a - b)),
    "ratio": Entry("nn", False, _plain(_ratio)),
    "equal": Entry("aa", False, _plain(lambda a, b: float(a == b))),
    "cross": Entry("cc", True, _plain(lambda a, b: f"{a}|{b}")),
}


def check(feature: str, name: str, arguments: int, zone: str) -> None:
    """Raises InvalidInput if there is no such function, it takes another number of arguments, or no such zone."""
    entry = FUNCTIONS.get(name)
    if entry is None:
        raise InvalidInput(
            f"Request feature {feature!r} uses the function {name!r}, which does not exist.",
            next_step=f"Choose one of: {', '.join(FUNCTIONS)}.",
        )
    if arguments != len(entry.arguments):
        raise InvalidInput(
            f"Request feature {feature!r} gives {arguments} arguments to {name}, expected {len(entry.arguments)}.",
            next_step="Set inputs.",
        )
    _zone(feature, zone)


_ACCEPTED = {"n": ("number", ""), "c": ("category", ""), "a": ("number", "category", ""), "t": ("time",)}


def check_kinds(feature: str, name: str, kinds: Sequence[str]) -> None:
    """Raises InvalidInput if an argument is of the wrong kind: number, category, time, or '' where not known yet."""
    for position, (letter, kind) in enumerate(zip(FUNCTIONS[name].arguments, kinds, strict=True), start=1):
        if kind not in _ACCEPTED[letter]:
            raise InvalidInput(
                f"Argument {position} of {name} in request feature {feature!r} is a {kind or 'value of a table'},"
                f" expected a {_ACCEPTED[letter][0]}.",
                next_step="See macadam.features.functions for what each function takes.",
            )


def compiled(feature: str, name: str, zone: str) -> Function:
    """The function with its zone bound; a missing argument gives a missing value."""
    entry = FUNCTIONS[name]
    function = entry.make(_zone(feature, zone))
    if len(entry.arguments) == 1:
        return lambda a: None if a is None else function(a)
    return lambda a, b: None if a is None or b is None else function(a, b)


def _zone(feature: str, zone: str) -> ZoneInfo:
    try:
        return ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidInput(
            f"Request feature {feature!r} names the time zone {zone!r}, which does not exist.",
            next_step="Use an IANA name such as America/New_York.",
        ) from error
