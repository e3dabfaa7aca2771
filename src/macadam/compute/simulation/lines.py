"""Waiting lines of the fast simulation: who waits, in order, for each number of GPUs.

Jobs of one lane (a tenant's jobs on so many GPUs) that have passed the same number of levels have the same rank, whatever history says
of them later. So they wait in order of submission in one heap, and only the first of each heap has a rank of its own to be kept up:
when history changes, a lane's few heaps are ranked anew and not its thousands of jobs.
"""

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Protocol

from macadam.compute.scheduling.order import LEVELS

STEPS = len(LEVELS) + 1
First = tuple[float, int, int, int]
"""(rank, job, …): what stands first sorts first."""


class Lines(Protocol):
    """Who waits. `waiting` says it job by job, and is changed before these are told."""

    def join(self, job: int, passed: int) -> None:
        """It waits, having passed so many levels."""
        ...

    def leave(self, job: int) -> None:
        """It waits no longer."""
        ...

    def first(self, size: int = 0) -> First | None:
        """Who goes first of all that wait for so many GPUs; 0: for any number."""
        ...


class Fixed:
    """Jobs whose ranks never change. keys, gpus: by job."""

    def __init__(self, keys: Sequence[float], gpus: Sequence[int], waiting: bytearray) -> None:
        self._keys, self._gpus, self._waiting = keys, gpus, waiting
        self._heaps: dict[int, list[First]] = {size: [] for size in {0, *gpus}}

    def join(self, job: int, passed: int) -> None:  # noqa: ARG002 - no level changes such a rank
        entry = (self._keys[job], job, 0, 0)
        heappush(self._heaps[0], entry)
        heappush(self._heaps[self._gpus[job]], entry)

    def leave(self, job: int) -> None:
        """It is removed when it comes first."""

    def first(self, size: int = 0) -> First | None:
        heap = self._heaps[size]
        while heap and not self._waiting[heap[0][1]]:
            heappop(heap)
        return heap[0] if heap else None


class ByLane:
    """Jobs whose ranks follow from lane and levels passed. lane: by job; sizes: GPUs of each lane's jobs."""

    def __init__(self, lane: Sequence[int], sizes: Sequence[int], waiting: bytearray) -> None:
        self._lane, self._sizes, self._waiting = lane, sizes, waiting
        groups = len(sizes) * STEPS
        self._group = [-1] * len(lane)
        self._ranks = [0.0] * groups
        self._members: list[list[int]] = [[] for _ in range(groups)]
        self._version = [0] * groups
        self._tops: dict[int, list[First]] = {size: [] for size in {0, *sizes}}

    def rank(self, lane: int, ranks: Sequence[float]) -> None:
        """The ranks of a lane's jobs by levels passed are these from now on."""
        for passed, ranked in enumerate(ranks):
            group = lane * STEPS + passed
            if self._ranks[group] != ranked:
                self._ranks[group] = ranked
                if self._members[group]:
                    self._renew(group)

    def join(self, job: int, passed: int) -> None:
        group = self._lane[job] * STEPS + passed
        self._group[job] = group
        members = self._members[group]
        heappush(members, job)
        if members[0] == job:
            self._renew(group)

    def leave(self, job: int) -> None:
        group = self._group[job]
        members, waiting, where = self._members[group], self._waiting, self._group
        if members[0] == job:
            while members and not (waiting[members[0]] and where[members[0]] == group):
                heappop(members)
            self._renew(group)

    def first(self, size: int = 0) -> First | None:
        tops, version = self._tops[size], self._version
        while tops and tops[0][3] != version[tops[0][2]]:
            heappop(tops)
        return tops[0] if tops else None

    def _renew(self, group: int) -> None:
        """Its first is another, or has another rank."""
        members = self._members[group]
        version = self._version[group] = self._version[group] + 1
        if members:
            entry = (self._ranks[group], members[0], group, version)
            heappush(self._tops[0], entry)
            heappush(self._tops[self._sizes[group // STEPS]], entry)
