"""Budgets: what a project may spend in a period, what it has spent, and what is said about asking for more."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from macadam.errors import InvalidInput
from macadam.operations import Request
from macadam.values import Money, Name

Period = Literal["day", "week", "month", "quarter", "year"]
AlertKind = Literal["actual", "forecast"]
SubjectText = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^([a-z][a-z0-9_-]{0,62}:[A-Za-z0-9][A-Za-z0-9._:/-]{0,130})?\Z",
        description="what of the project, such as endpoint:delays; empty: all of it",
    ),
]
Percent = Annotated[int, msgspec.Meta(ge=1, le=1000)]
Currency = Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}\Z", description="ISO 4217")]
AmountText = Annotated[
    str, msgspec.Meta(pattern=r"^[0-9]{1,12}(\.[0-9]{1,6})?\Z", description="a decimal number, such as 1500.00")
]


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """The base of what is asked and answered about budgets."""


class Budget(Value, frozen=True, kw_only=True):
    """What a project, or one subject of it, may spend in each period (calendar, UTC; weeks begin on Monday).

    thresholds: percent of the amount at which an alert is raised. hard: work that would go over it is not admitted.
    convert: amounts in other currencies count too, at the imported exchange rates; else they are shown and not counted.
    """

    project: str
    subject: str
    amount: Money
    period: Period
    thresholds: tuple[Percent, ...]
    hard: bool
    convert: bool
    at: datetime
    by: str

    def __post_init__(self) -> None:
        if self.amount.micros <= 0:
            raise InvalidInput(f"A budget of {self.amount} allows nothing.", next_step="Give an amount above zero.")


class Spending(Value, frozen=True, kw_only=True):
    """What was spent in a period, in one currency. spent: by bills as far as they go, and by our meter after that,
    never less than the meter says; held: reserved by work that has not ended. others: amounts in currencies for which
    no rate is known or wanted; they are in none of the other figures. billed_to: until when bills say it.
    """

    spent: Money
    held: Money
    billed: Money
    metered: Money
    others: tuple[Money, ...] = ()
    billed_to: datetime | None = None


class Verdict(Value, frozen=True, kw_only=True):
    """Whether work with this estimate may begin. reason: one sentence for a person. left: before the estimate, None
    if there is no budget.
    """

    allowed: bool
    reason: str
    estimate: Money
    left: Money | None = None
    budget: Money | None = None
    subject: str = ""
    period_start: datetime | None = None
    period_end: datetime | None = None
    next_step: str = ""


class Forecast(Value, frozen=True, kw_only=True):
    """What the whole period will have cost. low, high: an interval that should hold it `level` of the time, None where
    there is too little history for one. method: how it was reckoned, in words. days: of history that it stands on.
    """

    total: Money
    method: str
    days: int
    low: Money | None = None
    high: Money | None = None
    level: float = 0.9


class Alert(Value, frozen=True, kw_only=True):
    """Raised once for each budget, period, threshold and kind."""

    project: str
    subject: str
    kind: AlertKind
    threshold: int
    amount: Money
    seen: Money
    period_start: datetime
    at: datetime


class BudgetState(Value, frozen=True, kw_only=True):
    """A budget now. spent, held, billed, metered, others, billed_to: as of `Spending`; left: of the amount, below zero if it
    is overspent. forecast, low, high, level, method, days: as of `Forecast`. alerts: of this period.
    """

    project: str
    subject: str
    amount: Money
    spent: Money
    held: Money
    period: Period
    period_start: datetime
    period_end: datetime
    billed: Money
    metered: Money
    others: tuple[Money, ...]
    billed_to: datetime | None
    thresholds: tuple[Percent, ...]
    convert: bool
    method: str
    days: int
    low: Money | None
    high: Money | None
    level: float
    alerts: tuple[Alert, ...]
    hard: bool
    left: Money
    forecast: Money


class SetBudget(Request[Budget], frozen=True, kw_only=True):
    """Set what a project may spend, in place of what was set before.

    amount: in `currency` for each period
    thresholds: percent of it at which an alert is raised
    hard: do not admit work that would go over it
    convert: count other currencies too, at the imported exchange rates
    """

    project: Name
    amount: AmountText
    currency: Currency = "USD"
    period: Period = "month"
    subject: SubjectText = ""
    thresholds: Annotated[tuple[Percent, ...], msgspec.Meta(max_length=20)] = (50, 80, 100)
    hard: bool = False
    convert: bool = False


class RemoveBudget(Request[Budget], frozen=True, kw_only=True):
    """Remove a budget. What was spent and which alerts were raised stays."""

    project: Name
    subject: SubjectText = ""


class ListBudgets(Request[tuple[BudgetState, ...]], frozen=True, kw_only=True):
    """List a project's budgets with what is spent, reserved, left and forecast."""

    project: Name


class CheckBudgets(Request[tuple[Alert, ...]], frozen=True, kw_only=True):
    """Raise the alerts of a project's budgets that are due, each once in its period."""

    project: Name


class ListAlerts(Request[tuple[Alert, ...]], frozen=True, kw_only=True):
    """List the alerts that a project's budgets have raised, newest first."""

    project: Name
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
