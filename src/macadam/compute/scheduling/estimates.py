"""What finished work says about how long other work takes: histograms of durations, forgetting slowly, and the Gittins index.

Only durations of work that has FINISHED are ever added. A histogram belongs to (tenant, GPUs, group); where it is thin, it leans on
that of everybody. Its bins are the levels of `order`, so that adding and asking cost the same whatever has been seen.
"""

from functools import cached_property

from macadam.compute.scheduling.order import LEVELS, level
from macadam.compute.scheduling.types import WHOLE, Work

Key = tuple[str, int, str]

_LEANS_ON_ALL = 10.0  # finished jobs that everybody's history counts for beside a group's own
_REMEMBERS = 1000.0  # finished jobs after which the older ones count half: teams change what they run
_GROWTH = 1.1  # what is known of a group is worked out anew when it has grown by a tenth


class Histogram:
    """Finished durations by the number of levels that they passed. counts: jobs; sums: seconds."""

    def __init__(self) -> None:
        self.counts = [0.0] * (len(LEVELS) + 1)
        self.sums = [0.0] * (len(LEVELS) + 1)
        self.total = 0.0
        self.seen = 0

    def add(self, seconds: float) -> None:
        at = level(seconds)
        self.counts[at] += 1
        self.sums[at] += seconds
        self.total += 1
        self.seen += 1
        if self.total > 2 * _REMEMBERS:
            self.counts = [count / 2 for count in self.counts]
            self.sums = [total / 2 for total in self.sums]
            self.total /= 2

    def leaning(self, on: "Histogram", weight: float) -> "Histogram":
        """The same with `on` counting for so many jobs more."""
        part = weight / on.total if on.total else 0.0
        both = Histogram()
        both.counts = [own + part * other for own, other in zip(self.counts, on.counts, strict=True)]
        both.sums = [own + part * other for own, other in zip(self.sums, on.sums, strict=True)]
        both.total = sum(both.counts)
        return both

    def remaining(self, attained: float, quantile: float) -> float:
        """Seconds that work still runs at this quantile, straight within a bin; as long again if nothing ran longer."""
        bounds: tuple[float, ...] = (0.0, *LEVELS, 2 * LEVELS[-1])
        parts = [count * _left(bounds[at], bounds[at + 1], attained) for at, count in enumerate(self.counts)]
        wanted: float = quantile * sum(parts)
        if not sum(parts):
            return max(attained, LEVELS[0])
        for at, part in enumerate(parts):
            if part and part >= wanted:
                low = max(bounds[at], attained)
                return low + (bounds[at + 1] - low) * wanted / part - attained
            wanted -= part
        return bounds[-1] - attained


def gittins(histogram: Histogram) -> list[float]:
    """The rank after each number of levels passed: seconds of service expected for each job that finishes, if service goes on
    to the best later level (Gittins 1979; for unknown durations Aalto, Ayesta and Righter 2009). Lower goes first.
    """
    bounds = (0.0, *LEVELS)
    ranks: list[float] = []
    for passed, start in enumerate(bounds):
        best, done, spent = float("inf"), 0.0, 0.0
        left = sum(histogram.counts[passed:])
        for later in range(passed, len(bounds)):
            done += histogram.counts[later]
            spent += histogram.sums[later] - histogram.counts[later] * start
            end = bounds[later + 1] if later + 1 < len(bounds) else start
            if done > 0:
                best = min(best, (spent + (left - done) * (end - start)) / done)
        # Nothing known ran longer: expect as much again as it has had.
        ranks.append(best if best < float("inf") else 2 * start)
    return ranks


class Learned:
    """What a histogram says as of one instant, worked out when it is first asked."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram

    @cached_property
    def ranks(self) -> list[float]:
        """The rank of one GPU's work by the number of levels passed."""
        return gittins(self._histogram) if self._histogram.total else [LEVELS[0], *LEVELS]

    @cached_property
    def median(self) -> float:
        """Seconds."""
        return self._histogram.remaining(0.0, 0.5)


class History:
    """`Estimates` from the durations of finished work. Not thread-safe.

    What it says of a group changes when the group has grown by a tenth, whether or not anybody asks meanwhile: so whoever adds the same
    work in the same order is told the same.
    """

    def __init__(self) -> None:
        self.everybody = Histogram()
        self._groups: dict[Key, Histogram] = {}
        self._learned: dict[Key, Learned] = {}
        self.anybody = Learned(Histogram())
        self._again: dict[Key | None, int] = {}  # finished jobs with which each is learned anew

    def add(self, tenant: str, gpus: int, group: str, seconds: float) -> None:
        """A job has finished after running so many seconds in all."""
        key = (tenant, gpus, group)
        own = self._groups.get(key)
        if own is None:
            own = self._groups[key] = Histogram()
        own.add(seconds)
        self.everybody.add(seconds)
        if self._is_time(key, own.seen):
            self._learned[key] = Learned(own.leaning(self.everybody, _LEANS_ON_ALL))
        if self._is_time(None, self.everybody.seen):
            self.anybody = Learned(self.everybody.leaning(Histogram(), 0.0))

    def _is_time(self, key: Key | None, seen: int) -> bool:
        if seen < self._again.get(key, 1):
            return False
        self._again[key] = int(seen * _GROWTH) + 1
        return True

    def finished(self, work: Work) -> int:
        """How many finished jobs of the same tenant, GPUs and group are known."""
        known = self._groups.get((work.tenant, work.gpus, work.group))
        return known.seen if known else 0

    def learned(self, tenant: str, gpus: int, group: str) -> Learned:
        """Of this group; of everybody while nothing of it has finished. The same object as long as it says the same."""
        return self._learned.get((tenant, gpus, group)) or self.anybody

    def index(self, work: Work, attained: float) -> float:
        return self.learned(work.tenant, work.gpus, work.group).ranks[level(attained)] * work.demand / WHOLE

    def usual(self, work: Work) -> float:
        return self.learned(work.tenant, work.gpus, work.group).median

    def remaining(self, work: Work, attained: float, quantile: float = 0.5) -> float:
        """Seconds it still runs at this quantile, by all that has finished so far; as long again if nothing ran longer."""
        own = self._groups.get((work.tenant, work.gpus, work.group))
        return (own.leaning(self.everybody, _LEANS_ON_ALL) if own else self.everybody).remaining(attained, quantile)


def _left(low: float, high: float, attained: float) -> float:
    """Which part of a bin lies above `attained`."""
    return min(1.0, max(0.0, (high - attained) / (high - low)))
