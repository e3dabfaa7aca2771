"""Replicas of an endpoint that answers one request at a time each: a queue with k servers, on the very requests that
were seen.

The formula says where to look (Allen & Cunneen's approximation of the wait in G/G/k by Erlang's C: Allen 1990,
Probability, Statistics, and Queueing Theory, section 5.3.5); the trace itself, served first come first served by k
servers, says what holds.
"""

import heapq
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from macadam.compute.rightsizing import arrivals
from macadam.compute.rightsizing.types import Slo, spanned
from macadam.errors import InvalidInput, SourceInvalid

_COLUMNS = ("SECONDS",)
_MOST_REPLICAS = 10_000
_LONGEST = 86_400.0  # seconds of one request; above, a unit was mistaken for another


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """Requests in the order of their arrival. at: seconds since the first; seconds: that each keeps a server busy."""

    at: tuple[float, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.at or len(self.at) != len(self.seconds):
            raise InvalidInput("There are no requests.", next_step="Give a trace with at least one.")
        if any(not 0 <= s <= _LONGEST for s in self.seconds) or sorted(self.at) != list(self.at):
            raise InvalidInput("A request has no time, or the order is wrong.", next_step="Correct the trace.")

    @property
    def span(self) -> float:
        """Seconds that rates are taken over."""
        return spanned(self.at)


class Sized(msgspec.Struct, frozen=True, kw_only=True):
    """replicas: the fewest with which the promise held on the trace. foreseen: by the formula. busy: part of their
    time. latency: seconds from arrival to answer. before: what one replica less would have kept.
    """

    replicas: int
    foreseen: int
    attained: float
    before: float
    busy: float
    latency_p50: float
    latency_p99: float
    rate: float
    mean: float


def read(path: Path) -> Work:
    """Reads a CSV with the columns TIMESTAMP (as in arrivals.py) and SECONDS. Raises SourceInvalid with
    the line, TooLarge.
    """
    rows = sorted((at, _taken(where, *cells)) for where, at, cells in arrivals.rows(path, _COLUMNS))
    if not rows:
        raise SourceInvalid(f"{path} has no requests.", next_step="Give a trace with at least one.")
    return Work(at=tuple(row[0] - rows[0][0] for row in rows), seconds=tuple(row[1] for row in rows))


def _taken(where: str, cell: str) -> float:
    try:
        seconds = float(cell)
    except ValueError as error:
        raise arrivals.wrong(where, f"SECONDS is {arrivals.shown(cell)}") from error
    if not 0 <= seconds <= _LONGEST:
        raise arrivals.wrong(where, f"SECONDS is {arrivals.shown(cell)}; expected: 0 to {_LONGEST:g}")
    return seconds


def latencies(work: Work, replicas: int) -> list[float]:
    """Seconds from arrival to answer, first come first served by `replicas` servers."""
    free = [0.0] * replicas
    found = []
    for at, seconds in zip(work.at, work.seconds, strict=True):
        begins = max(at, free[0])
        heapq.heapreplace(free, begins + seconds)
        found.append(begins + seconds - at)
    return found


def size(work: Work, latency: float, attainment: float) -> Sized:
    """The fewest replicas with which `attainment` of the requests are answered within `latency` seconds. Raises
    InvalidInput if none suffice.
    """
    promise = Slo(ttft=latency, tpot=latency, attainment=attainment)  # checked at birth
    alone = sum(1 for seconds in work.seconds if seconds <= latency) / len(work.seconds)
    if alone < promise.attainment:
        raise InvalidInput(
            f"Only {alone:.2%} of the requests take {latency:g} s or less even without a queue; {attainment:.2%} are asked for.",
            next_step="Make the model faster, or relax the promise.",
        )
    low, high = 1, 1
    while _kept(work, high, latency) < attainment:
        low, high = high + 1, high * 2
        if high > _MOST_REPLICAS:
            raise InvalidInput("More than ten thousand replicas are needed.", next_step="Give a part of the load.")
    while low < high:  # another server never makes anybody wait longer
        middle = (low + high) // 2
        low, high = (low, middle) if _kept(work, middle, latency) >= attainment else (middle + 1, high)
    taken = sorted(latencies(work, low))
    longest = max(work.seconds)
    return Sized(
        replicas=low,
        foreseen=foreseen(work, latency, attainment),
        attained=_kept(work, low, latency),
        before=_kept(work, low - 1, latency) if low > 1 else 0.0,
        busy=sum(work.seconds) / (low * max(work.span, longest)),
        latency_p50=taken[len(taken) // 2],
        latency_p99=taken[min(len(taken) - 1, int(len(taken) * 0.99))],
        rate=len(work.at) / work.span,
        mean=sum(work.seconds) / len(work.seconds),
    )


def foreseen(work: Work, latency: float, attainment: float) -> int:
    """The replicas that the formula asks for, if the wait beyond the mean request's time dies out exponentially."""
    n = len(work.at)
    rate, mean = n / work.span, sum(work.seconds) / n
    gaps = [later - earlier for earlier, later in zip(work.at, work.at[1:], strict=False)]
    variation = (_squared_variation(gaps) + _squared_variation(work.seconds)) / 2
    load = rate * mean
    if load >= _MOST_REPLICAS:
        return _MOST_REPLICAS
    room = max(latency - mean, 1e-9)
    for k in range(max(1, math.floor(load) + 1), _MOST_REPLICAS):
        spare = (k - load) / mean if mean else math.inf
        if erlang_c(k, load) * math.exp(-room * spare / max(variation, 1e-9)) <= 1 - attainment:
            return k
    return _MOST_REPLICAS


def erlang_c(servers: int, load: float) -> float:
    """The chance that a request waits in M/M/k. load: erlangs, below `servers`."""
    if load <= 0:
        return 0.0
    blocked = 1.0
    for k in range(1, servers + 1):  # Erlang's B by its recursion, which does not overflow
        blocked = load * blocked / (k + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


def _kept(work: Work, replicas: int, latency: float) -> float:
    return sum(1 for taken in latencies(work, replicas) if taken <= latency + 1e-12) / len(work.at)


def _squared_variation(values: Sequence[float]) -> float:
    """Variance over the squared mean."""
    if not values or not (mean := sum(values) / len(values)):
        return 0.0
    return sum((value / mean - 1) ** 2 for value in values) / len(values)
