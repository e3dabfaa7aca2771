"""Budgets: what is left, who may begin, what is forecast, and which alerts are raised."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import pytest
import sqlalchemy as sa
from databases import KINDS, environment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.compute.billing import budgets, forecast, periods
from macadam.compute.billing.budget_types import (
    CheckBudgets,
    ListAlerts,
    ListBudgets,
    RemoveBudget,
    SetBudget,
    Spending,
    Verdict,
)
from macadam.compute.billing.schema import exchange_rates, reservations, spend
from macadam.errors import Conflict, InvalidInput, NotFound
from macadam.testing import Clock, open_platform
from macadam.values import Money

NOON = datetime(2026, 3, 11, 12, tzinfo=UTC)


@pytest.fixture
def clock() -> Clock:
    return Clock(NOON)


@pytest.fixture(params=KINDS)
def platform(request: pytest.FixtureRequest, clock: Clock) -> Iterator[Platform]:
    with open_platform(environment=environment(request.param), clock=clock) as opened:
        opened.call(CreateProject(project="flights"))
        yield opened


def dollars(amount: float) -> Money:
    return Money(micros=round(amount * 1_000_000))


def reserve(platform: Platform, key: str, amount: Money, at: datetime = NOON, subject: str = "") -> Verdict:
    return platform.ports.sql.write(lambda sql: budgets.reserve(sql, "flights", key, amount, at, subject=subject))


def settle(platform: Platform, key: str, amount: Money, at: datetime) -> None:
    platform.ports.sql.write(lambda sql: budgets.settle(sql, key, amount, at))


def bill(platform: Platform, day: str, micros: int, currency: str = "USD") -> None:
    row = {"project": "flights", "day": day, "currency": currency, "bill": "b", "micros": micros}
    platform.ports.sql.write(lambda sql: sql.execute(sa.insert(spend).values(row)))


def test_a_hard_budget_admits_until_it_is_reserved_and_not_a_micro_more(platform: Platform) -> None:
    platform.call(SetBudget(project="flights", amount="10", hard=True))
    assert reserve(platform, "job:1", dollars(6)).allowed
    assert not reserve(platform, "job:2", dollars(4.000001)).allowed
    assert reserve(platform, "job:2", dollars(4)).allowed
    refused = reserve(platform, "job:3", Money(micros=1))
    assert not refused.allowed
    assert "macadam budgets set" in refused.next_step


def test_a_soft_budget_admits_and_says_what_it_would_have_said(platform: Platform) -> None:
    platform.call(SetBudget(project="flights", amount="10"))
    verdict = reserve(platform, "job:1", dollars(60))
    assert verdict.allowed
    assert "only" in verdict.reason


def test_what_is_overspent_is_said_as_such(platform: Platform) -> None:
    platform.call(SetBudget(project="flights", amount="10", hard=True))
    bill(platform, "2026-03-10", 10_554_700)
    refused = reserve(platform, "job:1", dollars(1))
    assert not refused.allowed
    assert refused.reason.startswith("flights has spent and promised 0.5547 USD more than its 10.00 USD this month;")


def test_what_is_settled_is_spent_and_what_is_released_is_free_again(platform: Platform) -> None:
    platform.call(SetBudget(project="flights", amount="10", hard=True))
    reserve(platform, "job:1", dollars(8))
    settle(platform, "job:1", dollars(3), NOON + timedelta(hours=2))
    reserve(platform, "job:2", dollars(7))
    platform.ports.sql.write(lambda sql: budgets.release(sql, "job:2", NOON + timedelta(hours=3)))
    (state,) = platform.call(ListBudgets(project="flights"))
    assert (state.spent, state.held, state.left) == (dollars(3), dollars(0), dollars(7))


def test_settling_twice_alike_is_once_and_differently_is_refused(platform: Platform) -> None:
    reserve(platform, "job:1", dollars(8))
    settle(platform, "job:1", dollars(3), NOON)
    settle(platform, "job:1", dollars(3), NOON)
    with pytest.raises(Conflict):
        settle(platform, "job:1", dollars(4), NOON)
    with pytest.raises(Conflict):
        reserve(platform, "job:1", dollars(1))
    with pytest.raises(NotFound):
        settle(platform, "job:unknown", dollars(4), NOON)


def test_reserving_again_replaces_what_the_same_work_held(platform: Platform) -> None:
    platform.call(SetBudget(project="flights", amount="10", hard=True))
    assert reserve(platform, "job:1", dollars(6)).allowed
    assert reserve(platform, "job:1", dollars(9)).allowed
    assert not reserve(platform, "job:1", dollars(11)).allowed
    (state,) = platform.call(ListBudgets(project="flights"))
    assert state.held == dollars(9)


def test_nothing_negative_is_reserved_or_settled(platform: Platform) -> None:
    with pytest.raises(InvalidInput):
        reserve(platform, "job:1", dollars(-1))
    reserve(platform, "job:1", dollars(1))
    with pytest.raises(InvalidInput):
        settle(platform, "job:1", dollars(-1), NOON)


def test_bills_count_as_far_as_they_go_and_the_meter_after_that(platform: Platform) -> None:
    platform.call(SetBudget(project="flights", amount="100"))
    reserve(platform, "job:old", dollars(9), datetime(2026, 3, 2, tzinfo=UTC))
    settle(platform, "job:old", dollars(8), datetime(2026, 3, 3, tzinfo=UTC))
    bill(platform, "2026-03-02", 20_000_000)  # what the job cost, and storage
    reserve(platform, "job:new", dollars(9), datetime(2026, 3, 10, tzinfo=UTC))
    settle(platform, "job:new", dollars(5), datetime(2026, 3, 11, tzinfo=UTC))
    (state,) = platform.call(ListBudgets(project="flights"))
    assert state.billed == dollars(20)
    assert state.metered == dollars(13)
    assert state.spent == dollars(25)


def test_no_amount_of_another_currency_is_added_unless_a_rate_says_what_it_is_worth(platform: Platform) -> None:
    platform.call(SetBudget(project="flights", amount="100", hard=True))
    bill(platform, "2026-03-02", 20_000_000, "EUR")
    euro = Money(micros=1, currency="EUR")
    (state,) = platform.call(ListBudgets(project="flights"))
    assert state.spent == dollars(0)
    assert state.others == (Money(micros=20_000_000, currency="EUR"),)
    assert not reserve(platform, "job:1", euro).allowed
    rate = {"base": "EUR", "quote": "USD", "day": "2026-03-01", "rate": "1.25", "source": "test", "at": NOON}
    platform.ports.sql.write(lambda sql: sql.execute(sa.insert(exchange_rates).values(rate)))
    platform.call(SetBudget(project="flights", amount="100", hard=True, convert=True))
    (state,) = platform.call(ListBudgets(project="flights"))
    assert state.spent == dollars(25)
    assert state.others == ()
    assert reserve(platform, "job:1", euro).allowed


def test_the_last_months_spending_is_not_this_months(platform: Platform, clock: Clock) -> None:
    platform.call(SetBudget(project="flights", amount="10", hard=True))
    reserve(platform, "job:1", dollars(10))
    settle(platform, "job:1", dollars(10), NOON)
    assert not reserve(platform, "job:2", dollars(1)).allowed
    assert reserve(platform, "job:2", dollars(10), NOON + timedelta(days=30)).allowed


def test_a_subject_has_its_own_budget_beside_the_projects(platform: Platform) -> None:
    platform.call(SetBudget(project="flights", amount="100", hard=True))
    platform.call(SetBudget(project="flights", subject="endpoint:delays", amount="5", hard=True))
    assert not reserve(platform, "llm:1", dollars(6), subject="endpoint:delays").allowed
    assert reserve(platform, "llm:1", dollars(5), subject="endpoint:delays").allowed
    assert reserve(platform, "job:1", dollars(95)).allowed
    assert not reserve(platform, "job:2", dollars(1)).allowed
    platform.call(RemoveBudget(project="flights", subject="endpoint:delays"))
    with pytest.raises(NotFound):
        platform.call(RemoveBudget(project="flights", subject="endpoint:delays"))


def test_each_alert_is_raised_once_in_its_period_with_a_leaf(platform: Platform, clock: Clock) -> None:
    platform.call(SetBudget(project="flights", amount="10", thresholds=(50, 100)))
    reserve(platform, "job:1", dollars(6))
    settle(platform, "job:1", dollars(6), NOON)
    raised = platform.call(CheckBudgets(project="flights"))
    assert [(a.kind, a.threshold) for a in raised] == [("actual", 50)]
    assert platform.call(CheckBudgets(project="flights")) == ()
    clock.pass_time(timedelta(days=30))
    reserve(platform, "job:2", dollars(11), clock.instant)
    settle(platform, "job:2", dollars(11), clock.instant)
    assert {a.threshold for a in platform.call(CheckBudgets(project="flights")) if a.kind == "actual"} == {50, 100}
    assert len([a for a in platform.call(ListAlerts(project="flights")) if a.kind == "actual"]) == 3


def test_a_budget_that_was_raised_warns_of_its_new_amount_too(platform: Platform) -> None:
    platform.call(SetBudget(project="flights", amount="10", thresholds=(50, 100)))
    reserve(platform, "job:1", dollars(10))
    settle(platform, "job:1", dollars(10), NOON)
    assert {a.threshold for a in platform.call(CheckBudgets(project="flights")) if a.kind == "actual"} == {50, 100}
    platform.call(SetBudget(project="flights", amount="100", thresholds=(50, 100)))
    reserve(platform, "job:2", dollars(90))
    settle(platform, "job:2", dollars(90), NOON)
    raised = [a for a in platform.call(CheckBudgets(project="flights")) if a.kind == "actual"]
    assert [(a.threshold, a.amount) for a in raised] == [(50, dollars(100)), (100, dollars(100))]
    assert platform.call(CheckBudgets(project="flights")) == ()
    platform.call(SetBudget(project="flights", amount="100", thresholds=(50, 100), hard=True))
    assert [a.amount for a in platform.call(ListAlerts(project="flights")) if a.kind == "actual"] == [dollars(100)] * 2


@given(
    st.sampled_from(["day", "week", "month", "quarter", "year"]),
    st.datetimes(timezones=st.just(UTC)).filter(lambda at: 1900 < at.year < 2100),
)
def test_every_instant_is_in_the_one_period_that_it_is_given(period: str, at: datetime) -> None:
    start, end = periods.bounds(period, at)  # type: ignore[arg-type] # one of its literals
    assert start <= at < end
    assert periods.bounds(period, end)[0] == end  # type: ignore[arg-type] # one of its literals
    assert periods.bounds(period, end - timedelta(microseconds=1)) == (start, end)  # type: ignore[arg-type] # one of them


# Forecasts


def forecast_of(daily: dict[date, int], through: date, so_far: int) -> forecast.Projection:
    return forecast.project(daily, start=date(2026, 3, 1), end=date(2026, 4, 1), through=through, so_far=so_far)


def test_a_steady_spender_is_forecast_to_the_micro() -> None:
    daily = {date(2026, 2, 1) + timedelta(days=n): 7_000_000 for n in range(38)}
    found = forecast_of(daily, date(2026, 3, 10), 70_000_000)
    assert (found.total, found.low, found.high) == (217_000_000,) * 3


def test_weekends_that_cost_nothing_are_not_forecast_to_cost() -> None:
    days = [date(2026, 1, 12) + timedelta(days=n) for n in range(58)]
    daily = {day: 10_000_000 for day in days if day.weekday() < 5}
    found = forecast_of(daily, date(2026, 3, 10), 70_000_000)
    workdays = sum((date(2026, 3, 1) + timedelta(days=n)).weekday() < 5 for n in range(31))
    assert found.total == workdays * 10_000_000
    assert "weekday" in found.method


def test_without_history_only_what_was_spent_is_said() -> None:
    found = forecast_of({}, date(2026, 3, 10), 5)
    assert (found.total, found.low, found.high, found.days) == (5, None, None, 0)


def test_nothing_is_forecast_from_two_days_or_from_bills_that_ended_weeks_ago() -> None:
    two = {date(2026, 3, 9): 5, date(2026, 3, 10): 5}
    assert forecast_of(two, date(2026, 3, 10), 10).total == 10
    old = {date(2026, 2, 1) + timedelta(days=n): 5 for n in range(10)}
    assert forecast_of(old, date(2026, 2, 10), 0).total == 0
    assert forecast_of(old, date(2026, 2, 20), 0).total > 0


@given(
    st.dictionaries(st.dates(date(2026, 1, 1), date(2026, 3, 31)), st.integers(0, 10**12), max_size=60),
    st.dates(date(2026, 2, 27), date(2026, 3, 31)),
)
def test_a_forecast_is_never_below_what_was_spent_and_lies_in_its_interval(
    daily: dict[date, int], through: date
) -> None:
    so_far = sum(m for day, m in daily.items() if date(2026, 3, 1) <= day <= through)
    found = forecast_of(daily, through, so_far)
    assert found.total >= so_far
    if found.low is not None and found.high is not None:
        assert so_far <= found.low <= found.total <= found.high


def test_many_who_ask_at_once_for_the_last_of_a_budget_do_not_get_more_than_there_is(platform: Platform) -> None:
    platform.call(SetBudget(project="flights", amount="1", hard=True))
    with ThreadPoolExecutor(8) as pool:
        asked = list(pool.map(lambda n: reserve(platform, f"job:{n}", dollars(0.3)), range(16)))
    assert sum(v.allowed for v in asked) == 3


work = st.tuples(st.integers(0, 480), st.integers(1, 200), st.integers(0, 10**9), st.booleans())


@given(st.lists(work, max_size=8), st.none() | st.integers(1, 20), st.integers(0, 10**9))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_spent_is_what_bills_say_and_the_meter_after_them_and_never_less_than_the_meter(
    law_platform: Platform, done: list[tuple[int, int, int, bool]], billed_days: int | None, billed: int
) -> None:
    """Against the same told in Python, one work at a time. Hours count from the month's begin."""
    begin = datetime(2026, 3, 1, tzinfo=UTC)
    budget = law_platform.call(SetBudget(project="flights", amount="1"))
    billed_to = None if billed_days is None else begin + timedelta(days=billed_days)

    def told(sql: sa.Connection) -> Spending:
        for table in (reservations, spend):
            sql.execute(sa.delete(table))
        if billed_to is not None:
            day = (billed_to - timedelta(days=1)).date().isoformat()
            row = {"project": "flights", "day": day, "currency": "USD", "bill": "b", "micros": billed}
            sql.execute(sa.insert(spend).values(row))
        for number, (start, hours, cost, on_bill) in enumerate(done):
            key, at = f"job:{number}", begin + timedelta(hours=start)
            budgets.reserve(sql, "flights", key, Money(micros=0), at, on_bill=on_bill)
            budgets.settle(sql, key, Money(micros=cost), at + timedelta(hours=hours))
        return budgets.spending(sql, budget, begin + timedelta(days=30))

    seen = law_platform.ports.sql.write(told)
    later = 0
    for start, hours, cost, on_bill in done:
        after = hours if billed_to is None or not on_bill else max(0, min(hours, start + hours - 24 * billed_days))
        later += -(-cost * after // hours)
    metered = sum(cost for _, _, cost, _ in done)
    assert seen.metered.micros == metered
    assert seen.spent.micros == max((billed if billed_to else 0) + later, metered)


pieces = st.tuples(st.integers(0, 30 * 24), st.integers(1, 40 * 24), st.integers(0, 50), st.integers(0, 50))


@given(st.lists(pieces, max_size=6), st.none() | st.integers(1, 90), st.integers(0, 1500))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_over_all_months_each_cost_is_shown_once_own_and_rented_running_and_ended(
    law_platform: Platform, done: list[tuple[int, int, int, int]], billed_days: int | None, until: int
) -> None:
    """Work costs so many micros an hour by bills, and so many on own hardware; bills say the first exactly, day by day, and stop.

    Hours and days count from the first of March; `until` is the hour at which it is looked.
    """
    begin = datetime(2026, 3, 1, tzinfo=UTC)
    now = begin + timedelta(hours=until)
    budget = law_platform.call(SetBudget(project="flights", amount="1"))

    def shown(sql: sa.Connection) -> list[Spending]:
        for table in (reservations, spend):
            sql.execute(sa.delete(table))
        for number, (start, hours, rented, own) in enumerate(done):
            at, key, ran = begin + timedelta(hours=start), f"job:{number}", min(hours, until - start)
            if ran < 0:
                continue
            cost, apart = Money(micros=ran * (rented + own)), Money(micros=ran * own)
            used_up = None if rented and own else at + timedelta(hours=ran)
            budgets.reserve(sql, "flights", key, cost, at, on_bill=rented > 0, until=used_up)
            if ran == hours:
                budgets.settle(sql, key, cost, at + timedelta(hours=hours), own=apart)
            for day in range(min(billed_days or 0, until // 24)):
                within = max(0, min(24 * day + 24, start + ran) - max(24 * day, start))
                on = (begin + timedelta(days=day)).date().isoformat()
                row = {"project": "flights", "day": on, "currency": "USD", "bill": key, "micros": within * rented}
                if within * rented:
                    sql.execute(sa.insert(spend).values(row))
        months = [datetime(2026, month, 1, tzinfo=UTC) for month in range(3, 8)]
        return [budgets.spending(sql, budget, month) for month in months if month <= now]

    seen = law_platform.ports.sql.write(shown)
    true = sum(max(0, min(hours, until - start)) * (rented + own) for start, hours, rented, own in done)
    running = [one for one in done if one[0] + one[1] > until >= one[0]]
    # What runs on both is held in full beside bills until it ends. Each work that a bill's end cuts through is rounded up.
    besides = sum((until - start) * rented for start, _, rented, own in running if own)
    found = sum(one.spent.micros for one in seen) + seen[-1].held.micros
    assert true <= found <= true + besides + 2 * len(done)


@pytest.fixture(scope="module")
def law_platform() -> Iterator[Platform]:
    with open_platform(clock=Clock(NOON)) as opened:
        opened.call(CreateProject(project="flights"))
        yield opened
