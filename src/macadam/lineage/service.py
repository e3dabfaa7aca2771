"""The operation that answers for a past date. It reads the leaves that changed who may do what and what answers."""

from collections.abc import Iterator

import sqlalchemy as sa

from macadam.ledger import service as ledger
from macadam.ledger.leaf import Leaf
from macadam.ledger.schema import leaves
from macadam.lineage import past
from macadam.lineage.types import PastState, StateAt
from macadam.operations import Transaction, operation
from macadam.values import instant

_AT_ONCE = 1000


@operation(StateAt, permission="ledger:read", http="GET /api/v1/projects/{project}/ledger/state", cli="ledger state")
def state(tx: Transaction, request: StateAt) -> PastState:
    at = instant(request.at)
    return past.state(changes(tx.sql, at, request.project), at, project=request.project)


def changes(sql: sa.Connection, at: str, project: str) -> Iterator[tuple[int, Leaf]]:
    """(index, leaf) of what changed the state until `at`, in ledger order; read a thousand at a time.

    project: '*' for everything; otherwise its own leaves and the platform's.
    """
    query = (
        sa.select(leaves.c.idx, leaves.c.leaf)
        .where(leaves.c.kind.in_(past.KINDS), leaves.c.outcome == "done", leaves.c.at <= at)
        .order_by(leaves.c.seq)
    )
    if project != ledger.EVERYWHERE:
        query = query.where(leaves.c.project.in_((project, ledger.EVERYWHERE, "")))
    for row in sql.execute(query.execution_options(yield_per=_AT_ONCE)):
        found = ledger.entry(row)
        yield found.index, found.leaf
