"""Months whose answer is known on paper: what was paid, what was used, and what was paid for nothing, counted once each.

FOCUS 1.0 to 1.3: BilledCost is the invoice's view and EffectiveCost the amortised one; a commitment's purchase has no effective
cost, as the usage that it covers carries its share, and what nobody used of it is usage with the status Unused.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.compute.billing.bills import usage, write_csv
from unit.compute.waterfall.clusters import table

from macadam.app.platform import Platform
from macadam.compute.billing import store
from macadam.compute.billing.types import Bill, ImportBill
from macadam.compute.waterfall import cascade
from macadam.errors import ChecksFailed
from macadam.testing import Clock, open_platform

NOW = datetime(2027, 1, 10, tzinfo=UTC)
PLAN = {"CommitmentDiscountId": "plan-1"}
MONTH = {"ChargePeriodStart": "2026-10-01T00:00:00Z", "ChargePeriodEnd": "2026-11-01T00:00:00Z"}
Row = dict[str, str]


@pytest.fixture
def platform() -> Iterator[Platform]:
    with open_platform(clock=Clock(NOW)) as opened:
        yield opened


def bought(billed: str, frequency: str = "One-Time", **changed: str) -> Row:
    """A commitment's price, which the usage below amortises."""
    money = {"BilledCost": billed, "EffectiveCost": "0", "ChargeFrequency": frequency}
    return usage(0, ChargeCategory="Purchase", ConsumedQuantity="", **MONTH, **PLAN, **money) | changed


def covered(effective: str, status: str = "Used", **changed: str) -> Row:
    money = {"BilledCost": "0", "EffectiveCost": effective, "PricingCategory": "Committed"}
    nobody = {"ConsumedQuantity": "", "ResourceId": "plan-1"} if status == "Unused" else {}
    return usage(1, **PLAN, CommitmentDiscountStatus=status, **money) | nobody | changed


def other(category: str, amount: str, **changed: str) -> Row:
    both = {"BilledCost": amount, "EffectiveCost": amount, "ConsumedQuantity": "", "ResourceId": ""}
    return usage(2, ChargeCategory=category, **both) | changed


def told(platform: Platform, tmp_path: Path, rows: Sequence[Row], **options: object) -> tuple[Bill, dict[str, Decimal]]:
    """The bill, and the waterfall's steps of it where nothing was seen, both as decimal amounts."""
    path = write_csv(tmp_path / "bill.csv", rows)
    (bill,) = platform.call(ImportBill(path=str(path), **options)).bills  # type: ignore[arg-type] # each test's own
    with platform.ports.sql.read() as sql:
        charges = list(store.current(sql, platform.ports.objects))
    (found,) = cascade.waterfalls(cascade.spread(charges, table()))
    return bill, {line.step: Decimal(line.amount.micros) / 1_000_000 for line in found.lines}


@pytest.mark.parametrize(
    ("paid", "billed"),
    [
        ([bought("8760")], "8760.00"),
        ([bought("744", "Recurring")], "744.00"),
        ([bought("4380"), bought("372", "Recurring")], "4752.00"),
    ],
    ids=["all upfront", "no upfront", "partial upfront"],
)
def test_a_commitment_is_amortised_once_however_it_was_paid(
    platform: Platform, tmp_path: Path, paid: list[Row], billed: str
) -> None:
    bill, steps = told(platform, tmp_path, [*paid, covered("600"), covered("144", "Unused")])
    assert (bill.billed, bill.effective, bill.unused) == (billed, "744.00", "144.00")
    assert steps["unused"] == 144
    assert steps.get("purchase", Decimal(0)) == 0
    assert sum(steps.values()) == 744


def test_on_demand_taxes_credits_adjustments_and_other_purchases_stand_beside_it(
    platform: Platform, tmp_path: Path
) -> None:
    rows = [
        bought("744", "Recurring"),
        covered("600"),
        covered("144", "Unused"),
        usage(5, BilledCost="200", EffectiveCost="200"),
    ]
    rows += [other("Tax", "70"), other("Credit", "-100"), other("Adjustment", "-3"), other("Purchase", "30")]
    bill, steps = told(platform, tmp_path, rows)
    assert (bill.billed, bill.effective, bill.unused) == ("941.00", "941.00", "144.00")
    lines = {name: steps[name] for name in ("unused", "tax", "credit", "adjustment", "purchase")}
    assert lines == {"unused": 144, "tax": 70, "credit": -100, "adjustment": -3, "purchase": 30}
    assert sum(steps.values()) == 941


def test_a_refund_corrects_the_view_that_it_belongs_to(platform: Platform, tmp_path: Path) -> None:
    corrected = {"ChargeClass": "Correction"}
    rows = [bought("744", "Recurring"), covered("600"), covered("144", "Unused")]
    rows += [bought("-50", "Recurring", **corrected)]  # the invoice gets less
    rows += [covered("-6", **corrected), covered("-44", "Unused", **corrected)]  # and so does what it is spread over
    bill, steps = told(platform, tmp_path, rows)
    assert (bill.billed, bill.effective, bill.unused) == ("694.00", "694.00", "100.00")
    assert steps["unused"] == 100
    assert sum(steps.values()) == 694


def test_a_refund_of_a_purchase_that_also_lowers_the_effective_cost_is_refused(
    platform: Platform, tmp_path: Path
) -> None:
    row = bought("-50", ChargeClass="Correction", EffectiveCost="-50")
    with pytest.raises(ChecksFailed, match="count twice"):
        told(platform, tmp_path, [row, covered("600")])


def test_reserved_capacity_that_a_commitment_pays_for_and_nobody_uses_is_unused_once(
    platform: Platform, tmp_path: Path
) -> None:
    idle = {"CapacityReservationId": "cr-1", "CapacityReservationStatus": "Unused", "ConsumedQuantity": ""}
    rows = [bought("744"), covered("500"), covered("100", **idle), covered("144", "Unused", **idle)]
    bill, steps = told(platform, tmp_path, rows)
    assert (bill.effective, bill.unused, steps["unused"]) == ("744.00", "244.00", 244)


def test_a_credit_that_calls_itself_unused_is_a_credit_in_the_bill_and_in_the_waterfall(
    platform: Platform, tmp_path: Path
) -> None:
    odd = other("Credit", "-20", CommitmentDiscountStatus="Unused", **PLAN)
    bill, steps = told(platform, tmp_path, [covered("10"), covered("5", "Unused"), odd], lenient=True)
    assert (bill.effective, bill.unused) == ("-5.00", "5.00")
    assert (steps["unused"], steps["credit"]) == (5, -20)


def test_over_its_whole_term_what_was_paid_is_what_was_amortised(platform: Platform, tmp_path: Path) -> None:
    for month in (10, 11, 12):
        first, last = (
            f"2026-{month}-01T00:00:00Z",
            f"2026-{month + 1}-01T00:00:00Z" if month < 12 else "2027-01-01T00:00:00Z",
        )
        when = {
            "BillingPeriodStart": first,
            "BillingPeriodEnd": last,
            "ChargePeriodStart": first,
            "ChargePeriodEnd": last,
        }
        rows = [covered("7", **when), covered("3", "Unused", **when)]
        if month == 10:
            rows.append(bought("30", **when | {"ChargePeriodEnd": "2027-01-01T00:00:00Z"}))
        platform.call(ImportBill(path=str(write_csv(tmp_path / f"{month}.csv", rows))))
    with platform.ports.sql.read() as sql:
        bills = [one.bill for one in store.stored(sql)]
    assert sum(Decimal(bill.billed) for bill in bills) == sum(Decimal(bill.effective) for bill in bills) == 30
    assert sum(Decimal(bill.unused) for bill in bills) == 9


AMOUNT = st.integers(0, 10**6).map(lambda n: str(Decimal(n) / 1000))
ROW = st.one_of(
    st.builds(bought, AMOUNT),
    st.builds(covered, AMOUNT, st.sampled_from(("Used", "Unused"))),
    st.builds(lambda a, s: covered(f"-{a}", s, ChargeClass="Correction"), AMOUNT, st.sampled_from(("Used", "Unused"))),
    st.builds(lambda a, c: other(c, a), AMOUNT, st.sampled_from(("Tax", "Adjustment", "Purchase"))),
    st.builds(lambda a: other("Credit", f"-{a}"), AMOUNT),
    st.builds(lambda a: usage(9, BilledCost=a, EffectiveCost=a), AMOUNT),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, min_size=1, max_size=12))
def test_bill_and_waterfall_agree_on_what_was_used_and_what_was_not(
    rows: list[Row], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("month")
    with open_platform(clock=Clock(NOW)) as platform:
        bill, steps = told(platform, folder, rows, copies="keep")
    assert sum(steps.values()) == Decimal(bill.effective) == sum(Decimal(row["EffectiveCost"]) for row in rows)
    assert Decimal(bill.billed) == sum(Decimal(row["BilledCost"]) for row in rows)
    assert steps.get("unused", Decimal(0)) == Decimal(bill.unused)
    for name in ("tax", "credit", "adjustment", "purchase"):
        said = Decimal(bill.by_category[name].effective) if name in bill.by_category else Decimal(0)
        assert steps.get(name, Decimal(0)) == said
