"""Operations of the features room: register definitions, build training sets, load and update the online store.

One writer at a time changes a home's online store: a file lock is held from reading what is there to writing what
follows, across processes. Readers never wait for it.
"""

import atexit
import fcntl
import threading
import time
from base64 import b64decode, b64encode
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from macadam.errors import Conflict, NotFound
from macadam.features import define, leakage, materialise, online, push, registry, snapshots, training
from macadam.features.define import Definitions, FeatureService
from macadam.features.push import Pusher
from macadam.features.schema import training_sets, views
from macadam.features.types import (
    BuildTrainingSet,
    ListOnline,
    ListTrainingSets,
    ListViews,
    Materialisation,
    MaterialiseOnline,
    PushReport,
    PushRows,
    RegisterViews,
    TrainingSet,
    Views,
)
from macadam.lazy import lazy
from macadam.operations import Context, Transaction, operation
from macadam.ports import Ports
from macadam.values import require_aware

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy("pyarrow")

_PUSHERS = 16  # kept ready in one process; each holds a small database


# --- definitions


def _checked(_context: Context, request: RegisterViews) -> Definitions:
    definitions = define.decode(request.definitions)
    for service in definitions.services:
        leakage.check(service)
    return definitions


@operation(
    RegisterViews,
    permission="features:register",
    http="POST /api/v1/projects/{project}/views",
    cli="views register",
    prepare=_checked,
)
def register_views(tx: Transaction, request: RegisterViews, prepared: Definitions) -> Views:
    """Keeps definitions that are not registered yet and pass the leakage rules that need no data."""
    version = prepared.version
    query = sa.select(views.c.document).where(views.c.project == request.project, views.c.version == version)
    known = tx.sql.execute(query).scalar_one_or_none()
    if known is not None:
        return msgspec.convert(known, Views)
    new = Views(
        ref=f"views:{request.project}@{version}",
        project=request.project,
        version=version,
        digest=prepared.digest,
        services={s.name: s.feature_names for s in prepared.services},
        at=tx.now,
        by=tx.actor.id,
    )
    registry.keep_views(tx.sql, new, prepared)
    tx.record(new.ref, digest=new.digest)
    return new


@operation(ListViews, permission="features:read", http="GET /api/v1/projects/{project}/views", cli="views list")
def list_views(tx: Transaction, request: ListViews) -> list[Views]:
    """Newest first."""
    query = sa.select(views.c.document).where(views.c.project == request.project)
    rows = tx.sql.execute(query.order_by(views.c.at.desc(), views.c.version).limit(request.limit)).scalars()
    return [msgspec.convert(row, Views) for row in rows]


# --- training sets


@operation(
    BuildTrainingSet,
    permission="training_sets:build",
    http="POST /api/v1/projects/{project}/training-sets",
    cli="training-sets build",
    prepare=training.build,
)
def build_training_set(tx: Transaction, request: BuildTrainingSet, prepared: training.Built) -> TrainingSet:
    """Names the Parquet object; the leaf says which snapshots and definitions it was made from."""
    ref = f"training_set:{request.name}@{prepared.digest[7:19]}"
    try:
        return registry.training_set(tx.sql, request.project, ref)
    except NotFound:
        pass  # the usual case: nobody has built these bytes under this name yet
    new = TrainingSet(
        ref=ref,
        project=request.project,
        name=request.name,
        service=request.service,
        views=prepared.views.ref,
        digest=prepared.digest,
        rows=prepared.rows,
        unlabelled=prepared.unlabelled,
        start=require_aware(request.start, "start"),
        end=require_aware(request.end, "end"),
        snapshots=prepared.snapshots,
        columns=prepared.columns,
        seconds=prepared.seconds,
        at=tx.now,
        by=tx.actor.id,
    )
    registry.keep_training_set(tx.sql, new)
    tx.record(
        ref,
        uses=(*new.snapshots, new.views),
        digest=new.digest,
        rows=new.rows,
        unlabelled=new.unlabelled,
        service=new.service,
        start=new.start,
        end=new.end,
    )
    return new


@operation(
    ListTrainingSets,
    permission="training_sets:read",
    http="GET /api/v1/projects/{project}/training-sets",
    cli="training-sets list",
)
def list_training_sets(tx: Transaction, request: ListTrainingSets) -> list[TrainingSet]:
    """Newest first."""
    t = training_sets.c
    query = sa.select(t.document).where(t.project == request.project).order_by(t.at.desc(), t.name, t.version)
    return [msgspec.convert(row, TrainingSet) for row in tx.sql.execute(query.limit(request.limit)).scalars()]


# --- the online store


class _Loaded(msgspec.Struct, frozen=True, kw_only=True):
    views: Views
    snapshots: tuple[str, ...]
    schemas: dict[str, str]
    keys: int
    rows: int
    seconds: float


def _load(context: Context, request: MaterialiseOnline) -> _Loaded:
    began = time.perf_counter()
    until = online.microseconds(require_aware(request.until, "until"))
    with _only_writer(context.ports):
        with context.read() as sql:
            found, definitions = registry.find_views(sql, request.project, request.views)
            service = definitions.service(request.service)
            pinned = snapshots.pin(sql, request.project, service)
        tables = snapshots.read(context, service, pinned)
        done = materialise.load(context.ports.online, request.project, service, tables, until)
        schemas = {name: _text(snapshots.schema(context, s)) for name, s in pinned.items()}
    return _Loaded(
        views=found,
        snapshots=tuple(s.ref for s in pinned.values()),
        schemas=schemas,
        keys=done.keys,
        rows=done.rows,
        seconds=time.perf_counter() - began,
    )


@operation(
    MaterialiseOnline,
    permission="online:write",
    http="POST /api/v1/projects/{project}/online/materialise",
    cli="online materialise",
    prepare=_load,
)
def materialise_online(tx: Transaction, request: MaterialiseOnline, prepared: _Loaded) -> Materialisation:
    """Remembers that the store holds the service, so that pushes keep it up to date."""
    new = Materialisation(
        ref=f"online:{request.service}@{prepared.views.version}",
        project=request.project,
        service=request.service,
        views=prepared.views.ref,
        until=require_aware(request.until, "until"),
        keys=prepared.keys,
        rows=prepared.rows,
        snapshots=prepared.snapshots,
        seconds=prepared.seconds,
        at=tx.now,
        by=tx.actor.id,
    )
    registry.keep_materialisation(tx.sql, new, prepared.schemas)
    tx.record(new.ref, uses=(*new.snapshots, new.views), until=new.until, keys=new.keys, rows=new.rows)
    return new


@operation(ListOnline, permission="online:read", http="GET /api/v1/projects/{project}/online", cli="online list")
def list_online(tx: Transaction, request: ListOnline) -> list[Materialisation]:
    """By service and version of its definitions."""
    return [m for m, _ in registry.materialised(tx.sql, request.project)]


class _Pushed(msgspec.Struct, frozen=True, kw_only=True):
    """held: what the store held when the rows were applied."""

    report: PushReport
    held: tuple[Materialisation, ...]


def _push(context: Context, request: PushRows) -> _Pushed:
    with _only_writer(context.ports):
        with context.read() as sql:
            held = registry.materialised(sql, request.project)
            pusher = _pushers.get(sql, request.project, [m for m, _ in held])
        if request.table not in pusher.tables:
            raise NotFound(
                f"Nothing in the online store of project {request.project!r} reads table {request.table!r}.",
                next_step="Materialise a service that does: macadam online materialise.",
            )
        newest = max((m.at, schemas[request.table]) for m, schemas in held if request.table in schemas)
        schema = pa.ipc.read_schema(pa.py_buffer(b64decode(newest[1])))
        rows = push.typed(request.rows, schema)
        counts = pusher.update(context.ports.online, request.project, request.table, rows)
    report = PushReport(
        table=request.table,
        rows=len(request.rows),
        applied=counts.applied,
        duplicates=counts.duplicates,
        waiting=counts.waiting,
        late=counts.late,
        digest=context.call.request_digest,
    )
    return _Pushed(report=report, held=tuple(m for m, _ in held))


@operation(
    PushRows,
    permission="online:write",
    http="POST /api/v1/projects/{project}/online/{table}/rows",
    cli="online push",
    prepare=_push,
    private=True,
)
def push_rows(tx: Transaction, request: PushRows, prepared: _Pushed) -> PushReport:
    """One leaf for a batch. The rows are in the store before it: a caller without an answer pushes again, harmlessly."""
    if prepared.held != tuple(m for m, _ in registry.materialised(tx.sql, request.project)):
        raise Conflict(
            "The online store was materialised while these rows were applied, so they may be missing in it.",
            next_step="Push them again: what is there already does not count twice.",
        )
    report = prepared.report
    tx.record(f"online:{request.table}", digest=report.digest, rows=report.rows, applied=report.applied)
    return report


class _Pushers:
    """Pushers by what they keep up to date, so that a push does not prepare its SQL again."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._ready: OrderedDict[tuple[str, ...], Pusher] = OrderedDict()

    def get(self, sql: sa.Connection, project: str, held: list[Materialisation]) -> Pusher:
        """Definitions never change under their version, so their references say which pusher it is."""
        key = (project, *(f"{m.service} {m.views}" for m in held))
        with self._turn:
            if key not in self._ready:
                services = [_service(sql, project, m) for m in held]
                self._ready[key] = Pusher(services)
                while len(self._ready) > _PUSHERS:
                    self._ready.popitem(last=False)  # not closed: another thread may be using it
            self._ready.move_to_end(key)
            return self._ready[key]

    def clear(self) -> None:
        with self._turn:
            self._ready.clear()


_pushers = _Pushers()
atexit.register(_pushers.clear)  # duckdb complains of connections that outlive the interpreter's modules


def _service(sql: sa.Connection, project: str, held: Materialisation) -> FeatureService:
    return registry.service(sql, project, held.service, held.views.rpartition("@")[2])


def _text(schema: "pa.Schema") -> str:
    return b64encode(schema.serialize().to_pybytes()).decode()


@contextmanager
def _only_writer(ports: Ports) -> Iterator[None]:
    """Holds the home's lock on changing the online store. The system frees it if this process dies."""
    with (ports.settings.home / "work" / "online.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
