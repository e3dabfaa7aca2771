"""Inspect a project and keep what was found: a document under its digest, and a leaf that names it."""

import inspect
import sys
from datetime import datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import msgspec
import sqlalchemy as sa

from macadam.errors import NotFound
from macadam.governance import frameworks
from macadam.governance.checks import CHECKS, UNCHECKED, Check
from macadam.governance.collect import gather
from macadam.governance.evidence import Evidence
from macadam.governance.frameworks import Point
from macadam.governance.schema import inspections
from macadam.governance.types import (
    STATUSES,
    Finding,
    Inspect,
    Inspection,
    ListInspections,
    PointResult,
    ShowInspection,
)
from macadam.ledger import sequencer
from macadam.operations import Context, Transaction, operation
from macadam.values import digest_of, parse_instant, uuid7

_PROJECT = "/api/v1/projects/{project}"


def _inspect(context: Context, request: Inspect) -> Inspection:
    """Everything but the row and the leaf. Leaves that wait for their checkpoint are integrated first."""
    sequencer.integrate_all(context.ports)
    with context.read() as sql:
        evidence = gather(context, sql, request.project, context.call.now)
    executor = f"{context.call.actor.id} with macadam {version('macadam-platform')}"
    found = results(evidence, executor)
    _, catalogue = frameworks.inspection()
    identity = uuid7()
    made = Inspection(
        ref=f"inspection:{identity}",
        id=identity,
        project=request.project,
        at=context.call.now,
        executor=executor,
        edition=frameworks.inspection()[0].version,
        catalogue=catalogue,
        counts={status: sum(point.status == status for point in found) for status in STATUSES},
        points=found,
    )
    digest = context.ports.objects.put(msgspec.json.encode(made, order="sorted"))
    return msgspec.structs.replace(made, digest=digest)


def results(evidence: Evidence, executor: str) -> tuple[PointResult, ...]:
    """All points of the catalogue, in its order."""
    catalogue, _ = frameworks.inspection()
    return tuple(_result(point, evidence, executor) for point in catalogue.points)


def _result(point: Point, evidence: Evidence, executor: str) -> PointResult:
    check = CHECKS.get(point.id)
    found = check(evidence) if check else Finding(status="did_not_run", detail=UNCHECKED[point.id])
    start, end = _period(evidence, found)
    return PointResult(
        id=point.id,
        check=point.check,
        status=found.status,
        detail=found.detail,
        population=found.population,
        sample=found.sample,
        collected_at=evidence.now,
        start=start,
        end=end,
        executor=executor,
        code=code_digest(check) if check else "",
        evidence=found.evidence,
        controls=point.controls,
        table=found.table,
    )


def _period(evidence: Evidence, found: Finding) -> tuple[datetime | None, datetime | None]:
    named = set(found.evidence)
    times = sorted(leaf.at for leaf in (*evidence.policy_leaves, *evidence.leaves) if leaf.id in named)
    return (parse_instant(times[0]), parse_instant(times[-1])) if times else (None, None)


@lru_cache(maxsize=64)
def code_digest(check: Check) -> str:
    """Over the whole module that holds the check: what it calls there counts too."""
    source = inspect.getsourcefile(sys.modules[check.__module__])
    return digest_of(Path(str(source)).read_bytes())


@operation(
    Inspect,
    permission="inspection:run",
    http=f"POST {_PROJECT}/inspections",
    cli="inspection run",
    prepare=_inspect,
)
def inspect_project(tx: Transaction, _request: Inspect, made: Inspection) -> Inspection:
    tx.sql.execute(
        sa.insert(inspections).values(
            id=made.id,
            project=made.project,
            at=made.at,
            digest=made.digest,
            document=msgspec.to_builtins(made),
        )
    )
    tx.record(
        made.ref,
        uses=[f"project:{made.project}", f"policy:{tx.call.decision.policy_set}"],
        digest=made.digest,
        catalogue=made.catalogue,
        counts=made.counts,
        points={point.id: point.status for point in made.points},
    )
    return made


@operation(
    ShowInspection,
    permission="inspection:read",
    http=f"GET {_PROJECT}/inspections/latest",
    cli="inspection show",
)
def show_inspection(tx: Transaction, request: ShowInspection) -> Inspection:
    """Raises NotFound."""
    query = sa.select(inspections.c.document).where(inspections.c.project == request.project)
    if request.inspection:
        query = query.where(inspections.c.id == request.inspection.rpartition(":")[2])
    found = tx.sql.execute(query.order_by(inspections.c.id.desc()).limit(1)).scalar_one_or_none()
    if found is None:
        what = f"inspection {request.inspection!r}" if request.inspection else "inspection"
        raise NotFound(f"Project {request.project!r} has no {what}.", next_step="Run one: macadam inspection run.")
    return msgspec.convert(found, Inspection)


@operation(
    ListInspections,
    permission="inspection:read",
    http=f"GET {_PROJECT}/inspections",
    cli="inspection list",
)
def list_inspections(tx: Transaction, request: ListInspections) -> tuple[Inspection, ...]:
    query = sa.select(inspections.c.document).where(inspections.c.project == request.project)
    rows = tx.sql.execute(query.order_by(inspections.c.id.desc()).limit(min(max(request.limit, 1), 1000))).scalars()
    return tuple(msgspec.structs.replace(msgspec.convert(row, Inspection), points=()) for row in rows)
