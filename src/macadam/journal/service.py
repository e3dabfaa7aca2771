"""Operations on the journal: closed segments become rows, objects and ledger leaves, each exactly once.

What a kill between any two steps leaves is repeatable: staged files that nobody sees, or a sealed segment whose file
is still there, which the next call removes.
"""

from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from macadam import catalog
from macadam.errors import Busy, IntegrityError, NotFound
from macadam.journal import sealing
from macadam.journal import spans as spans_
from macadam.journal.layout import ANSWERS, CLOSED, OPEN, VERIFY
from macadam.journal.schema import gaps, segments, spans
from macadam.journal.sealing import Closed
from macadam.journal.types import TABLE, ListSegments, SealClosed, Sealed, Segment
from macadam.operations import Context, Transaction, operation
from macadam.personal import store as ciphertext
from macadam.ports import StagedSnapshot


class _Ready(msgspec.Struct, frozen=True, kw_only=True):
    """What is written and durable, and not visible yet. known: files of segments that are sealed already."""

    closed: tuple[Closed, ...]
    staged: StagedSnapshot | None
    known: tuple[Path, ...]
    damaged: tuple[str, ...]
    remaining: int


def _stage(context: Context, request: SealClosed) -> _Ready:
    ports = context.ports
    folder = sealing.folder_of(ports.settings.home, request.project)
    damaged = sealing.recover_dead(folder)
    paths = sorted(folder.glob(f"{request.segment or '*'}{CLOSED}"))
    with context.read() as sql:
        sealed = _sealed_ids(sql, [path.stem for path in paths])
        if request.segment and not paths:
            _require_sealed(sql, request)
        current = catalog.location(sql, request.project, TABLE)
    fresh = [path for path in paths if path.stem not in sealed]
    chosen = sealing.batch(fresh)
    closed: list[Closed] = []
    for path in chosen:
        context.progress(f"sealing {path.stem}", len(closed), len(fresh))
        try:
            closed.append(sealing.store(path, ports.objects))
        except (NotFound, FileNotFoundError):  # another process has just sealed it
            continue
        except IntegrityError as error:
            if path.exists():
                damaged.append(str(error))
    staged = None
    if any(one.rows for one in closed):
        staged = ports.tables.stage(f"{request.project}.{TABLE}", sealing.table(closed), current=current)
    return _Ready(
        closed=tuple(closed),
        staged=staged,
        known=tuple(path for path in paths if path.stem in sealed),
        damaged=tuple(damaged),
        remaining=len(fresh) - len(chosen),
    )


def _sealed_ids(sql: sa.Connection, ids: list[str]) -> set[str]:
    found: set[str] = set()
    for start in range(0, len(ids), 500):
        some = ids[start : start + 500]
        found.update(sql.execute(sa.select(segments.c.id).where(segments.c.id.in_(some))).scalars())
    return found


def _require_sealed(sql: sa.Connection, request: SealClosed) -> None:
    if not _sealed_ids(sql, [request.segment]):
        raise NotFound(
            f"Project {request.project!r} has no closed segment {request.segment!r}.",
            next_step="A segment closes when it is full or old, or when its gateway stops.",
        )


@operation(
    SealClosed,
    permission="journal:seal",
    http="POST /api/v1/projects/{project}/journal/seal",
    cli="journal seal",
    prepare=_stage,
)
def seal_segments(tx: Transaction, request: SealClosed, ready: _Ready) -> Sealed:
    """Rows, index and leaves appear together. A segment that cannot be read is left where it is, and said."""
    if ready.staged is not None:
        catalog.publish(tx.sql, request.project, TABLE, ready.staged)
    done = tuple(_publish(tx, request.project, one, ready.staged) for one in ready.closed)
    if vanished := _vanished(tx, request.project, ready.closed):
        tx.after_commit(partial(_raise_vanished, vanished))
    tx.after_commit(partial(_remove, (*ready.known, *(one.path for one in ready.closed))))
    tx.after_commit(partial(ciphertext.take_over, tx.ports, request.project))
    if ready.damaged:
        tx.after_commit(partial(_raise_damaged, ready.damaged))
    return Sealed(
        project=request.project,
        segments=done,
        records=sum(one.count for one in done),
        known=len(ready.known),
        remaining=ready.remaining,
    )


def _publish(tx: Transaction, project: str, one: Closed, staged: StagedSnapshot | None) -> Segment:
    facts = one.facts
    if _sealed_ids(tx.sql, [facts.id]):
        raise Busy(f"The segment {facts.id} is being sealed by another process.", next_step="Run the same call again.")
    holds = staged if staged is not None and one.rows else None
    leaf = tx.record(
        f"segment:{facts.id}",
        root=f"sha256:{facts.root.hex()}",
        count=facts.count,
        answers=facts.answers,
        archive=one.archive,
        gateway=facts.header.gateway,
        worker=facts.header.worker,
        first_at=facts.first_at,
        last_at=facts.last_at,
        torn=facts.torn,
        follows=f"segment:{facts.header.follows}" if facts.header.follows else None,
        gaps=facts.header.gaps or None,
        metadata_location=holds.metadata_location if holds else None,
        snapshot_id=holds.snapshot_id if holds else None,
        digest=holds.digest if holds else None,
    )
    new = Segment(
        id=facts.id,
        project=project,
        gateway=facts.header.gateway,
        worker=facts.header.worker,
        first_id=one.first_id,
        last_id=one.last_id,
        first_at=facts.first_at,
        last_at=facts.last_at,
        count=facts.count,
        answers=facts.answers,
        torn=facts.torn,
        root=f"sha256:{facts.root.hex()}",
        archive=one.archive,
        places=one.places,
        snapshot=f"table:{TABLE}@{holds.snapshot_id}" if holds else "",
        leaf=leaf,
        sealed=tx.now,
    )
    tx.sql.execute(sa.insert(segments).values({f: getattr(new, f) for f in new.__struct_fields__}))
    covered = [{"project": project, "prefix": p, "segment": new.id} for p in spans_.cover(new.first_id, new.last_id)]
    if covered:
        tx.sql.execute(sa.insert(spans), covered)
    _keep_gaps(tx, project, one)
    return new


def _keep_gaps(tx: Transaction, project: str, one: Closed) -> None:
    """A gap that a killed gateway told twice is one; where it had grown meanwhile, the larger one."""
    told = {gap.id: gap for gap in one.facts.header.gaps}
    query = sa.select(gaps.c.id, gaps.c.answers).where(gaps.c.id.in_(list(told)))
    known = {row.id: row.answers for row in tx.sql.execute(query)} if told else {}
    grown = [identity for identity, answers in known.items() if told[identity].answers > answers]
    if grown:
        tx.sql.execute(sa.delete(gaps).where(gaps.c.id.in_(grown)))
    rows = [
        {
            "id": gap.id,
            "project": project,
            "segment": one.facts.id,
            "gateway": one.facts.header.gateway,
            "first_at": gap.first_at,
            "last_at": gap.last_at,
            "answers": gap.answers,
            "causes": gap.causes,
        }
        for gap in told.values()
        if gap.id not in known or gap.id in grown
    ]
    if rows:
        tx.sql.execute(sa.insert(gaps), rows)


def _remove(paths: tuple[Path, ...]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
        path.with_suffix(ANSWERS).unlink(missing_ok=True)


def _vanished(tx: Transaction, project: str, closed: tuple[Closed, ...]) -> tuple[str, ...]:
    """Segments that those sealed now say they follow, and that are neither sealed nor in the folder."""
    folder = sealing.folder_of(tx.ports.settings.home, project)
    named = sorted({one.facts.header.follows for one in closed} - {""})
    # The folder first: a segment may be sealed by another process between the two looks, but not come back.
    absent = [one for one in named if not any((folder / f"{one}{suffix}").exists() for suffix in (OPEN, CLOSED))]
    sealed = _sealed_ids(tx.sql, absent)
    return tuple(one for one in absent if one not in sealed)


def _raise_vanished(vanished: tuple[str, ...]) -> None:
    raise IntegrityError(
        f"The journal segments {', '.join(vanished)} were written and are gone, unsealed: their answers have no record.",
        next_step="Restore them from a backup into the journal's folder and seal again; inspection point 34 stays failed.",
        details={"vanished": list(vanished)},
    )


def _raise_damaged(damaged: tuple[str, ...]) -> None:
    raise IntegrityError(
        f"{len(damaged)} journal segments cannot be sealed: {' '.join(damaged)}",
        next_step=VERIFY,
        details={"damaged": list(damaged)},
    )


@operation(
    ListSegments,
    permission="journal:read",
    http="GET /api/v1/projects/{project}/journal/segments",
    cli="journal list",
)
def list_segments(tx: Transaction, request: ListSegments) -> tuple[Segment, ...]:
    t = segments.c
    query = sa.select(segments).where(t.project == request.project).order_by(t.id.desc()).limit(request.limit)
    return tuple(_segment(row) for row in tx.sql.execute(query))


def holding(sql: sa.Connection, project: str, prediction: str) -> list[Segment]:
    """The sealed segments in which a record of this id can lie: one, or as many as there are gateways. O(log n)."""
    t = segments.c
    near = sa.select(spans.c.segment).where(spans.c.project == project, spans.c.prefix.in_(spans_.prefixes(prediction)))
    query = sa.select(segments).where(t.id.in_(near), t.last_id >= prediction, t.first_id <= prediction)
    return [_segment(row) for row in sql.execute(query)]


def _segment(row: "sa.Row[Any]") -> Segment:
    return Segment(**row._asdict())
