"""Giving up an executor that is gone for good: its attempts are closed as lost, so that what they held is free again.

Nobody can say what became of them: something may still run there. So a job starts anew only as often as its own restarts allow, whatever
its attempt was asked before, and an executor that is chosen and answers is never given up.
"""

from macadam.compute.jobs import clusters, registry
from macadam.compute.jobs.bookkeeping import Books
from macadam.compute.jobs.prices import Desk
from macadam.compute.jobs.types import AbandonedExecutor, AbandonExecutor
from macadam.errors import Conflict, NotFound, Unavailable
from macadam.operations import Context, Transaction, operation

_PLATFORM = "platform:home"


def _answers(context: Context, request: AbandonExecutor) -> bool:
    """Whether it is the chosen one and can be asked. Not in the transaction: it may take its time to say nothing."""
    if request.executor != clusters.named(context.ports.settings):
        return False
    try:
        context.ports.executor.nodes()
    except Unavailable:
        return False
    return True


@operation(
    AbandonExecutor,
    permission="executors:abandon",
    http="POST /api/v1/executors/abandon",
    cli="jobs abandon",
    resource=_PLATFORM,
    prepare=_answers,
)
def abandon_executor(tx: Transaction, request: AbandonExecutor, answers: bool) -> AbandonedExecutor:  # noqa: FBT001 - what was prepared
    """Raises Conflict if it is the chosen one and answers, NotFound if nothing is open there."""
    if answers:
        raise Conflict(
            f"The executor {request.executor!r} is the chosen one and answers: what it runs is known.",
            next_step="Cancel its jobs instead: macadam jobs cancel.",
        )
    rows = [row for row in registry.open_attempts(tx.sql) if row.executor == request.executor]
    if not rows:
        others = sorted({row.executor for row in registry.open_attempts(tx.sql) if row.executor})
        known = f"; attempts are open on {', '.join(map(repr, others))}" if others else ""
        raise NotFound(
            f"Nothing is open on an executor {request.executor!r}{known}.", next_step="Name it as it is written."
        )
    settings, jobs = tx.ports.settings, registry.by_id(tx.sql, [row.job for row in rows])
    desk = Desk(tx.sql, settings.prices, tx.now)
    books = Books(sql=tx.sql, now=tx.now, desk=desk, restart_delay=settings.jobs.restart_delay)
    after = [books.give_up(jobs[row.job], row, f"its executor {row.executor} was given up") for row in rows]
    waiting = sum(job.state == "waiting" for job in after)
    tx.record(f"executor:{request.executor}", attempts=len(rows), waiting=waiting)  # each has its own leaf
    return AbandonedExecutor(
        executor=request.executor,
        attempts=tuple(row.id for row in rows),
        waiting=waiting,
        ended=len(after) - waiting,
        warning="What ran there may still run. Make sure that it does not before the same work starts anew elsewhere.",
    )
