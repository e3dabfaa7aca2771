"""Reads the series back: usage in intervals, samples of a device, and the last state of each. The way in for other rooms.

Sealed hours come from their files, open ones are folded from what was delivered so far. A seal that happens meanwhile is
noticed, and the reading begins again, so that no hour is missing or there twice.
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
import sqlalchemy as sa

from macadam.compute.telemetry import attribution, fold, owners, sealing, store
from macadam.compute.telemetry.frame import SECOND, Frame
from macadam.compute.telemetry.schema import files
from macadam.compute.telemetry.schema import findings as kept
from macadam.compute.telemetry.sealing import Hours, Pointers
from macadam.compute.telemetry.store import HOUR, Store, Written
from macadam.compute.telemetry.types import UNFIT, Finding, sample_schema, usage_schema
from macadam.errors import Busy, InvalidInput
from macadam.lazy import lazy
from macadam.operations import Granted
from macadam.ports import Ports
from macadam.values import require_aware

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy("pyarrow")
pc: Any = lazy("pyarrow.compute")

Step = Literal["minute", "hour"]
PERMISSION = "telemetry:read"
_TRIES = 5
_OTHERS = "The device was others' in these hours too: --project '*' shows what was seen."
_LONGEST = {"minute": timedelta(days=32), "hour": timedelta(days=400)}

T = TypeVar("T")


def usage(
    ports: Ports,
    granted: Granted,
    start: datetime,
    end: datetime,
    *,
    project: str,
    step: Step = "hour",
    device: str = "",
    columns: tuple[str, ...] = (),
) -> "pa.Table":
    """Rows of `usage_schema` that begin in the interval (aware instants, end excluded).

    granted: 'telemetry:read' on 'project:PROJECT'. project: only its rows; '*': all, also what nobody owns. step 'hour' has
    intervals of an hour, 'minute' of one minute. device: only this one. columns: only these, among them start and project.
    Raises NotAuthorised, InvalidInput, Busy.
    """
    granted.require(f"project:{project}", PERMISSION)
    first, last = require_aware(start, "start"), require_aware(end, "end")
    _bounded(first, last, step)
    asked = _Asked(start=first, end=last, step=step, device=device, columns=columns)
    rows = _steadily(ports, first, last, lambda sql, pointers: _usage(ports, sql, pointers, asked))
    at, kind = rows.column("start"), usage_schema().field("start").type
    wanted = pc.and_(pc.greater_equal(at, pa.scalar(first, kind)), pc.less(at, pa.scalar(last, kind)))
    if project != "*":
        wanted = pc.and_(wanted, pc.equal(rows.column("project"), project))
    return rows.filter(wanted)


def _bounded(first: datetime, last: datetime, step: Step) -> None:
    if not first < last or last - first > _LONGEST[step]:
        raise InvalidInput(
            f"From {first.isoformat()} to {last.isoformat()} is no interval of at most {_LONGEST[step].days} days.",
            next_step="Ask for less time at once, or for hours instead of minutes.",
        )


def samples(ports: Ports, granted: Granted, start: datetime, end: datetime, *, device: str = "") -> "pa.Table":
    """Rows of `sample_schema`, each once, sorted by device and instant. Raw samples are of no project: they need
    'telemetry:read' on 'project:*'. Raises NotAuthorised, Busy.
    """
    granted.require("project:*", PERMISSION)
    return _steadily(ports, start, end, lambda _, pointers: _samples(ports, pointers, start, end, device))


def latest(
    ports: Ports, granted: Granted, now: datetime, *, project: str, span: timedelta
) -> "tuple[pa.Table, pa.Table]":
    """(samples, usage by minute) of the time since `now - span`: what is known of devices now.

    granted: as for `usage`; for a project, only the samples of when a device was its own: what others do with it before and
    after, or in pods beside it, is theirs. Raises NotAuthorised, Busy.
    """
    granted.require(f"project:{project}", PERMISSION)

    def read(sql: sa.Connection, pointers: Pointers) -> "tuple[pa.Table, pa.Table]":
        recent = _samples(ports, pointers, now - span, now + store.AHEAD, "")
        start = int((now - span).timestamp()) // fold.MINUTE * fold.MINUTE * SECOND
        end = int((now + timedelta(minutes=1)).timestamp()) // fold.MINUTE * fold.MINUTE * SECOND
        held = owners.holdings(sql, now - span, now + HOUR)
        pods = owners.known_pods(sql)
        rows = fold.fold(recent, start, end, pods=pods, holdings=held).usage
        if project == "*":
            return recent, rows
        frame = Frame(recent)
        own = attribution.claimants(frame, pods, held).rows_of(project)
        return frame.rows.take(own), rows.filter(pc.equal(rows.column("project"), project))

    return _steadily(ports, now - span, now + HOUR, read)


def findings(ports: Ports, granted: Granted, start: datetime, end: datetime, *, project: str) -> list[Finding]:
    """What the checks found in hours that meet the interval, newest first. granted: as for `usage`; a project hears of the
    hours in which a device was its own, without evidence where it was not alone. Open hours are judged as they stand.

    Raises NotAuthorised, InvalidInput, Busy.
    """
    granted.require(f"project:{project}", PERMISSION)
    _bounded(start, end, "hour")

    def read(sql: sa.Connection, pointers: Pointers) -> list[Finding]:
        query = sa.select(kept.c.document).where(kept.c.hour >= store.hour_of(start), kept.c.hour < end)
        found = [msgspec.convert(document, Finding) for document in sql.execute(query).scalars()]
        series = Store(ports.settings.home)
        waiting = series.waiting()
        hours = Hours(series, pointers, waiting)
        for hour in waiting:
            if start < hour + HOUR and hour < end:
                found = [f for f in found if f.check == UNFIT or not hour <= f.first < hour + HOUR]
                held = owners.around(sql, hour)
                found += sealing.folded(hours, hour, owners.known_pods(sql), held).findings
        if project == "*":
            return found
        rows = _usage(ports, sql, pointers, _Asked(start=store.hour_of(start), end=end + HOUR, step="hour"))
        return _heard_by(project, found, rows)

    found = _steadily(ports, start, end, read)
    return sorted(found, key=lambda f: (f.last, f.check, f.device), reverse=True)


def _heard_by(project: str, found: Iterable[Finding], rows: "pa.Table") -> list[Finding]:
    """rows: of usage by hour, of everybody."""
    whose: dict[tuple[str, datetime], set[str]] = {}
    for row in rows.select(["device", "start", "project", "owner"]).to_pylist():
        had = whose.setdefault((row["device"], row["start"]), set())
        had.add(row["project"] if row["owner"] else "")
    heard = []
    for finding in found:
        hours = {store.hour_of(finding.first), store.hour_of(finding.last)}
        had = set().union(*(whose.get((finding.device, hour), set()) for hour in hours))
        if project in had:
            alone = had <= {project, ""}
            heard.append(finding if alone else msgspec.structs.replace(finding, evidence=_OTHERS))
    return heard


def pointers_of(sql: sa.Connection, start: datetime, end: datetime) -> dict[tuple[str, datetime], Written]:
    """Sealed files of hours (and days) that begin in the interval, or up to a day before or two hours after it."""
    query = sa.select(files.c.level, files.c.start, files.c.name, files.c.digest, files.c.rows)
    inside = sa.and_(files.c.start >= start - timedelta(days=1), files.c.start <= end + 2 * HOUR)
    return {(row.level, row.start): Written(**row._asdict()) for row in sql.execute(query.where(inside))}


def _steadily(ports: Ports, start: datetime, end: datetime, read: Callable[[sa.Connection, Pointers], T]) -> T:
    """What `read` gives for pointers that were the same before and after. Raises Busy if they never are."""
    for _ in range(_TRIES):
        with ports.sql.read() as sql:
            pointers = pointers_of(sql, start, end)
            try:
                found = read(sql, pointers)
            except FileNotFoundError:
                continue  # sealed or expired while we looked
        with ports.sql.read() as sql:
            if pointers_of(sql, start, end) == pointers:
                return found
    raise Busy("The series change faster than they can be read.", next_step="Ask again in a minute.")


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of usage. device: '' for all; columns: () for all."""

    start: datetime
    end: datetime
    step: Step
    device: str = ""
    columns: tuple[str, ...] = ()


def _usage(ports: Ports, sql: sa.Connection, pointers: Pointers, asked: _Asked) -> "pa.Table":
    series = Store(ports.settings.home)
    waiting = series.waiting()
    live = [hour for hour in waiting if asked.start < hour + HOUR and hour < asked.end]
    found = list(_sealed(series, pointers, asked))
    if live:
        hours = Hours(series, pointers, waiting)
        pods = owners.known_pods(sql)
        # What comes late to a sealed hour changes its neighbours too; see `sealing`.
        late = {hour + shift for hour in live if hours.sealed(hour) for shift in (-HOUR, HOUR)}
        open_ = {*live, *(hour for hour in late if hours.sealed(hour))}
        skip = pa.array(sorted(open_), usage_schema().field("start").type)
        found = [_without_hours(table, skip) for table in found]
        for hour in sorted(open_):
            rows = sealing.folded(hours, hour, pods, owners.around(sql, hour)).usage
            rows = rows.filter(pc.equal(rows.column("device"), asked.device)) if asked.device else rows
            rows = fold.rollup(rows, fold.HOUR) if asked.step == "hour" else rows
            found.append(rows.select(asked.columns) if asked.columns else rows)
    empty = usage_schema().empty_table()
    return pa.concat_tables(found) if found else (empty.select(asked.columns) if asked.columns else empty)


def _sealed(series: Store, pointers: Pointers, asked: _Asked) -> "Iterable[pa.Table]":
    width = timedelta(days=1) if asked.step == "hour" else HOUR
    for (level, at), file in sorted(pointers.items()):
        if level == asked.step and at < asked.end and asked.start < at + width:
            yield store.read(series.path(level, file.name), device=asked.device, columns=asked.columns)


def _without_hours(rows: "pa.Table", hours: "pa.Array[Any]") -> "pa.Table":
    begun = pc.floor_temporal(rows.column("start"), unit="hour")
    return rows.filter(pc.invert(pc.is_in(begun, value_set=hours)))


def _samples(ports: Ports, pointers: Pointers, start: datetime, end: datetime, device: str) -> "pa.Table":
    series = Store(ports.settings.home)
    waiting = series.waiting()
    paths = []
    hour = store.hour_of(start)
    while hour < end:
        sealed = pointers.get(("raw", hour))
        paths += [series.path("raw", sealed.name)] if sealed else []
        paths += waiting.get(hour, ())
        hour += HOUR
    tables = [store.read(path, device=device) for path in paths]
    found = pa.concat_tables(tables) if tables else sample_schema().empty_table()
    at, kind = found.column("at"), sample_schema().field("at").type
    inside = pc.and_(pc.greater_equal(at, pa.scalar(start, kind)), pc.less(at, pa.scalar(end, kind)))
    return Frame(found.filter(inside), judged=False).rows


OF_LINES = (
    "device", "node", "model", "start", "seconds", "project", "owner", "share", "gpu_active", "sm_active", "tensor_active",
    "dram_active", "memory_bytes", "energy_joules", "suspect",
)  # fmt: skip
"""What `lines` looks at."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a query: a key (project, owner, device or model) in one interval. hours: of devices, by the share that
    was had; suspect_hours: of them, those that nothing may be charged on. Means are over the others; None: not measured.
    """

    start: datetime
    key: str
    hours: float
    suspect_hours: float
    gpu_active: float | None
    sm_active: float | None
    tensor_active: float | None
    dram_active: float | None
    memory_bytes: int | None
    energy_joules: float | None


def lines(rows: "pa.Table", by: str) -> list[Line]:
    """Usage added up by interval and by one of its text columns, in their order."""
    seconds = pc.multiply(rows.column("seconds"), rows.column("share"))
    doubted = pc.if_else(pc.not_equal(rows.column("suspect"), ""), seconds, 0.0)
    columns: dict[str, Any] = {"start": rows.column("start"), "key": rows.column(by), "s": seconds, "d": doubted}
    means = ("gpu_active", "sm_active", "tensor_active", "dram_active")
    believed = pc.subtract(seconds, doubted)
    for name in means:
        columns[name] = pc.multiply(rows.column(name), believed)
        columns[f"{name}_s"] = pc.if_else(pc.is_valid(rows.column(name)), believed, 0.0)
    columns["memory"], columns["energy"] = rows.column("memory_bytes"), rows.column("energy_joules")
    sums = ["s", "d", "energy", *means, *(f"{name}_s" for name in means)]
    grouped = (
        pa.table(columns)
        .group_by(["start", "key"], use_threads=False)
        .aggregate([*((name, "sum") for name in sums), ("memory", "max")])
        .sort_by([("start", "ascending"), ("key", "ascending")])
    )
    return [
        Line(
            start=row["start"],
            key=row["key"],
            hours=(row["s_sum"] or 0.0) / 3600,
            suspect_hours=(row["d_sum"] or 0.0) / 3600,
            **{name: _over(row[f"{name}_sum"], row[f"{name}_s_sum"]) for name in means},
            memory_bytes=row["memory_max"],
            energy_joules=row["energy_sum"],
        )
        for row in grouped.to_pylist()
    ]


def _over(total: float | None, seconds: float | None) -> float | None:
    return total / seconds if total is not None and seconds else None
