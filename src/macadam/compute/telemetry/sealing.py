"""Makes sealed files of deliveries, one hour at a time. Nothing that is written here is visible before SQL points at it.

An hour is judged together with a little of its neighbours: the first reading after it says how long its last one stands for.
So late samples of one hour also change the hours beside it, and whatever the order of deliveries, the outcome is the same.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.compute.telemetry import fold, store
from macadam.compute.telemetry.frame import LONGEST, SECOND, Frame
from macadam.compute.telemetry.store import HOUR, Store, Written
from macadam.compute.telemetry.types import Finding, Holding, Pod, sample_schema, usage_schema
from macadam.errors import IntegrityError
from macadam.lazy import lazy

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy("pyarrow")
pc: Any = lazy("pyarrow.compute")

CONTEXT = timedelta(minutes=10)
"""Before an hour: what checks over several readings look back on."""
_KEPT = 3
"""Hours held in memory: one with its neighbours."""

Pointers = Mapping[tuple[str, datetime], Written]
"""What SQL points at, by level and start."""


class SealedHour(msgspec.Struct, frozen=True, kw_only=True):
    """What one hour became. parts: the deliveries in it; samples: distinct ones; suspect: rows of usage that are."""

    hour: datetime
    raw: Written
    minute: Written
    findings: tuple[Finding, ...]
    samples: int
    duplicates: int
    suspect: int
    parts: tuple[Path, ...]


class Unfit(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery that cannot become part of the series, and why."""

    hour: datetime
    part: Path
    why: str


def fit(
    waiting: Mapping[datetime, tuple[Path, ...]], pointers: Pointers
) -> tuple[dict[datetime, tuple[Path, ...]], tuple[Unfit, ...]]:
    """(deliveries that can be sealed, the others): one that is damaged must not hold up the rest, and one that came while
    its hour's samples expired would replace what is known of the hour by itself. Raises FileNotFoundError.
    """
    kept: dict[datetime, tuple[Path, ...]] = {}
    unfit = []
    for hour, parts in waiting.items():
        expired = ("minute", hour) in pointers and ("raw", hour) not in pointers
        for part in parts:
            why = "its hour's samples have expired" if expired else store.fault(part)
            if why:
                unfit.append(Unfit(hour=hour, part=part, why=why))
            else:
                kept[hour] = (*kept.get(hour, ()), part)
    return kept, tuple(unfit)


def due(
    waiting: Mapping[datetime, tuple[Path, ...]], pointers: Pointers, *, now: datetime, grace: timedelta
) -> list[datetime]:
    """The hours to seal: those that are over and have deliveries, and the sealed ones beside them."""
    over = {hour for hour in waiting if hour + HOUR + grace <= now}
    beside = {hour + shift for hour in over for shift in (-HOUR, HOUR)}
    return sorted(over | {hour for hour in beside if ("raw", hour) in pointers})


class Hours:
    """The samples of hours, sealed and waiting together, read once each while they are needed."""

    def __init__(self, files: Store, pointers: Pointers, waiting: Mapping[datetime, tuple[Path, ...]]) -> None:
        self._files, self._pointers, self._waiting = files, pointers, waiting
        self._held: OrderedDict[datetime, pa.Table] = OrderedDict()

    def parts(self, hour: datetime) -> tuple[Path, ...]:
        return self._waiting.get(hour, ())

    def sealed(self, hour: datetime) -> Written | None:
        return self._pointers.get(("raw", hour))

    def samples(self, hour: datetime) -> "pa.Table":
        """Everything that was delivered for an hour, repetitions too. Raises FileNotFoundError, IntegrityError."""
        if hour not in self._held:
            tables = [store.read(path) for path in self._paths(hour)]
            self._held[hour] = pa.concat_tables(tables) if tables else sample_schema().empty_table()
            while len(self._held) > _KEPT:
                self._held.popitem(last=False)
        self._held.move_to_end(hour)
        return self._held[hour]

    def _paths(self, hour: datetime) -> list[Path]:
        sealed = self.sealed(hour)
        return [*([self._files.path("raw", sealed.name)] if sealed else []), *self.parts(hour)]

    def _edge(self, hour: datetime, start: datetime, end: datetime) -> "pa.Table":
        """An hour's samples of some minutes; files are in order of time, so the rest is not read."""
        if hour in self._held:
            return _between(self._held[hour], start, end)
        tables = [store.read(path, between=(start, end)) for path in self._paths(hour)]
        return pa.concat_tables(tables) if tables else sample_schema().empty_table()

    def around(self, hour: datetime) -> "pa.Table":
        """An hour's samples, with the end of the one before and the beginning of the one after."""
        after = HOUR + timedelta(seconds=LONGEST)
        return pa.concat_tables(
            [
                self._edge(hour - HOUR, hour - CONTEXT, hour),
                self.samples(hour),
                self._edge(hour + HOUR, hour + HOUR, hour + after),
            ]
        )


def folded(hours: Hours, hour: datetime, pods: Mapping[tuple[str, str], Pod], held: Iterable[Holding]) -> fold.Folded:
    """One hour's usage by minute, and what was found in it."""
    start = int(hour.timestamp()) * SECOND
    return fold.fold(hours.around(hour), start, start + fold.HOUR * SECOND, pods=pods, holdings=held)


def seal(
    files: Store,
    hours: Hours,
    chosen: Iterable[datetime],
    *,
    pods: Mapping[tuple[str, str], Pod],
    held: Callable[[datetime], Iterable[Holding]],
    progress: Callable[[str, int, int], None],
) -> tuple[list[SealedHour], dict[datetime, str]]:
    """Writes the raw and minute files of the chosen hours: (what they became, why others could not be sealed).

    held: the assignments of an hour. Raises StorageFull, FileNotFoundError.
    """
    done, stuck = [], {}
    wanted = sorted(chosen)
    for number, hour in enumerate(wanted):
        progress("sealing " + hour.isoformat(), number, len(wanted))
        try:
            done.append(_sealed(files, hours, hour, folded(hours, hour, pods, held(hour))))
        except (
            IntegrityError
        ) as error:  # a sealed file is damaged: its hours wait for whoever mends it, the others do not
            stuck[hour] = str(error)
    return done, stuck


def _sealed(files: Store, hours: Hours, hour: datetime, result: fold.Folded) -> SealedHour:
    return SealedHour(
        hour=hour,
        raw=_raw(files, hours, hour, result.duplicates),
        minute=files.write(result.usage, "minute", hour),
        findings=result.findings,
        samples=result.samples,
        duplicates=result.duplicates,
        suspect=_suspect(result.usage),
        parts=hours.parts(hour),
    )


def _raw(files: Store, hours: Hours, hour: datetime, duplicates: int) -> Written:
    sealed, parts = hours.sealed(hour), hours.parts(hour)
    if sealed and not parts:
        return sealed
    samples = hours.samples(hour)
    # With repetitions in it a file's length would not tell later whether anything new came.
    if not sealed and len(parts) == 1 and not duplicates:
        return files.adopt(parts[0], len(samples), hour)
    rows = Frame(samples, judged=False).rows
    if sealed and len(rows) == sealed.rows:
        return sealed  # what came was there already
    return files.write(rows.sort_by([("at", "ascending"), ("device", "ascending")]), "raw", hour)


def by_hour(files: Store, pointers: Pointers, sealed: Iterable[SealedHour]) -> list[Written]:
    """The files of usage by hour of the days that changed."""
    days: dict[datetime, list[SealedHour]] = {}
    for one in sealed:
        days.setdefault(store.day_of(one.hour), []).append(one)
    written = []
    for day, changed in sorted(days.items()):
        known = pointers.get(("hour", day))
        rows = store.read(files.path("hour", known.name)) if known else usage_schema().empty_table()
        hours = pa.array([one.hour for one in changed], usage_schema().field("start").type)
        kept = rows.filter(pc.invert(pc.is_in(rows.column("start"), value_set=hours)))
        fresh = [fold.rollup(store.read(files.path("minute", one.minute.name)), fold.HOUR) for one in changed]
        table = pa.concat_tables([kept, *fresh]).combine_chunks()
        written.append(files.write(table.sort_by([(name, "ascending") for name in _ORDER]), "hour", day))
    return written


_ORDER = ("device", "start", "project", "owner", "suspect")


def _between(samples: "pa.Table", start: datetime, end: datetime) -> "pa.Table":
    at, kind = samples.column("at"), sample_schema().field("at").type
    inside = pc.and_(pc.greater_equal(at, pa.scalar(start, kind)), pc.less(at, pa.scalar(end, kind)))
    return samples.filter(inside)


def _suspect(usage: "pa.Table") -> int:
    return int(pc.sum(pc.not_equal(usage.column("suspect"), "")).as_py() or 0)
