"""Operations that look leaves up: by what they say, one by one, by their place.

A reader of one project sees that project's leaves. Other leaves do not exist for them, except as hashes in a copy of
the ledger, which is of no use without all of them.
"""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from macadam.ledger import proofs
from macadam.ledger import service as ledger
from macadam.ledger.schema import checkpoints, leaves, uses
from macadam.ledger.service import EVERYWHERE, Entry
from macadam.ledger.tree import leaf_hash
from macadam.ledger.types import Copied, Log, LogEntry, Named, Page, ReadLeaves, ShowLeaf, ShowLog, Shown
from macadam.operations import Transaction, operation
from macadam.values import instant

MOST_EXAMINED = 20_000
"""Leaves that one call looks through for a text: some 0.1 s. The answer says where the next call goes on."""
_EXAMINED_AT_ONCE = 500
_MOST_USERS = 50
_PAGE_BYTES = 8 * 1024 * 1024
"""A page of leaves ends after this many, whatever it was asked for: an answer is held in memory."""


# --- by what they say


@operation(ShowLog, permission="ledger:read", http="GET /api/v1/projects/{project}/ledger/log", cli="ledger log")
def log(tx: Transaction, request: ShowLog) -> Log:
    query = _narrowed(tx.sql, request)
    text = request.text.encode()
    found: list[Entry] = []
    last, examined = request.after, 0
    while examined < (MOST_EXAMINED if text else 1):
        page = query.where(leaves.c.seq < last) if last else query
        rows = tx.sql.execute(page.limit(_EXAMINED_AT_ONCE if text else request.limit)).all()
        examined += len(rows)
        for row in rows:
            last = row.seq
            if text in bytes(row.leaf):
                found.append(ledger.entry(row))
            if len(found) == request.limit:
                return Log(entries=_logged(found), more=last)
        if len(rows) < (_EXAMINED_AT_ONCE if text else request.limit):
            return Log(entries=_logged(found))
    return Log(entries=_logged(found), more=last)


def _narrowed(sql: sa.Connection, request: ShowLog) -> sa.Select[Any, Any, Any]:
    query = sa.select(leaves.c.seq, leaves.c.idx, leaves.c.leaf).order_by(leaves.c.seq.desc())
    wanted = {"kind": request.kind, "actor": request.actor, "subject": request.subject, "outcome": request.outcome}
    if request.project != EVERYWHERE:
        wanted["project"] = request.project
    for column, value in wanted.items():
        if value:
            query = query.where(leaves.c[column] == value)
    if request.ref:
        using = sa.select(uses.c.leaf_id).where(uses.c.ref == request.ref)
        query = query.where(sa.or_(leaves.c.subject == request.ref, leaves.c.id.in_(using)))
    if request.since or request.until:
        query = _within(sql, query, request)
    return query


def _within(sql: sa.Connection, query: sa.Select[Any, Any, Any], request: ShowLog) -> sa.Select[Any, Any, Any]:
    """Narrowed to a time. Its bounds in ledger order come from the index, so that old leaves are not walked to."""
    time = []
    if request.since:
        time.append(leaves.c.at >= instant(request.since))
    if request.until:
        time.append(leaves.c.at < instant(request.until))
    first, last = sql.execute(sa.select(sa.func.min(leaves.c.seq), sa.func.max(leaves.c.seq)).where(*time)).one()
    return query.where(*time, leaves.c.seq >= (first or 0), leaves.c.seq <= (last or 0))


def _logged(found: Iterable[Entry]) -> tuple[LogEntry, ...]:
    return tuple(_log_entry(entry) for entry in found)


def _log_entry(entry: Entry) -> LogEntry:
    leaf = entry.leaf
    return LogEntry(
        index=entry.index,
        id=leaf.id,
        at=leaf.at,
        kind=leaf.kind,
        outcome=leaf.outcome,
        actor=leaf.actor,
        project=leaf.project,
        subject=leaf.subject,
        uses=tuple(leaf.uses),
        body=leaf.body,
    )


# --- one by one


@operation(
    ShowLeaf,
    permission="ledger:read",
    http="GET /api/v1/projects/{project}/ledger/leaves/{leaf}",
    cli="ledger show",
)
def show(tx: Transaction, request: ShowLeaf) -> Shown:
    entry = ledger.require(tx.sql, request.leaf, request.project)
    users, in_all = _users(tx.sql, entry, request.project)
    waiting = entry.index < 0
    return Shown(
        entry=_log_entry(entry),
        text=entry.text.decode(),
        hash=leaf_hash(entry.text).hex(),
        request=entry.leaf.request,
        decision=entry.leaf.decision,
        proof=None if waiting else proofs.of_leaf(tx.ports, entry, *ledger.newest_checkpoint(tx.sql)),
        uses=tuple(_named(tx.sql, ref, entry, request.project) for ref in entry.leaf.uses),
        used_by=_logged(users),
        more_users=in_all - len(users),
    )


def _named(sql: sa.Connection, ref: str, user: Entry, project: str) -> Named:
    """The newest leaf about a reference that was there when it was used: the same project's, or the platform's."""
    own = [user.leaf.project] if project != EVERYWHERE else [user.leaf.project, "", EVERYWHERE]
    query = (
        sa.select(leaves.c.id, leaves.c.idx, leaves.c.kind)
        .where(leaves.c.subject == ref, leaves.c.outcome == "done", leaves.c.project.in_(own))
        .where(leaves.c.seq < _seq_of(user))
        .order_by(leaves.c.seq.desc())
        .limit(1)
    )
    row = sql.execute(query).first()
    if row is None:
        return Named(ref=ref)
    return Named(ref=ref, leaf=row.id, index=-1 if row.idx is None else row.idx, kind=row.kind)


def _users(sql: sa.Connection, entry: Entry, project: str) -> tuple[list[Entry], int]:
    """The first leaves after this one that use its subject, and how many there are."""
    using = sa.select(uses.c.leaf_id).where(uses.c.ref == entry.leaf.subject)
    later = [leaves.c.id.in_(using), leaves.c.seq > _seq_of(entry)]
    if project != EVERYWHERE or entry.leaf.project:
        later.append(leaves.c.project == entry.leaf.project)  # a reference names a thing of its own project
    count = sql.execute(sa.select(sa.func.count()).select_from(leaves).where(*later)).scalar_one()
    query = sa.select(leaves.c.seq, leaves.c.idx, leaves.c.leaf).where(*later).order_by(leaves.c.seq)
    return [ledger.entry(row) for row in sql.execute(query.limit(_MOST_USERS))], count


def _seq_of(entry: Entry) -> sa.ScalarSelect[int]:
    return sa.select(leaves.c.seq).where(leaves.c.id == entry.leaf.id).scalar_subquery()


# --- by their place


@operation(
    ReadLeaves,
    permission="ledger:read",
    http="GET /api/v1/projects/{project}/ledger/leaves",
    cli="ledger read",
)
def read(tx: Transaction, request: ReadLeaves) -> Page:
    size, _ = proofs.signed_at(tx.sql, request.size)
    last = min(request.first + request.limit, size)
    columns = (leaves.c.idx, leaves.c.project, leaves.c.leaf, leaves.c.hash)
    query = sa.select(*columns).where(leaves.c.idx >= request.first, leaves.c.idx < last).order_by(leaves.c.idx)
    copied: list[Copied] = []
    held = 0
    for row in tx.sql.execute(query):
        copied.append(_copied(row, request.project))
        held += len(row.leaf)
        if held > _PAGE_BYTES:
            last = row.idx + 1
            break
    signed = sa.select(checkpoints.c.note).where(checkpoints.c.size > request.first, checkpoints.c.size <= last)
    return Page(
        size=size,
        key=str(ledger.verifier_keys(tx.ports)),
        leaves=tuple(copied),
        checkpoints=tuple(tx.sql.execute(signed.order_by(checkpoints.c.size)).scalars()),
    )


def _copied(row: "sa.Row[*tuple[Any, ...]]", project: str) -> Copied:
    if project in (EVERYWHERE, row.project):
        return Copied(index=row.idx, text=bytes(row.leaf).decode())
    return Copied(index=row.idx, hash=bytes(row.hash).hex())
