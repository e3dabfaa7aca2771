"""Erasing a person: the key first, then the ciphertext and online rows, then the leaf and the certificate.

A leaf says that it begins before anything is destroyed, and asks for leave in the same transaction: who loses that leave
first destroys nothing, who loses it later has begun, and the call ends with its certificate. So among other changes an
erasure stands where it begins. What cannot be undone comes next, in an order in which each step can be repeated: a kill
anywhere leaves an erasure that is under way, and the same call again ends it. The last transaction says what was done.
"""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

import msgspec
import sqlalchemy as sa

from macadam.access import service as access
from macadam.data import contracts, personal
from macadam.data import registry as data
from macadam.errors import NotFound
from macadam.features import online
from macadam.features import registry as features
from macadam.features.define import TableView
from macadam.ledger import service as ledger
from macadam.ledger.note import SignerKey
from macadam.operations import Context, Transaction, operation
from macadam.personal import certificate, store, vault
from macadam.personal.schema import erased, erasures
from macadam.personal.types import EraseSubject, Erasure, ListErasures, ShowErasure
from macadam.personal.vault import Pending, Vault
from macadam.ports import Ports
from macadam.serving import registry
from macadam.values import uuid7

_PROJECT = "/api/v1/projects/{project}"
_ONLINE = "online"
"""Beside subjects among an erasure's counts: rows of the online store."""
_NOTHING = "Nothing was left to erase: no key and no online row of this person is here."
_UNDER_WAY = (
    "Under way: the key is destroyed. Unless it still runs, give the same `macadam erase subject` again to end it."
)


class _Destroyed(msgspec.Struct, frozen=True, kw_only=True):
    """What is gone already. rewrapped: keys of others, under a new project key; signer: of the certificate."""

    pending: Pending
    rewrapped: int
    signer: SignerKey

    @property
    def found_nothing(self) -> bool:
        return not self.pending.subjects and not self.pending.counts[_ONLINE]


def _destroy(context: Context, request: EraseSubject) -> _Destroyed:
    ports, home = context.ports, context.ports.settings.home
    with context.read() as sql:
        access.project(sql, request.project)
        views = _views_of_people(ports, sql, request.project)
    vault.prepare(home, ports.secrets, request.project)
    keys = Vault(home, ports.secrets, request.project)
    try:
        with keys.files():  # one erasure of a project after the other, and none while ciphertext moves
            erasure = keys.erasure_of(request.subject) or uuid7()
            context.begun(f"erasure:{erasure}", under=request.request or None)
            context.progress("destroying the key", 0, 4)
            pending = _counted(ports, keys, keys.destroy(request.subject, erasure), views, request.subject)
            context.progress("deleting ciphertext", 1, 4)
            store.delete(ports, keys, pending.subjects)
            context.progress("deleting online rows", 2, 4)
            ports.online.delete(_online_keys(ports, request.project, views, request.subject))
            context.progress("changing the project's key", 3, 4)
            rewrapped = 0
            if pending.subjects:
                keys.begin_wrapping_key()
                rewrapped = keys.rewrap()
            done = _Destroyed(pending=pending, rewrapped=rewrapped, signer=ledger.signer(ports))
            if done.found_nothing:
                keys.finish(pending)  # a retry whose first call has just ended: nothing is under way
    finally:
        keys.close()
    return done


def _counted(ports: Ports, keys: Vault, pending: Pending, views: "_Views", subject: str) -> Pending:
    """Counts what is not counted yet: a resumed erasure says what the first attempt has found."""
    counts = dict(pending.counts)
    fresh = frozenset(name for name in pending.subjects if name.hex() not in counts)
    counts |= {name.hex(): count for name, count in store.predictions(ports, keys, fresh).items()}
    if _ONLINE not in counts:
        counts[_ONLINE] = len(_online_keys(ports, keys.project, views, subject))
    keys.settle(pending.tag, counts)
    return msgspec.structs.replace(pending, counts=counts)


# --- online rows


_Views = list[tuple[TableView, tuple[int, ...]]]
"""Views that are looked up by a person, and which of their keys are one."""


def _views_of_people(ports: Ports, sql: sa.Connection, project: str) -> _Views:
    """Of every definition that the online store holds."""
    subjects = {one.personal.subject for one in registry.all_of(sql, project) if one.personal is not None}
    for source in data.sources(sql, project):
        text = ports.objects.get(data.contract(sql, project, source.contract).text)
        subjects |= personal.subjects(contracts.table(contracts.parse(text, origin=source.contract), source.schema))
    found: dict[str, tuple[TableView, tuple[int, ...]]] = {}
    for held, _ in features.materialised(sql, project):
        service = features.service(sql, project, held.service, held.views.rpartition("@")[2])
        for view in service.table_views:
            positions = tuple(n for n, key in enumerate(view.entity.keys) if key in subjects or key.lower() in subjects)
            if positions:
                found[online.prefix(project, view).decode()] = (view, positions)
    return list(found.values())


def _online_keys(ports: Ports, project: str, views: _Views, subject: str) -> list[bytes]:
    """Keys of the stored rows that name the person."""
    found = []
    for view, positions in views:
        start = online.prefix(project, view)
        if len(view.entity.keys) == 1:
            key = start + online.entity_key([subject])
            found += [key] if ports.online.get([key])[0] is not None else []
        else:
            stored = (key for key, _ in ports.online.scan(start + b"="))
            found += [key for key in stored if _names(key[len(start) + 1 :], positions, subject)]
    return found


def _names(entity: bytes, positions: tuple[int, ...], subject: str) -> bool:
    parts = entity.decode().split(online.SEPARATOR)
    return any(parts[position] == subject for position in positions)


# --- operations


@operation(
    EraseSubject,
    permission="subjects:erase",
    http=f"POST {_PROJECT}/erasures",
    cli="erase subject",
    prepare=_destroy,
    private=True,
)
def erase_subject(tx: Transaction, request: EraseSubject, done: _Destroyed) -> Erasure:
    """The answer of an erasure that another call has just completed is that one's."""
    tx.after_commit(partial(_finish, tx.ports, request.project, done.pending))
    known = _find(tx.sql, request.project, done.pending.erasure)
    left = {name.hex() for name in done.pending.subjects} - set(known.subjects if known else ())
    if done.found_nothing or (known is not None and not left):
        tx.record(f"erasure:{done.pending.erasure}", under=request.request or None, subjects=())
        return known or _empty("", request.project, tx.now, by=tx.actor.id, request=request.request, said=_NOTHING)
    names = tuple(sorted(left))
    predictions = sum(done.pending.counts[name] for name in names)
    online_rows = done.pending.counts[_ONLINE] if known is None else 0
    erasure = uuid7() if known else done.pending.erasure
    leaf = tx.record(
        f"erasure:{erasure}",
        subjects=names,
        goes_on_from=f"erasure:{known.id}" if known else None,
        under=request.request or None,
        predictions=predictions,
        online_rows=online_rows,
        keys_rewrapped=done.rewrapped,
    )
    new = Erasure(
        id=erasure,
        project=request.project,
        at=tx.now,
        by=tx.actor.id,
        request=request.request,
        subjects=names,
        predictions=predictions,
        online_rows=online_rows,
        keys_rewrapped=done.rewrapped,
        leaf=leaf,
        certificate="",
        said=f"Erased: {predictions} predictions, {online_rows} online rows. Keep the certificate.",
    )
    new = msgspec.structs.replace(new, certificate=certificate.sign(new, done.signer))
    _keep(tx.sql, new)
    return new


def _empty(erasure: str, project: str, at: datetime, *, by: str = "", request: str = "", said: str) -> Erasure:
    return Erasure(
        id=erasure,
        project=project,
        at=at,
        by=by,
        request=request,
        subjects=(),
        predictions=0,
        online_rows=0,
        keys_rewrapped=0,
        leaf="",
        certificate="",
        said=said,
    )


def _finish(ports: Ports, project: str, pending: Pending) -> None:
    keys = Vault(ports.settings.home, ports.secrets, project)
    try:
        keys.finish(pending)
    finally:
        keys.close()


def _keep(sql: sa.Connection, new: Erasure) -> None:
    values = {"id": new.id, "project": new.project, "at": new.at, "document": msgspec.to_builtins(new)}
    sql.execute(sa.insert(erasures).values(values))
    rows = [{"project": new.project, "subject": name, "erasure": new.id} for name in new.subjects]
    if rows:
        sql.execute(sa.insert(erased), rows)


def _find(sql: sa.Connection, project: str, erasure: str) -> Erasure | None:
    where = (erasures.c.project == project, erasures.c.id == erasure)
    document = sql.execute(sa.select(erasures.c.document).where(*where)).scalar()
    return None if document is None else msgspec.convert(document, Erasure)


def of_subject(sql: sa.Connection, project: str, subject: str) -> Erasure | None:
    """The erasure of a person, by the random name in records."""
    where = (erased.c.project == project, erased.c.subject == subject)
    found = sql.execute(sa.select(erased.c.erasure).where(*where)).scalar()
    return None if found is None else _find(sql, project, found)


@operation(ListErasures, permission="erasures:read", http=f"GET {_PROJECT}/erasures", cli="erase list")
def list_erasures(tx: Transaction, request: ListErasures) -> tuple[Erasure, ...]:
    e = erasures.c
    query = sa.select(e.document).where(e.project == request.project).order_by(e.at.desc(), e.id).limit(request.limit)
    done = [msgspec.convert(document, Erasure) for document in tx.sql.execute(query).scalars()]
    return (*_under_way(tx, request.project), *done)


def _under_way(tx: Transaction, project: str) -> Iterator[Erasure]:
    """Erasures that were stopped, or still run: their keys are destroyed, and nothing certifies it yet."""
    home = tx.ports.settings.home
    if not vault.exists(home, project):
        return
    keys = Vault(home, tx.ports.secrets, project)
    try:
        begun = keys.under_way()
    finally:
        keys.close()
    for erasure in begun:
        if _find(tx.sql, project, erasure) is None:
            began = datetime.fromtimestamp((uuid.UUID(erasure).int >> 80) / 1000, UTC)  # UUIDv7: milliseconds first
            yield _empty(erasure, project, began, said=_UNDER_WAY)


@operation(ShowErasure, permission="erasures:read", http=f"GET {_PROJECT}/erasures/{{erasure}}", cli="erase show")
def show_erasure(tx: Transaction, request: ShowErasure) -> Erasure:
    found = _find(tx.sql, request.project, request.erasure.rpartition(":")[2])
    if found is None:
        raise NotFound(
            f"Project {request.project!r} has no erasure {request.erasure!r}.",
            next_step="List them: macadam erase list.",
        )
    return found
