"""Quotas and cohorts as operations: who may use how much, and who lends to whom.

Setting one is the platform administrator's: what a project gets is taken from others.
"""

from collections.abc import Sequence
from decimal import Decimal

from macadam.access.service import require_project
from macadam.compute.billing import budgets, exchange
from macadam.compute.jobs import registry, spending
from macadam.compute.jobs.prices import Desk
from macadam.compute.jobs.types import (
    AttemptRow,
    Cohort,
    ListCohorts,
    ListQuotas,
    Quota,
    QuotaState,
    RemoveQuota,
    SetQuota,
    ShowQuota,
)
from macadam.errors import InvalidInput
from macadam.operations import Transaction, operation
from macadam.values import Money

_TENANT = "/api/v1/quotas/{tenant}"
_QUOTA = "/api/v1/projects/{project}/quota"
_PLATFORM = "platform:home"


@operation(SetQuota, permission="quotas:set", http=f"POST {_TENANT}", cli="quotas set", resource=_PLATFORM)
def set_quota(tx: Transaction, request: SetQuota) -> Quota:
    """Raises NotFound, and InvalidInput for a currency that nothing can be compared in."""
    require_project(tx.sql, request.tenant)
    if request.money:
        _require_comparable(tx, request)
    money = Money(micros=int(Decimal(request.money) * 1_000_000), currency=request.currency) if request.money else None
    quota = Quota(
        project=request.tenant,
        gpus=request.gpus,
        cohort=request.cohort,
        borrow=request.borrow,
        lend=request.lend,
        gpu_hours=request.gpu_hours,
        money=money,
        window=request.window,
        weight=request.weight,
        at=tx.now,
        by=tx.actor.id,
    )
    registry.set_quota(tx.sql, quota)
    tx.record(
        f"quota:{quota.project}",
        gpus=quota.gpus,
        cohort=quota.cohort,
        borrow=quota.borrow,
        lend=quota.lend,
        gpu_hours=quota.gpu_hours,
        money_micros=money.micros if money else None,
        window=quota.window,
        weight=quota.weight,
    )
    return quota


@operation(RemoveQuota, permission="quotas:set", http=f"POST {_TENANT}/remove", cli="quotas remove", resource=_PLATFORM)
def remove_quota(tx: Transaction, request: RemoveQuota) -> Quota:
    """Raises NotFound."""
    quota = registry.find_quota(tx.sql, request.tenant)
    registry.remove_quota(tx.sql, quota.project)
    tx.record(f"quota:{quota.project}", removed=1)
    return quota


@operation(ShowQuota, permission="jobs:read", http=f"GET {_QUOTA}", cli="quotas show")
def show_quota(tx: Transaction, request: ShowQuota) -> QuotaState:
    """Raises NotFound."""
    return _states(tx, [registry.find_quota(tx.sql, request.project)])[0]


@operation(ListQuotas, permission="quotas:read", http="GET /api/v1/quotas", cli="quotas list", resource=_PLATFORM)
def list_quotas(tx: Transaction, _request: ListQuotas) -> tuple[QuotaState, ...]:
    return _states(tx, registry.all_quotas(tx.sql))


@operation(ListCohorts, permission="quotas:read", http="GET /api/v1/cohorts", cli="quotas cohorts", resource=_PLATFORM)
def list_cohorts(tx: Transaction, _request: ListCohorts) -> tuple[Cohort, ...]:
    quotas = registry.all_quotas(tx.sql)
    using: dict[str, int] = {}
    for row in registry.open_attempts(tx.sql):
        using[row.project] = using.get(row.project, 0) + row.milli
    machines = sum(len(node.devices) for node in registry.known_machines(tx.sql))
    return tuple(
        Cohort(
            cohort=name,
            projects=tuple(one.project for one in quotas if one.cohort == name),
            gpus=sum(one.gpus for one in quotas if one.cohort == name),
            using=sum(using.get(one.project, 0) for one in quotas if one.cohort == name),
            machines=machines,
        )
        for name in sorted({one.cohort for one in quotas})
    )


def _require_comparable(tx: Transaction, request: SetQuota) -> None:
    """A limit is of use only in the currency of the project's budget, if it has one, and where prices can be had in it."""
    budget = [one.amount.currency for one in budgets.of_project(tx.sql, request.tenant) if not one.subject]
    if budget and budget[0] != request.currency:
        raise InvalidInput(
            f"The budget of {request.tenant} is in {budget[0]}, so a quota in {request.currency} could not be held beside it.",
            next_step=f"Give the amount in {budget[0]}.",
        )
    priced = tx.ports.settings.prices.currency
    if priced != request.currency and exchange.rate(tx.sql, priced, request.currency, tx.now.date()) is None:
        raise InvalidInput(
            f"Cores are priced in {priced}, and no rate says what that is in {request.currency}: the quota could not be held.",
            next_step=f"Give the amount in {priced}, import a rate (macadam cost add-rates), or set MACADAM_PRICE_CURRENCY.",
        )


def _states(tx: Transaction, quotas: Sequence[Quota]) -> tuple[QuotaState, ...]:
    """What runs and waits is read once for all of them."""
    rows: dict[str, list[AttemptRow]] = {}
    for row in registry.open_attempts(tx.sql):
        rows.setdefault(row.project, []).append(row)
    counts = registry.counts(tx.sql)
    desk = Desk(tx.sql, tx.ports.settings.prices, tx.now)
    return tuple(
        _state(tx, desk, quota, rows.get(quota.project, []), counts.get((quota.project, "waiting"), 0))
        for quota in quotas
    )


def _state(tx: Transaction, desk: Desk, quota: Quota, rows: Sequence[AttemptRow], waiting: int) -> QuotaState:
    since = spending.window_start(quota.window, tx.now)
    currency = quota.money.currency if quota.money else desk.currency(quota.project)
    counted = spending.counted(tx.sql, quota.project, since, currency)
    spent = counted.spent
    held = sum(row.milli * (tx.now - max(row.started, since)).total_seconds() / 1000 for row in rows)
    return QuotaState(
        quota=quota,
        using=sum(row.milli for row in rows),
        borrowed=sum(row.borrowed for row in rows),
        gpu_hours=(spent.gpu_seconds + held) / 3600,
        spent=Money(micros=spent.micros, currency=currency),
        others=counted.others,
        since=since,
        running=len(rows),
        waiting=waiting,
    )
