"""What each operation takes on this machine: wall and processor seconds, children included, summed by operation, asset and day.

The dispatcher says when a call begins and ends. Processor time of this process and of the children that it waited for (trainings,
among others) is read at both, and what was used in between is shared equally by the calls that were under way: so the sums
never exceed what the machine spent, whatever runs at once. Sums are kept in memory and added to SQL every few seconds.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime

import sqlalchemy as sa

from macadam.compute.waterfall.schema import meter
from macadam.compute.waterfall.stages import Measured

LEAST = 0.1
"""CPU seconds that are worth a commit when a process ends; less is let go."""
EVERY = 5.0
"""Seconds between additions to SQL."""
EVERYTHING = "*"
_MICROS = 1_000_000


_Key = tuple[str, str, str, date]


class _Open:
    """One call under way."""

    __slots__ = ("began", "cpu", "key")

    def __init__(self, key: _Key, began: float) -> None:
        self.key, self.began, self.cpu = key, began, 0.0


def processor_seconds() -> float:
    """Of this process and of the children that it has waited for, user and system."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Meter:
    """For all threads of one process. wall, cpu: clocks in seconds that never go back."""

    def __init__(
        self, *, wall: Callable[[], float] = time.monotonic, cpu: Callable[[], float] = processor_seconds
    ) -> None:
        self._wall, self._cpu = wall, cpu
        self._lock = threading.Lock()
        self._open: set[_Open] = set()
        self._sums: dict[_Key, list[float]] = {}
        self._last = cpu()
        self._kept = wall()

    @contextmanager
    def measuring(self, project: str, operation: str, subject: str, at: datetime) -> Iterator[None]:
        """Measures the block, however it ends."""
        call = _Open((project, operation, subject, at.date()), self._wall())
        with self._lock:
            self._settle()
            self._open.add(call)
        try:
            yield
        finally:
            with self._lock:
                self._settle()
                self._open.discard(call)
                self._add(call.key, 1, self._wall() - call.began, call.cpu)

    def _settle(self) -> None:
        now = self._cpu()
        spent, self._last = now - self._last, now
        for call in self._open:
            call.cpu += spent / len(self._open)

    def _add(self, key: _Key, calls: float, wall: float, cpu: float) -> None:
        sums = self._sums.setdefault(key, [0, 0.0, 0.0])
        for place, value in enumerate((calls, wall, cpu)):
            sums[place] += value

    def due(self) -> bool:
        """Whether it is time to add what is in memory to SQL."""
        return self._wall() - self._kept >= EVERY

    def drain(self, *, least: float = 0.0) -> tuple[Measured, ...]:
        """What was measured since the last time, and forgets it; nothing if it is less CPU than `least`."""
        with self._lock:
            if sum(sums[2] for sums in self._sums.values()) < least:
                return ()
            taken, self._sums, self._kept = self._sums, {}, self._wall()
        return tuple(
            Measured(project=p, operation=o, subject=s, day=d, calls=int(n), wall=max(0.0, w), cpu=max(0.0, c))
            for (p, o, s, d), (n, w, c) in taken.items()
        )

    def put_back(self, measured: Sequence[Measured]) -> None:
        """What could not be kept, to be tried again."""
        with self._lock:
            for one in measured:
                self._add((one.project, one.operation, one.subject, one.day), one.calls, one.wall, one.cpu)


# --- SQL


def keep(sql: sa.Connection, measured: Sequence[Measured]) -> None:
    """Adds to the sums that are there."""
    m = meter.c
    for one in measured:
        key = {"project": one.project, "operation": one.operation, "subject": one.subject, "day": one.day.isoformat()}
        wall, cpu = round(one.wall * _MICROS), round(one.cpu * _MICROS)
        where = [m[name] == value for name, value in key.items()]
        added = {"calls": m.calls + one.calls, "wall_micros": m.wall_micros + wall, "cpu_micros": m.cpu_micros + cpu}
        if not sql.execute(sa.update(meter).where(*where).values(added)).rowcount:
            sql.execute(sa.insert(meter).values(**key, calls=one.calls, wall_micros=wall, cpu_micros=cpu))


def measured(
    sql: sa.Connection, project: str, *, first: date | None = None, last: date | None = None
) -> tuple[Measured, ...]:
    """A project's sums, from the day `first` to the day `last`, both included. '*': of all, and of what was done for none."""
    m = meter.c
    query = sa.select(meter).order_by(m.day, m.operation, m.subject, m.project)
    if project != EVERYTHING:
        query = query.where(m.project == project)
    if first is not None:
        query = query.where(m.day >= first.isoformat())
    if last is not None:
        query = query.where(m.day <= last.isoformat())
    return tuple(
        Measured(
            project=row.project,
            operation=row.operation,
            subject=row.subject,
            day=date.fromisoformat(row.day),
            calls=row.calls,
            wall=row.wall_micros / _MICROS,
            cpu=row.cpu_micros / _MICROS,
        )
        for row in sql.execute(query)
    )
