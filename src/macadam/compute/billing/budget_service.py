"""Budgets: what a project may spend, its forecast, its alerts and its hard stop."""

from decimal import Decimal

import msgspec
import sqlalchemy as sa

from macadam.access import service as access
from macadam.compute.billing import budgets
from macadam.compute.billing.budget_types import (
    Alert,
    Budget,
    BudgetState,
    CheckBudgets,
    ListAlerts,
    ListBudgets,
    RemoveBudget,
    SetBudget,
)
from macadam.compute.billing.schema import alerts as alert_table
from macadam.compute.billing.schema import budgets as table
from macadam.errors import NotFound
from macadam.operations import Transaction, operation
from macadam.values import Money

_BUDGETS = "/api/v1/projects/{project}/budgets"
_MICROS = 1_000_000


@operation(SetBudget, permission="budgets:set", http=f"POST {_BUDGETS}", cli="budgets set")
def set_budget(tx: Transaction, request: SetBudget) -> Budget:
    """Raises NotFound for a project that does not exist."""
    access.project(tx.sql, request.project)
    new = Budget(
        project=request.project,
        subject=request.subject,
        amount=Money(micros=int(Decimal(request.amount) * _MICROS), currency=request.currency),
        period=request.period,
        thresholds=tuple(sorted(set(request.thresholds))),
        hard=request.hard,
        convert=request.convert,
        at=tx.now,
        by=tx.actor.id,
    )
    _forget(tx, request.project, request.subject)
    row = {"project": new.project, "subject": new.subject, "at": new.at, "document": msgspec.to_builtins(new)}
    tx.sql.execute(sa.insert(table).values(row))
    tx.record(
        f"budget:{new.project}",
        budget_of=new.subject,
        amount_micros=new.amount.micros,
        currency=new.amount.currency,
        period=new.period,
        thresholds=new.thresholds,
        hard=new.hard,
        convert=new.convert,
    )
    budgets.raise_alerts(tx, new.project)
    return new


@operation(RemoveBudget, permission="budgets:set", http=f"POST {_BUDGETS}/remove", cli="budgets remove")
def remove_budget(tx: Transaction, request: RemoveBudget) -> Budget:
    """Raises NotFound."""
    known = [b for b in budgets.of_project(tx.sql, request.project) if b.subject == request.subject]
    if not known:
        whose = request.subject or request.project
        raise NotFound(f"{whose} has no budget.", next_step=f"See `macadam budgets list --project {request.project}`.")
    _forget(tx, request.project, request.subject)
    tx.record(f"budget:{request.project}", removed=1, budget_of=request.subject)
    return known[0]


def _forget(tx: Transaction, project: str, subject: str) -> None:
    tx.sql.execute(sa.delete(table).where(table.c.project == project, table.c.subject == subject))


@operation(ListBudgets, permission="budgets:read", http=f"GET {_BUDGETS}", cli="budgets list")
def list_budgets(tx: Transaction, request: ListBudgets) -> tuple[BudgetState, ...]:
    """Each budget's state now."""
    return tuple(budgets.state(tx.sql, budget, tx.now) for budget in budgets.of_project(tx.sql, request.project))


@operation(CheckBudgets, permission="budgets:check", http=f"POST {_BUDGETS}/check", cli="budgets check")
def check_budgets(tx: Transaction, request: CheckBudgets) -> tuple[Alert, ...]:
    """Raises nothing: what is due becomes an event and a leaf; the answer is what is new."""
    found = budgets.raise_alerts(tx, request.project)
    tx.record(f"budget:{request.project}", checked=1, raised=len(found))
    return found


@operation(ListAlerts, permission="budgets:read", http=f"GET {_BUDGETS}/alerts", cli="budgets alerts")
def list_alerts(tx: Transaction, request: ListAlerts) -> tuple[Alert, ...]:
    """Newest first."""
    rows = tx.sql.execute(
        sa.select(alert_table.c.document)
        .where(alert_table.c.project == request.project)
        .order_by(alert_table.c.at.desc(), alert_table.c.subject, alert_table.c.kind, alert_table.c.threshold.desc())
        .limit(request.limit)
    )
    return tuple(msgspec.convert(row.document, Alert) for row in rows)
