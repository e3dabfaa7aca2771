"""Jobs, attempts, quotas and machines in SQL: reading and writing, and nothing decided."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
import sqlalchemy as sa

from macadam.compute.jobs.schema import attempts, jobs, machines, quotas
from macadam.compute.jobs.schema import market_spans as spans
from macadam.compute.jobs.types import ENDED, AttemptRow, Job, MarketSpan, Quota, State
from macadam.errors import NotFound
from macadam.ports import Node

OPEN: tuple[State, ...] = ("waiting", "starting", "running", "stopping")


# --- jobs


def keep_job(sql: sa.Connection, job: Job) -> None:
    row = {"id": job.id, "project": job.project, "state": job.state, "likeness": job.spec.likeness, "document": job}
    sql.execute(sa.insert(jobs).values(row))


def save_job(sql: sa.Connection, job: Job) -> None:
    sql.execute(sa.update(jobs).where(jobs.c.id == job.id).values(state=job.state, document=job))


def find_job(sql: sa.Connection, project: str, job: str) -> Job:
    """job: its id or reference. Raises NotFound, also for another project's."""
    row = sql.execute(
        sa.select(jobs.c.document).where(jobs.c.id == job.removeprefix("job:"), jobs.c.project == project)
    ).first()
    if row is None:
        raise NotFound(f"{project} has no job {job}.", next_step=f"See `macadam jobs list --project {project}`.")
    return msgspec.convert(row.document, Job)


def has_bundle(sql: sa.Connection, project: str, digest: str) -> bool:
    """Whether a job of the project was submitted with these working files."""
    document = sa.type_coerce(jobs.c.document, sa.Text)  # text in SQL; a digest in it needs no escaping
    query = sa.select(jobs.c.id).where(jobs.c.project == project, document.contains(f'"bundle":"{digest}"'))
    return sql.execute(query.limit(1)).first() is not None


def list_jobs(sql: sa.Connection, project: str, state: str, before: str, limit: int) -> tuple[Job, ...]:
    """Newest first. state: '' = all, 'open' = those that have not ended."""
    query = sa.select(jobs.c.document).where(jobs.c.project == project)
    if state:
        query = query.where(jobs.c.state.in_(OPEN if state == "open" else (state,)))
    if before:
        query = query.where(jobs.c.id < before.removeprefix("job:"))
    return _jobs(sql, query.order_by(jobs.c.id.desc()).limit(limit))


def by_id(sql: sa.Connection, ids: Sequence[str]) -> dict[str, Job]:
    found: dict[str, Job] = {}
    for start in range(0, len(ids), 500):  # databases bound the number of parameters
        query = sa.select(jobs.c.document).where(jobs.c.id.in_(ids[start : start + 500]))
        found |= {job.id: job for job in _jobs(sql, query)}
    return found


def waiting(sql: sa.Connection, limit: int = 0) -> tuple[Job, ...]:
    """In order of submission; limit 0 = all."""
    query = sa.select(jobs.c.document).where(jobs.c.state == "waiting").order_by(jobs.c.id)
    return _jobs(sql, query.limit(limit) if limit else query)


def counts(sql: sa.Connection) -> dict[tuple[str, str], int]:
    """How many jobs each project has in each state that is not an end."""
    query = (
        sa.select(jobs.c.project, jobs.c.state, sa.func.count())
        .where(jobs.c.state.in_(OPEN))
        .group_by(jobs.c.project, jobs.c.state)
    )
    return {(project, state): number for project, state, number in sql.execute(query)}


def finished_like(sql: sa.Connection, project: str, likeness: str, limit: int = 200) -> tuple[Job, ...]:
    """The newest that succeeded, of those whose durations are alike."""
    query = (
        sa.select(jobs.c.document)
        .where(jobs.c.project == project, jobs.c.likeness == likeness, jobs.c.state == "succeeded")
        .order_by(jobs.c.id.desc())
    )
    return _jobs(sql, query.limit(limit))


def finished(sql: sa.Connection, limit: int) -> tuple[Job, ...]:
    """The newest that ended by themselves, of all projects, oldest first."""
    query = sa.select(jobs.c.document).where(jobs.c.state.in_(("succeeded", "failed")))
    return _jobs(sql, query.order_by(jobs.c.id.desc()).limit(limit))[::-1]


def ended_after(sql: sa.Connection, after: datetime) -> tuple[Job, ...]:
    """Those whose last attempt ended later than that, in the order of their ends."""
    ids = [row.job for row in sql.execute(sa.select(attempts.c.job).where(attempts.c.ended > after).distinct())]
    found = (job for job in by_id(sql, ids).values() if job.ended is not None)
    return tuple(sorted(found, key=lambda job: (job.ended, job.id)))


def _jobs(sql: sa.Connection, query: "sa.Select[tuple[object]]") -> tuple[Job, ...]:
    return tuple(msgspec.convert(row.document, Job) for row in sql.execute(query))


# --- attempts


def keep_attempt(sql: sa.Connection, row: AttemptRow) -> None:
    sql.execute(sa.insert(attempts).values(id=row.id, job=row.job, project=row.project, kept=True, **_columns(row)))


def save_attempt(sql: sa.Connection, row: AttemptRow) -> None:
    sql.execute(sa.update(attempts).where(attempts.c.id == row.id).values(**_columns(row)))


def _columns(row: AttemptRow) -> dict[str, object]:
    cost = row.cost
    return {
        "open": row.ended is None,
        "milli": row.milli,
        "gpu_ms": row.gpu_ms if row.ended else 0,
        "started": row.started,
        "ended": row.ended,
        "micros": cost.micros if cost else 0,
        "currency": cost.currency if cost else "",
        "document": row,
    }


def open_attempts(sql: sa.Connection) -> tuple[AttemptRow, ...]:
    return _attempts(sql, sa.select(attempts.c.document).where(attempts.c.open).order_by(attempts.c.id))


def attempts_of(sql: sa.Connection, job: str) -> tuple[AttemptRow, ...]:
    rows = _attempts(sql, sa.select(attempts.c.document).where(attempts.c.job == job))
    return tuple(sorted(rows, key=lambda row: row.number))


def find_attempt(sql: sa.Connection, attempt: str) -> AttemptRow:
    """Raises NotFound."""
    found = _attempts(sql, sa.select(attempts.c.document).where(attempts.c.id == attempt))
    if not found:
        raise NotFound(f"There is no attempt {attempt}.", next_step="See `macadam jobs show`.")
    return found[0]


def between(sql: sa.Connection, start: datetime, end: datetime, project: str = "") -> tuple[AttemptRow, ...]:
    """Those that held something in the interval (end excluded), in order of their beginning."""
    query = sa.select(attempts.c.document).where(
        attempts.c.started < end, sa.or_(attempts.c.ended.is_(None), attempts.c.ended > start)
    )
    if project:
        query = query.where(attempts.c.project == project)
    return _attempts(sql, query.order_by(attempts.c.started, attempts.c.id))


def ended_between(sql: sa.Connection, project: str, start: datetime, end: datetime) -> tuple[AttemptRow, ...]:
    """A project's attempts that ended in the interval (end excluded), in the order of their ends."""
    query = sa.select(attempts.c.document).where(
        attempts.c.project == project, attempts.c.ended >= start, attempts.c.ended < end
    )
    return _attempts(sql, query.order_by(attempts.c.ended, attempts.c.id))


def to_forget(sql: sa.Connection, before: datetime, executor: str, limit: int = 100) -> tuple[AttemptRow, ...]:
    """Those whose files this executor keeps although they ended before then. What another one keeps only that one can remove."""
    document = sa.type_coerce(attempts.c.document, sa.Text)
    written = [f'"executor":{msgspec.json.encode(name).decode()}' for name in (executor, "")]
    mine = sa.or_(*(document.contains(text, autoescape=True) for text in written))
    its = sa.or_(mine, sa.not_(document.contains('"executor":')))  # before that was written down
    query = sa.select(attempts.c.document).where(attempts.c.kept, attempts.c.ended < before, its)
    return _attempts(sql, query.limit(limit))


def forgotten(sql: sa.Connection, ids: Sequence[str]) -> None:
    sql.execute(sa.update(attempts).where(attempts.c.id.in_(ids)).values(kept=False))


def _attempts(sql: sa.Connection, query: "sa.Select[tuple[object]]") -> tuple[AttemptRow, ...]:
    return tuple(msgspec.convert(row.document, AttemptRow) for row in sql.execute(query))


# --- quotas and machines


def set_quota(sql: sa.Connection, quota: Quota) -> None:
    remove_quota(sql, quota.project)
    sql.execute(sa.insert(quotas).values(project=quota.project, at=quota.at, document=quota))


def remove_quota(sql: sa.Connection, project: str) -> None:
    sql.execute(sa.delete(quotas).where(quotas.c.project == project))


def find_quota(sql: sa.Connection, project: str) -> Quota:
    """Raises NotFound."""
    for quota in all_quotas(sql):
        if quota.project == project:
            return quota
    raise NotFound(f"{project} has no quota.", next_step=f"macadam quotas set {project} --gpus N")


def all_quotas(sql: sa.Connection) -> tuple[Quota, ...]:
    rows = sql.execute(sa.select(quotas.c.document).order_by(quotas.c.project))
    return tuple(msgspec.convert(row.document, Quota) for row in rows)


def known_machines(sql: sa.Connection) -> tuple[Node, ...]:
    rows = sql.execute(sa.select(machines.c.document).order_by(machines.c.name))
    return tuple(msgspec.convert(row.document, Node) for row in rows)


def set_machines(sql: sa.Connection, nodes: Sequence[Node], now: datetime) -> None:
    """Writes what has changed: a cluster has many, and one that leaves is no reason to write down all the others."""
    known, names = {node.name: node for node in known_machines(sql)}, {node.name for node in nodes}
    changed = [node for node in nodes if known.get(node.name) != node]
    for name in [*(known.keys() - names), *(node.name for node in changed if node.name in known)]:
        sql.execute(sa.delete(machines).where(machines.c.name == name))
    if changed:
        sql.execute(sa.insert(machines), [{"name": node.name, "at": now, "document": node} for node in changed])


def see_markets(sql: sa.Connection, there: frozenset[str], now: datetime) -> None:
    """Ends the spans of markets that have no spot machine any more, and begins those of others. there: that have one now."""
    known = {span.market for span in market_spans(sql, now) if span.until is None}
    for market in sorted(known - there):
        still = sa.and_(spans.c.until.is_(None), spans.c.market == market)
        sql.execute(sa.update(spans).where(still).values(until=now))
    for market in sorted(there - known):
        again = sa.and_(spans.c.market == market, spans.c.since == now)  # a clock that was set back may say it twice
        if not sql.execute(sa.update(spans).where(again).values(until=None)).rowcount:
            sql.execute(sa.insert(spans).values(market=market, since=now, until=None))


def market_spans(sql: sa.Connection, after: datetime) -> tuple[MarketSpan, ...]:
    """Those that have not ended, or later than that, in order of their beginning."""
    query = sa.select(spans).where(sa.or_(spans.c.until.is_(None), spans.c.until > after))
    found = sql.execute(query.order_by(spans.c.since, spans.c.market))
    return tuple(MarketSpan(market=row.market, since=row.since, until=row.until) for row in found)


def is_ended(job: Job) -> bool:
    return job.state in ENDED
