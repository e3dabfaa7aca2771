"""Bills that were imported by mistake, and bills of one account in several currencies: what counts, and what comes back."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from databases import KINDS, environment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.compute.billing.bills import usage, write_csv

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.compute.billing.budget_types import ListAlerts, ListBudgets, SetBudget
from macadam.compute.billing.types import (
    Bill,
    Delivery,
    ImportBill,
    ListBills,
    ListCharges,
    MapCharges,
    ShowBill,
    WithdrawBill,
)
from macadam.errors import Conflict, NotAuthorised, NotFound
from macadam.ledger.types import ShowLog
from macadam.testing import Clock, open_platform, token_of
from macadam.values import Money, uuid7

NOW = datetime(2026, 10, 21, 12, tzinfo=UTC)
FLIGHTS = {"Tags": '{"project": "flights"}'}


@pytest.fixture(params=KINDS)
def platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    with open_platform(environment=environment(request.param), clock=Clock(NOW)) as opened:
        opened.call(CreateProject(project="flights"))
        yield opened


def take(platform: Platform, path: Path, **options: object) -> Delivery:
    return platform.call(ImportBill(path=str(path), **options))  # type: ignore[arg-type] # each test's own


def spent(platform: Platform) -> tuple[Money, ...]:
    return platform.call(ListCharges(project="flights")).effective


def withdraw(platform: Platform, bill: Bill, reason: str = "wrong account") -> tuple[str, ...]:
    return platform.call(WithdrawBill(bill=bill.id, reason=reason)).uncovered


def test_a_withdrawn_bill_leaves_every_total_and_keeps_its_evidence(platform: Platform, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bill.csv", [usage(1, **FLIGHTS)])
    delivery = take(platform, path)
    (bill,) = delivery.bills
    found = platform.call(WithdrawBill(bill=bill.id, reason="another company's"))
    assert (found.projects, found.uncovered, found.bill.why) == (("flights",), (), "another company's")
    assert found.bill.withdrawn == NOW
    assert spent(platform) == ()
    assert platform.call(ListBills()) == ()
    assert [one.why for one in platform.call(ListBills(all=True))] == ["another company's"]
    assert platform.call(ShowBill(bill=bill.id)).by_project == {}
    assert platform.ports.objects.get(delivery.originals["bill.csv"]) == path.read_bytes()
    (entry,) = platform.call(ShowLog(subject=f"bill:{bill.id}")).entries
    assert (entry.body["reason"], entry.body["effective"]) == ("another company's", "10.00")


def test_the_same_file_again_brings_it_back(platform: Platform, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bill.csv", [usage(1, **FLIGHTS), usage(2, **FLIGHTS)])
    first = take(platform, path)
    withdraw(platform, first.bills[0])
    again = take(platform, path)
    assert (again.id, again.repeated, again.restored) == (first.id, True, (first.bills[0].id,))
    assert (again.bills[0].withdrawn, again.bills[0].restored) == (None, NOW)
    assert spent(platform) == (Money(micros=20_000_000),)
    shuffled = write_csv(tmp_path / "other.csv.gz", [usage(2, **FLIGHTS), usage(1, **FLIGHTS)])
    assert take(platform, shuffled).restored == ()
    withdraw(platform, first.bills[0])
    assert take(platform, shuffled).restored == (first.bills[0].id,)
    assert spent(platform) == (Money(micros=20_000_000),)


def test_what_does_not_count_is_not_withdrawn_and_it_is_said_what_to_do(platform: Platform, tmp_path: Path) -> None:
    old = take(platform, write_csv(tmp_path / "old.csv", [usage(1)]))
    new = take(platform, write_csv(tmp_path / "new.csv", [usage(1, EffectiveCost="7")]))
    with pytest.raises(Conflict, match="says it anew") as replaced:
        withdraw(platform, old.bills[0])
    assert "macadam cost bills" in replaced.value.next_step
    withdraw(platform, new.bills[0])
    with pytest.raises(Conflict, match="wrong account") as twice:
        withdraw(platform, new.bills[0])
    assert "Import its files again" in twice.value.next_step
    with pytest.raises(NotFound):
        platform.call(WithdrawBill(bill=uuid7(), reason="no such bill"))


def test_the_bill_that_a_mistake_replaced_is_named_and_comes_back_with_its_file(
    platform: Platform, tmp_path: Path
) -> None:
    right = write_csv(tmp_path / "right.csv", [usage(1, **FLIGHTS)])
    old = take(platform, right)
    mistake = take(platform, write_csv(tmp_path / "mistake.csv", [usage(1, EffectiveCost="99", **FLIGHTS)]))
    again = take(platform, right)
    assert again.restored == ()  # what replaced it counts
    assert f"macadam cost withdraw {mistake.bills[0].id}" in again.notes[-1].what
    assert not any("counts instead" in note.what for note in take(platform, tmp_path / "mistake.csv").notes)
    assert withdraw(platform, mistake.bills[0]) == (old.bills[0].id,)
    assert spent(platform) == ()
    assert take(platform, right).restored == (old.bills[0].id,)
    assert spent(platform) == (Money(micros=10_000_000),)
    assert take(platform, tmp_path / "mistake.csv").restored == ()  # or its time would count twice
    assert spent(platform) == (Money(micros=10_000_000),)


def test_budgets_are_reckoned_anew_and_warn_again_if_it_comes_back(platform: Platform, tmp_path: Path) -> None:
    platform.call(SetBudget(project="flights", amount="15", currency="USD"))
    path = write_csv(tmp_path / "bill.csv", [usage(1, **FLIGHTS, EffectiveCost="15", BilledCost="15")])
    (bill,) = take(platform, path).bills
    raised = {(a.kind, a.threshold) for a in platform.call(ListAlerts(project="flights"))}
    assert ("actual", 100) in raised
    found = platform.call(WithdrawBill(bill=bill.id, reason="twice"))
    assert found.cleared == len(raised)
    assert platform.call(ListAlerts(project="flights")) == ()
    (state,) = platform.call(ListBudgets(project="flights"))
    assert state.spent.micros == 0
    take(platform, path)
    assert {(a.kind, a.threshold) for a in platform.call(ListAlerts(project="flights"))} == raised


def test_an_alert_gives_way_to_a_correction_and_to_other_rules_and_is_raised_again(
    platform: Platform, tmp_path: Path
) -> None:
    platform.call(SetBudget(project="flights", amount="15", currency="USD"))

    def raised(cost: str) -> bool:
        row = usage(1, **FLIGHTS, EffectiveCost=cost, BilledCost=cost)
        take(platform, write_csv(tmp_path / f"{cost}.csv", [row]))
        return bool(platform.call(ListAlerts(project="flights")))

    assert [raised(cost) for cost in ("15", "1", "15.5")] == [True, False, True]
    back = [leaf for leaf in platform.call(ShowLog(subject="budget:flights")).entries if leaf.body.get("taken_back")]
    assert back
    platform.call(MapCharges(tag_keys=("team",)))
    assert platform.call(ListAlerts(project="flights")) == ()
    platform.call(MapCharges(tag_keys=("project",)))
    assert platform.call(ListAlerts(project="flights"))


def test_an_auditor_sees_bills_and_withdraws_none(platform: Platform, tmp_path: Path) -> None:
    (bill,) = take(platform, write_csv(tmp_path / "bill.csv", [usage(1)])).bills
    token = token_of(platform, "ann", {"*": "auditor"})
    assert platform.call(ListBills(), token=token)
    with pytest.raises(NotAuthorised):
        platform.call(WithdrawBill(bill=bill.id, reason="not mine to do"), token=token)


def test_one_account_in_two_currencies_is_two_bills_whichever_came_first(platform: Platform, tmp_path: Path) -> None:
    dollars = take(platform, write_csv(tmp_path / "usd.csv", [usage(1, **FLIGHTS)]))
    euros = take(platform, write_csv(tmp_path / "eur.csv", [usage(1, **FLIGHTS, BillingCurrency="EUR")]))
    assert (dollars.replaced, euros.replaced) == ((), ())
    assert any("USD stay beside" in note.what and dollars.bills[0].id in note.what for note in euros.notes)
    both = (Money(micros=10_000_000, currency="EUR"), Money(micros=10_000_000, currency="USD"))
    assert spent(platform) == both
    anew = [usage(1, **FLIGHTS, BillingCurrency="EUR", EffectiveCost="8")]
    assert take(platform, write_csv(tmp_path / "anew.csv", anew)).replaced == (euros.bills[0].id,)
    assert spent(platform) == (Money(micros=8_000_000, currency="EUR"), both[1])


ONE_BILL = st.tuples(st.sampled_from("ab"), st.sampled_from((9, 10)), st.sampled_from(("USD", "EUR", "JPY")))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bills=st.lists(ONE_BILL, min_size=1, max_size=6, unique=True), data=st.data())
def test_any_order_of_deliveries_gives_the_same_totals_for_each_currency(
    bills: list[tuple[str, int, str]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("deliveries")
    part = {bill: data.draw(st.integers(0, 2)) for bill in bills}
    expected: dict[str, Decimal] = defaultdict(Decimal)
    deliveries = defaultdict(list)
    for number, bill in enumerate(bills, start=1):
        account, month, currency = bill
        period = {"BillingPeriodStart": f"2026-{month:02}-01T00:00:00Z"}
        period |= {"BillingPeriodEnd": f"2026-{month + 1:02}-01T00:00:00Z"}
        period |= {
            "ChargePeriodStart": f"2026-{month:02}-03T05:00:00Z",
            "ChargePeriodEnd": f"2026-{month:02}-03T06:00:00Z",
        }
        row = usage(number, BillingAccountId=account, BillingCurrency=currency, EffectiveCost=str(number), **period)
        deliveries[part[bill]].append(row)
        expected[currency] += number
    order = data.draw(st.permutations(sorted(deliveries)))
    with open_platform(clock=Clock(NOW)) as platform:
        for number in order:
            take(platform, write_csv(folder / f"{number}.csv", deliveries[number]), split=True)
        found: dict[str, Decimal] = defaultdict(Decimal)
        for bill in platform.call(ListBills()):
            found[bill.currency] += Decimal(bill.effective)
    assert found == expected
