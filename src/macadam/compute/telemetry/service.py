"""Operations of the telemetry room: deliver samples, seal and expire series, and read what devices did.

A delivery is a file that nothing but its hour's folder names; sealing makes it part of the series in one transaction, with a
leaf for each hour that holds the files' digests. Readings are many; this is their one digest.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from macadam import operations
from macadam.compute.telemetry import owners, reading, sealing, state, store
from macadam.compute.telemetry.requests import (
    DeclaredPods,
    DeclarePods,
    Delivered,
    DeliverSamples,
    Device,
    Expired,
    ExpireTelemetry,
    ListDevices,
    ListFindings,
    ReadUsage,
    SealedFile,
    SealedSeries,
    SealTelemetry,
    Verified,
    VerifySeries,
)
from macadam.compute.telemetry.schema import files, findings, pods
from macadam.compute.telemetry.sealing import Hours, SealedHour, Unfit
from macadam.compute.telemetry.store import HOUR, Delivery, Store, Written
from macadam.compute.telemetry.types import UNFIT, Finding, to_table
from macadam.errors import Busy
from macadam.operations import Context, Transaction, operation
from macadam.ports import Ports
from macadam.values import instant, require_aware

_PLATFORM = "platform:home"
_DAY = timedelta(days=1)
_MOST_EXPIRED = 400


# --- deliveries


def deliver(ports: Ports, samples: Any, now: datetime) -> Delivery:
    """Keeps samples (a table of `sample_schema`) until their hours are sealed: for collectors of this process.

    Raises StorageFull, InvalidInput.
    """
    hours = store.hours_in(samples)
    with ports.sql.read() as sql:
        closed = closed_hours(sql, hours)
    return Store(ports.settings.home).deliver(samples, now=now, closed=closed)


def closed_hours(sql: sa.Connection, hours: Iterable[datetime]) -> frozenset[datetime]:
    """Of these hours, those whose samples have expired: what would be merged into them is no longer there."""
    wanted = sorted(hours)
    if not wanted:
        return frozenset()
    inside = sa.and_(
        files.c.start >= wanted[0], files.c.start <= wanted[-1], files.c.level.in_(("raw", "minute", "hour"))
    )
    known = {(row.level, row.start) for row in sql.execute(sa.select(files.c.level, files.c.start).where(inside))}
    return frozenset(hour for hour in wanted if ("minute", hour) in known and ("raw", hour) not in known)


def _deliver(context: Context, request: DeliverSamples) -> Delivery:
    return deliver(context.ports, to_table(request.samples), context.call.now)


@operation(
    DeliverSamples,
    permission="telemetry:deliver",
    http="POST /api/v1/gpu/samples",
    cli="gpu deliver",
    resource=_PLATFORM,
    prepare=_deliver,
)
def deliver_samples(tx: Transaction, _request: DeliverSamples, done: Delivery) -> Delivered:
    """The leaf says who delivered which files; each hour's own leaf follows when it is sealed."""
    tx.record("telemetry:incoming", files=done.digests, samples=done.samples, refused=done.refused or None)
    return Delivered(samples=done.samples, hours=done.hours, refused=done.refused)


# --- sealing


class _Ready(msgspec.Struct, frozen=True, kw_only=True):
    """What is written and durable, and not visible yet. base: what SQL pointed at when it was made."""

    hours: tuple[SealedHour, ...]
    days: tuple[Written, ...]
    base: dict[tuple[str, datetime], Written]
    waiting: int
    unfit: tuple[Unfit, ...]
    stuck: dict[datetime, str]


def due(ports: Ports, now: datetime) -> bool:
    """Whether there is anything to seal: a look at folders, for those who ask often."""
    grace = timedelta(seconds=ports.settings.telemetry.grace)
    return any(hour + HOUR + grace <= now for hour in Store(ports.settings.home).waiting())


def _seal(context: Context, request: SealTelemetry) -> _Ready:
    ports, now = context.ports, context.call.now
    operations.load("jobs")  # rooms above register what they know of assignments when they are imported
    series = Store(ports.settings.home)
    waiting = series.waiting()
    with context.read() as sql:
        known = owners.known_pods(sql)
        base = reading.pointers_of(sql, min(waiting, default=now) - _DAY, max(waiting, default=now) + _DAY)
        held = {hour: owners.around(sql, hour) for hour in _with_neighbours(waiting)}
    grace = timedelta(seconds=ports.settings.telemetry.grace)
    try:
        waiting, unfit = sealing.fit(waiting, base)
        chosen = sealing.due(waiting, base, now=now + _DAY if request.open else now, grace=grace)
        hours = Hours(series, base, waiting)
        sealed, stuck = sealing.seal(
            series, hours, chosen, pods=known, held=held.__getitem__, progress=context.progress
        )
        days = sealing.by_hour(series, base, sealed)
    except FileNotFoundError as error:
        raise Busy("Another process seals or expires the same hours.", next_step="Run the same call again.") from error
    return _Ready(
        hours=tuple(sealed),
        days=tuple(days),
        base=base,
        waiting=len(set(waiting) - set(chosen)),
        unfit=unfit,
        stuck=stuck,
    )


def _with_neighbours(hours: Iterable[datetime]) -> set[datetime]:
    return {hour + shift for hour in hours for shift in (-HOUR, timedelta(), HOUR)}


@operation(
    SealTelemetry,
    permission="telemetry:seal",
    http="POST /api/v1/gpu/seal",
    cli="gpu seal",
    resource=_PLATFORM,
    prepare=_seal,
)
def seal_telemetry(tx: Transaction, _request: SealTelemetry, ready: _Ready) -> SealedSeries:
    """Files become visible together with the leaf that names them. An hour that came out as it was is left alone."""
    changed = [one for one in ready.hours if _moved(ready.base, one.raw) or _moved(ready.base, one.minute)]
    done = [_publish(tx, one, ready.base) for one in changed]
    for day in ready.days:
        if _moved(ready.base, day):
            leaf = tx.record(f"telemetry:{instant(day.start)[:10]}", usage=day.digest, rows=day.rows)
            _point(tx, day, leaf, ready.base)
    aside = _tell_unfit(tx, ready.unfit)
    parts = [part for one in ready.hours for part in one.parts]
    tx.after_commit(partial(_clean, tx.ports.settings.home, tuple(parts), _superseded(ready), ready.unfit))
    stuck = tuple(f"{instant(hour)}: {why}" for hour, why in sorted(ready.stuck.items()))
    return SealedSeries(hours=tuple(done), waiting=ready.waiting, set_aside=aside, stuck=stuck)


def _tell_unfit(tx: Transaction, unfit: tuple[Unfit, ...]) -> tuple[str, ...]:
    """A leaf and a finding for each hour whose deliveries are set aside: what they held is in no sum."""
    by_hour: dict[datetime, list[Unfit]] = {}
    for one in unfit:
        by_hour.setdefault(one.hour, []).append(one)
    for hour, ones in by_hour.items():
        tx.record(f"telemetry:{instant(hour)[:13]}", set_aside=[f"{one.part.name}: {one.why}" for one in ones[:100]])
        told = Finding(
            check=UNFIT,
            device="",
            node="",
            count=len(ones),
            first=hour,
            last=hour + HOUR - timedelta(microseconds=1),
            evidence=f"{ones[0].part.name}: {ones[0].why}",
            threshold="a delivery must be what its name says, and come before its hour's samples expire",
            suspect=True,
        )
        tx.sql.execute(sa.delete(findings).where(findings.c.hour == hour, findings.c.check == UNFIT))
        tx.sql.execute(
            sa.insert(findings).values(hour=hour, device="", check=UNFIT, document=msgspec.to_builtins(told))
        )
    return tuple(f"{instant(one.hour)} {one.part.name}: {one.why}" for one in unfit)


def _moved(base: dict[tuple[str, datetime], Written], new: Written) -> bool:
    old = base.get((new.level, new.start))
    return old is None or old.name != new.name


def _publish(tx: Transaction, one: SealedHour, base: dict[tuple[str, datetime], Written]) -> SealedFile:
    before = base.get(("raw", one.hour))
    leaf = tx.record(
        f"telemetry:{instant(one.hour)[:13]}",
        raw=one.raw.digest,
        minute=one.minute.digest,
        samples=one.samples,
        duplicates=one.duplicates,
        suspect=one.suspect,
        findings=len(one.findings),
        revises=before.digest if before else None,
    )
    _point(tx, one.raw, leaf, base)
    _point(tx, one.minute, leaf, base)
    tx.sql.execute(sa.delete(findings).where(findings.c.hour == one.hour, findings.c.check != UNFIT))
    rows = [
        {"hour": one.hour, "device": f.device, "check": f.check, "document": msgspec.to_builtins(f)}
        for f in one.findings
    ]
    if rows:
        tx.sql.execute(sa.insert(findings), rows)
    return SealedFile(
        hour=one.hour,
        samples=one.samples,
        duplicates=one.duplicates,
        suspect=one.suspect,
        raw=one.raw.digest,
        minute=one.minute.digest,
    )


def _point(tx: Transaction, new: Written, leaf: str, base: dict[tuple[str, datetime], Written]) -> None:
    """Moves one pointer. Raises Busy if it is not where it was when the file was made."""
    where = sa.and_(files.c.level == new.level, files.c.start == new.start)
    present = tx.sql.execute(sa.select(files.c.name).where(where)).scalar_one_or_none()
    known = base.get((new.level, new.start))
    if present != (known.name if known else None):
        raise Busy(f"The hour {instant(new.start)} is being sealed by another process.", next_step="Run it again.")
    tx.sql.execute(sa.delete(files).where(where))
    tx.sql.execute(sa.insert(files).values(**msgspec.structs.asdict(new), leaf=leaf, sealed=tx.now))


def _superseded(ready: _Ready) -> tuple[Written, ...]:
    new = [*(one.raw for one in ready.hours), *(one.minute for one in ready.hours), *ready.days]
    return tuple(
        ready.base[one.level, one.start]
        for one in new
        if (one.level, one.start) in ready.base and _moved(ready.base, one)
    )


def _clean(home: Path, parts: tuple[Path, ...], old: tuple[Written, ...], unfit: tuple[Unfit, ...] = ()) -> None:
    series = Store(home)
    series.forget(parts)
    series.set_aside(one.part for one in unfit)
    for file in old:
        series.remove(file.level, file.name)


# --- retention


@operation(
    ExpireTelemetry,
    permission="telemetry:seal",
    http="POST /api/v1/gpu/expire",
    cli="gpu expire",
    resource=_PLATFORM,
)
def expire_telemetry(tx: Transaction, _request: ExpireTelemetry) -> Expired:
    """The pointers go with a leaf that names what they pointed at; the files go after it."""
    gone = overdue(tx.sql, tx.ports, tx.now)
    for file in gone:
        tx.sql.execute(sa.delete(files).where(files.c.level == file.level, files.c.start == file.start))
        if file.level == "minute":
            tx.sql.execute(sa.delete(findings).where(findings.c.hour == file.start))
    if gone:
        tx.record("telemetry:series", removed=[f"{f.level} {instant(f.start)} {f.digest}" for f in gone])
    tx.after_commit(partial(_clean, tx.ports.settings.home, (), gone))
    return Expired(files={level: sum(f.level == level for f in gone) for level in ("raw", "minute", "hour")})


def overdue(sql: sa.Connection, ports: Ports, now: datetime) -> tuple[Written, ...]:
    """Sealed files past their retention, oldest first; no more at once than a leaf can name."""
    kept = ports.settings.telemetry
    limits = {
        "raw": now - timedelta(hours=kept.raw_hours),
        "minute": now - timedelta(days=kept.minute_days),
        "hour": now - timedelta(days=kept.hour_days),
    }
    # By when it was sealed, too: history that is imported in pieces must find what came before it.
    past = sa.or_(
        *(sa.and_(files.c.level == n, files.c.start < at - HOUR, files.c.sealed < at) for n, at in limits.items())
    )
    waiting = Store(ports.settings.home).waiting()
    query = sa.select(files.c.level, files.c.start, files.c.name, files.c.digest, files.c.rows).where(past)
    oldest = sql.execute(query.order_by(files.c.start, files.c.level).limit(_MOST_EXPIRED))
    found = [Written(**row._asdict()) for row in oldest]
    return tuple(file for file in found if file.start not in waiting)


def sweep(ports: Ports, now: datetime) -> int:
    """Removes files that no seal finished; what one makes now is younger than a day. How many there were."""
    with ports.sql.read() as sql:
        rows = sql.execute(sa.select(files.c.level, files.c.name))
        known = frozenset((row.level, row.name) for row in rows)
    return Store(ports.settings.home).sweep(known, now - _DAY)


def _verify(context: Context, _request: VerifySeries) -> Verified:
    series = Store(context.ports.settings.home)
    with context.read() as sql:
        known = list(sql.execute(sa.select(files.c.level, files.c.name, files.c.digest).order_by(files.c.start)))
    problems = []
    for number, row in enumerate(known):
        context.progress("reading sealed files", number, len(known))
        try:
            present = store.digest_of_file(series.path(row.level, row.name))
        except FileNotFoundError:
            present = "gone"
        if present != row.digest:
            problems.append(f"{row.level}/{row.name} is {present}, recorded was {row.digest}")
    return Verified(files=len(known), problems=tuple(problems))


@operation(
    VerifySeries,
    permission=reading.PERMISSION,
    http="POST /api/v1/gpu/verify",
    cli="gpu verify",
    resource=_PLATFORM,
    prepare=_verify,
    reads=True,
)
def verify_series(_tx: Transaction, _request: VerifySeries, found: Verified) -> Verified:
    return found


# --- pods


@operation(
    DeclarePods, permission="telemetry:deliver", http="POST /api/v1/gpu/pods", cli="gpu pods", resource=_PLATFORM
)
def declare_pods(tx: Transaction, request: DeclarePods) -> DeclaredPods:
    """A name that is declared again is the new owner's from the next sealed hour on."""
    for (namespace, name), pod in {(pod.namespace, pod.name): pod for pod in request.pods}.items():
        tx.sql.execute(sa.delete(pods).where(pods.c.namespace == namespace, pods.c.name == name))
        row = {"namespace": namespace, "name": name, "project": pod.project, "owner": pod.owner}
        tx.sql.execute(sa.insert(pods).values(**row, declared=tx.now))
    tx.record("telemetry:pods", pods=[f"{p.namespace}/{p.name} {p.project} {p.owner}" for p in request.pods[:500]])
    return DeclaredPods(pods=len(request.pods))


# --- readings


def _devices(context: Context, request: ListDevices) -> tuple[Device, ...]:
    operations.load("jobs")
    granted = context.authorise(reading.PERMISSION, f"project:{request.project}")
    span = timedelta(minutes=request.minutes)
    now = context.call.now
    samples, usage = reading.latest(context.ports, granted, now, project=request.project, span=span)
    return state.devices(samples, usage, now)


@operation(
    ListDevices,
    permission=reading.PERMISSION,
    http="GET /api/v1/projects/{project}/gpu/devices",
    cli="gpu list",
    prepare=_devices,
)
def list_devices(_tx: Transaction, _request: ListDevices, found: tuple[Device, ...]) -> tuple[Device, ...]:
    return found


def _lines(context: Context, request: ReadUsage) -> tuple[reading.Line, ...]:
    operations.load("jobs")
    granted = context.authorise(reading.PERMISSION, f"project:{request.project}")
    start, end = _interval(request.start, request.end, context.call.now)
    rows = reading.usage(
        context.ports,
        granted,
        start,
        end,
        project=request.project,
        step=request.step,
        device=request.device,
        columns=reading.OF_LINES,
    )
    return tuple(reading.lines(rows, request.by))


@operation(
    ReadUsage,
    permission=reading.PERMISSION,
    http="GET /api/v1/projects/{project}/gpu/usage",
    cli="gpu usage",
    prepare=_lines,
)
def read_usage(_tx: Transaction, _request: ReadUsage, found: tuple[reading.Line, ...]) -> tuple[reading.Line, ...]:
    return found


def _findings(context: Context, request: ListFindings) -> tuple[Finding, ...]:
    operations.load("jobs")
    granted = context.authorise(reading.PERMISSION, f"project:{request.project}")
    start, end = _interval(request.start, request.end, context.call.now)
    found = reading.findings(context.ports, granted, start, end, project=request.project)
    kept = [f for f in found if request.check in ("", f.check)]
    return tuple(kept[: request.limit])


def _interval(start: datetime | None, end: datetime | None, now: datetime) -> tuple[datetime, datetime]:
    last = now if end is None else require_aware(end, "end")
    first = last - _DAY if start is None else require_aware(start, "start")
    return first, last


@operation(
    ListFindings,
    permission=reading.PERMISSION,
    http="GET /api/v1/projects/{project}/gpu/trust",
    cli="gpu trust",
    prepare=_findings,
)
def list_findings(_tx: Transaction, _request: ListFindings, found: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Newest first."""
    return found
