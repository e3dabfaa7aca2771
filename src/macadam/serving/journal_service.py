"""Operations on a project's journal as a whole: what it asks of it, and how it stands."""

from pathlib import Path

import sqlalchemy as sa

from macadam.access import service as access
from macadam.errors import IntegrityError, InvalidInput, NotFound
from macadam.journal import completeness, sealing, status
from macadam.journal import gaps as counted
from macadam.journal.layout import CLOSED, OPEN, read_answers
from macadam.journal.schema import gaps, policies, segments
from macadam.journal.segment import footer_of
from macadam.journal.types import (
    Declared,
    DeclareJournal,
    GapFact,
    GatewayJournal,
    JournalPolicy,
    JournalState,
    JournalStatus,
)
from macadam.ledger import service as ledger
from macadam.operations import Transaction, operation
from macadam.serving.publishing import effective
from macadam.values import uuid7

_PATH = "/api/v1/projects/{project}/journal"
_MOST_GAPS = 100


@operation(DeclareJournal, permission="journal:declare", http=f"POST {_PATH}/policy", cli="journal declare")
def declare_journal(tx: Transaction, request: DeclareJournal) -> Declared:
    """Raises InvalidInput if a high-risk project would answer without records."""
    project = access.project(tx.sql, request.project)
    if project.risk == "high" and request.on_journal_failure != "stop":
        raise InvalidInput(
            f"Project {project.name!r} is of high risk: it may not answer without a record.",
            next_step="Declare on_journal_failure: stop.",
        )
    facts = {"durability": request.durability, "on_journal_failure": request.on_journal_failure}
    tx.sql.execute(sa.delete(policies).where(policies.c.project == project.name))
    row = {"project": project.name, "generation": uuid7(), "declared": tx.now, "declared_by": tx.actor.id}
    tx.sql.execute(sa.insert(policies).values({**row, **facts}))
    tx.record(f"journal:{project.name}", **facts)
    return Declared(
        project=project.name,
        durability=request.durability,
        on_journal_failure=request.on_journal_failure,
        effective=effective(request.durability, request.on_journal_failure, high=project.risk == "high"),
    )


def policy(sql: sa.Connection, project: str) -> JournalPolicy:
    """What gateways do for this project. Raises NotFound if there is none."""
    risk = access.project(sql, project).risk
    row = sql.execute(sa.select(policies).where(policies.c.project == project)).first()
    if row is None:
        return JournalPolicy()
    return effective(row.durability, row.on_journal_failure, high=risk == "high")


@operation(JournalStatus, permission="journal:read", http=f"GET {_PATH}", cli="journal status")
def journal_status(tx: Transaction, request: JournalStatus) -> JournalState:
    now = policy(tx.sql, request.project)
    folder = sealing.folder_of(tx.ports.settings.home, request.project)
    files = _Files(folder)
    t = segments.c
    rows = tx.sql.execute(
        sa.select(sa.func.count(), sa.func.sum(t["count"]), sa.func.sum(t.answers), sa.func.sum(t.torn)).where(
            t.project == request.project
        )
    ).one()
    gateways = tuple(_gateway(one, alive=alive) for one, alive in status.read(folder))
    told = _gaps(tx.sql, request.project)
    every = tx.sql.execute(sa.select(sa.func.sum(gaps.c.answers)).where(gaps.c.project == request.project)).scalar()
    return JournalState(
        project=request.project,
        durability=now.durability,
        on_journal_failure=now.on_journal_failure,
        open=files.open,
        closed=files.closed,
        sealed=rows[0],
        records=(rows[1] or 0) + files.records,
        answers=(rows[2] or 0) + files.answers,
        torn=(rows[3] or 0) + files.torn,
        unsynced=sum(one.unsynced for one in gateways if one.alive),
        last_fsync=max((one.last_fsync for one in gateways), default=""),
        unrecorded=(every or 0) + sum(one.untold for one in gateways if one.alive) + _left_behind(folder),
        gaps=told,
        missing=_missing(tx.sql, request.project, tx.ports.settings.home),
        damaged=tuple(files.damaged),
        gateways=gateways,
    )


class _Files:
    """The segments that are still files. records: of closed ones; answers: of all."""

    def __init__(self, folder: Path) -> None:
        self.open = self.closed = self.records = self.answers = self.torn = 0
        self.damaged: list[str] = []
        for path in sorted([*folder.glob(f"*{OPEN}"), *folder.glob(f"*{CLOSED}")]):
            try:
                self._count(path)
            except (NotFound, FileNotFoundError):  # it was closed or sealed meanwhile
                continue
            except IntegrityError as error:
                self.damaged.append(error.what)

    def _count(self, path: Path) -> None:
        if path.suffix == OPEN:
            self.open += 1
        else:
            self.closed += 1
            footer = footer_of(path)
            self.records += footer.count
            self.torn += footer.torn
        self.answers += read_answers(path)


def _gateway(one: status.WriterStatus, *, alive: bool) -> GatewayJournal:
    return GatewayJournal(
        gateway=one.gateway,
        alive=alive,
        at=one.at,
        condition=one.condition,
        records=one.records,
        unsynced=one.unsynced,
        last_fsync=one.last_fsync,
        unrecorded=one.unrecorded,
        untold=one.untold,
        refused=one.refused,
    )


def _gaps(sql: sa.Connection, project: str) -> tuple[GapFact, ...]:
    query = sa.select(gaps).where(gaps.c.project == project).order_by(gaps.c.id.desc()).limit(_MOST_GAPS)
    return tuple(
        GapFact(
            id=row.id,
            segment=row.segment,
            gateway=row.gateway,
            first_at=row.first_at,
            last_at=row.last_at,
            answers=row.answers,
            causes=row.causes,
        )
        for row in sql.execute(query)
    )


def _left_behind(folder: Path) -> int:
    """Answers without a record that gateways which are gone counted, and that no segment tells yet."""
    return sum(gap.answers for _, gap in counted.orphans(folder) if gap is not None)


def _missing(sql: sa.Connection, project: str, home: Path) -> tuple[str, ...]:
    waiting = sealing.unsealed(home, project)  # first: a segment may be sealed between the two looks, but not come back
    leaves = [entry.leaf for entry in ledger.find(sql, project=project, kind="journal.seal_segments")]
    sealed = [completeness.of_leaf(one.subject, one.body) for one in leaves if one.subject.startswith("segment:")]
    return tuple(completeness.missing(sealed, waiting))
