"""Bills: what is taken, what is refused and why, and that every sum is the bill's own."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from databases import KINDS, environment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.compute.billing.bills import USAGE, Row, usage, write_csv, write_parquet

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.compute.billing import budgets, reading, store
from macadam.compute.billing.budget_types import ListAlerts, ListBudgets, SetBudget
from macadam.compute.billing.types import (
    CheckBill,
    Delivery,
    ImportBill,
    ListBills,
    ListCharges,
    ListUnattributed,
    MapCharges,
    Rule,
    ShowBill,
    ShowMapping,
)
from macadam.errors import ChecksFailed, Conflict, InvalidInput, MacadamError, NotAuthorised, SourceInvalid, TooLarge
from macadam.ledger.types import ShowLog
from macadam.testing import Clock, open_platform, token_of
from macadam.values import Money

EXAMPLES = Path(__file__).parents[4].parent / "shared" / "data" / "billing"
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture(scope="module", params=KINDS)
def shared_platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    with open_platform(environment=environment(request.param), clock=Clock(NOW)) as opened:
        for project in ("flights", "trains"):
            opened.call(CreateProject(project=project))
        yield opened


@pytest.fixture
def platform() -> Iterator[Platform]:
    with open_platform(clock=Clock(NOW)) as opened:
        for project in ("flights", "trains"):
            opened.call(CreateProject(project=project))
        yield opened


@pytest.fixture(scope="module")
def untouched() -> Iterator[Platform]:
    """Of tests in which nothing may be taken."""
    with open_platform(clock=Clock(NOW)) as opened:
        yield opened
        assert opened.call(ListBills(all=True)) == ()


def take(platform: Platform, path: Path, **options: object) -> Delivery:
    return platform.call(ImportBill(path=str(path), **options))  # type: ignore[arg-type] # each test's own


def dollars(amount: float) -> Money:
    return Money(micros=round(amount * 1_000_000))


def refusal(platform: Platform, path: Path, **options: object) -> ChecksFailed:
    with pytest.raises(ChecksFailed) as caught:
        take(platform, path, **options)
    assert platform.call(ListBills()) == ()
    return caught.value


# What is taken


def test_a_bill_is_stored_with_its_exact_sums_and_a_leaf(shared_platform: Platform, tmp_path: Path) -> None:
    rows = [usage(n, BilledCost=f"0.0000000{n}", EffectiveCost="0.333333333333333333") for n in range(1, 10)]
    rows = [row | {"BillingAccountId": "exact"} for row in rows]
    delivery = take(shared_platform, write_csv(tmp_path / "bill.csv", rows))
    (bill,) = delivery.bills
    assert (bill.billed, bill.effective) == ("0.00000045", "2.999999999999999997")
    assert bill.effective_micros == 3_000_000
    assert bill.by_category["usage"].charges == 9
    (entry,) = shared_platform.call(ShowLog(subject=f"delivery:{delivery.id}")).entries
    assert entry.body["totals"] == {"USD": {"billed": "0.00000045", "effective": "2.999999999999999997"}}
    assert entry.body["originals"] == [delivery.originals["bill.csv"]]
    assert shared_platform.ports.objects.get(delivery.originals["bill.csv"]) == (tmp_path / "bill.csv").read_bytes()


def test_the_same_files_twice_are_one_delivery(shared_platform: Platform, tmp_path: Path) -> None:
    rows = [usage(n, BillingAccountId="twice") for n in range(5)]
    first = take(shared_platform, write_csv(tmp_path / "bill.csv", rows))
    again = take(shared_platform, tmp_path / "bill.csv")
    assert again.repeated
    assert again.id == first.id
    shuffled = write_csv(tmp_path / "other.csv.gz", rows[::-1])
    assert take(shared_platform, shuffled).id == first.id
    again_and_again = shared_platform.call(ShowLog(subject=f"delivery:{first.id}")).entries
    assert [entry.body.get("repeated") for entry in again_and_again] == [1, 1, None]
    assert len([b for b in shared_platform.call(ListBills()) if b.account == "twice"]) == 1


def test_a_corrected_bill_replaces_the_old_one_which_is_kept(shared_platform: Platform, tmp_path: Path) -> None:
    tagged = {"BillingAccountId": "corrected", "Tags": '{"project": "trains"}'}
    old = take(shared_platform, write_csv(tmp_path / "old.csv", [usage(1, **tagged)]))
    new = take(shared_platform, write_csv(tmp_path / "new.csv", [usage(1, **tagged | {"EffectiveCost": "7.50"})]))
    assert new.replaced == (old.bills[0].id,)
    assert any("one folder" in note.what for note in new.notes)
    current = [b for b in shared_platform.call(ListBills()) if b.account == "corrected"]
    assert [b.effective for b in current] == ["7.50"]
    every = {b.id: b for b in shared_platform.call(ListBills(all=True))}
    assert every[old.bills[0].id].replaced_by == new.id
    assert shared_platform.call(ShowBill(bill=old.bills[0].id)).by_project == {}
    assert shared_platform.call(ShowBill(bill=new.bills[0].id)).by_project == {"trains": dollars(7.5)}
    late = take(shared_platform, tmp_path / "old.csv")  # the old delivery once more, late
    assert late.repeated
    assert late.bills[0].replaced_by == new.id


def period(first: str, last: str, **changed: str) -> dict[str, str]:
    return usage(1, BillingPeriodStart=f"{first}T00:00:00Z", BillingPeriodEnd=f"{last}T00:00:00Z", **changed)


def test_time_that_is_in_two_billing_periods_of_an_account_is_not_counted_twice(
    platform: Platform, tmp_path: Path
) -> None:
    both = [period("2026-10-01", "2026-11-01"), period("2026-10-01", "2026-10-16", ConsumedQuantity="2")]
    assert "another ends" in refusal(platform, write_csv(tmp_path / "both.csv", both)).what
    take(platform, write_csv(tmp_path / "half.csv", [period("2026-10-01", "2026-10-16")]))
    shifted = write_csv(tmp_path / "shifted.csv", [period("2026-10-02", "2026-11-02")])
    with pytest.raises(Conflict, match="count twice"):
        take(platform, shifted)
    take(platform, write_csv(tmp_path / "another.csv", [period("2026-10-02", "2026-11-02", BillingAccountId="7")]))
    (whole,) = take(platform, write_csv(tmp_path / "whole.csv", [period("2026-09-30", "2026-11-01")])).bills
    assert {bill.id for bill in platform.call(ListBills()) if bill.account == "1234"} == {whole.id}


def test_parts_of_a_delivery_in_a_folder_are_one_bill(platform: Platform, tmp_path: Path) -> None:
    folder = tmp_path / "delivery"
    folder.mkdir()
    write_csv(folder / "part-1.csv", [usage(1)])
    write_csv(folder / "part-2.csv.gz", [usage(2)])
    delivery = take(platform, folder)
    assert [b.charges for b in delivery.bills] == [2]
    assert set(delivery.originals) == {"part-1.csv", "part-2.csv.gz"}


def test_parquet_says_the_same_as_csv(platform: Platform, tmp_path: Path) -> None:
    rows = [usage(n, EffectiveCost=f"{n}.125", Tags='{"project": "flights"}') for n in range(3)]
    delivery = take(platform, write_parquet(tmp_path / "bill.parquet", rows))
    assert delivery.bills[0].effective == "3.375"
    assert platform.call(ListCharges(project="flights")).effective == (Money(micros=3_375_000, currency="USD"),)
    charge = platform.call(ListCharges(project="flights")).charges[0]
    assert (charge.start, charge.end) == (datetime(2026, 10, 3, 5, tzinfo=UTC), datetime(2026, 10, 3, 6, tzinfo=UTC))


def test_periods_accounts_and_issuers_are_bills_of_their_own(platform: Platform, tmp_path: Path) -> None:
    september = {"BillingPeriodStart": "2026-09-01T00:00:00Z", "BillingPeriodEnd": "2026-10-01T00:00:00Z"}
    september |= {"ChargePeriodStart": "2026-09-03T05:00:00Z", "ChargePeriodEnd": "2026-09-03T06:00:00Z"}
    rows = [usage(1), usage(2, **september), usage(3, BillingAccountId="other"), usage(4, InvoiceIssuerName="Reseller")]
    assert len(take(platform, write_csv(tmp_path / "bill.csv", rows)).bills) == 4


def test_two_currencies_are_never_one_sum(platform: Platform, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bill.csv", [usage(1), usage(2, BillingCurrency="EUR", Tags='{"project":"flights"}')])
    assert "EUR, USD" in refusal(platform, path).what
    delivery = take(platform, path, split=True)
    assert sorted((b.currency, b.effective) for b in delivery.bills) == [("EUR", "10.00"), ("USD", "10.00")]
    assert platform.call(ListCharges(project="flights")).effective == (Money(micros=10_000_000, currency="EUR"),)


def test_a_currency_is_filled_in_only_where_there_is_none_and_somebody_asks(platform: Platform, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bill.csv", [usage(1), usage(2, BillingCurrency="")])
    assert "BillingCurrency" in refusal(platform, path, currency="USD").what
    delivery = take(platform, path, currency="USD", lenient=True)
    assert [(b.currency, b.effective) for b in delivery.bills] == [("USD", "20.00")]
    assert [note.rows for note in delivery.notes if "taken as USD" in note.what] == [1]


def test_a_purchase_is_not_added_to_the_usage_that_it_pays_for(platform: Platform, tmp_path: Path) -> None:
    paid = usage(0, ChargeCategory="Purchase", BilledCost="100", EffectiveCost="0", CommitmentDiscountId="sp-1")
    paid |= {"ChargeFrequency": "One-Time"}
    committed = {"CommitmentDiscountId": "sp-1", "PricingCategory": "Committed", "BilledCost": "0"}
    used = usage(1, **committed, EffectiveCost="60", CommitmentDiscountStatus="Used")
    unused = usage(2, **committed, EffectiveCost="40", CommitmentDiscountStatus="Unused", ConsumedQuantity="")
    (bill,) = take(platform, write_csv(tmp_path / "bill.csv", [paid, used, unused])).bills
    assert (bill.billed, bill.effective, bill.unused) == ("100.00", "100.00", "40.00")
    twice = write_csv(tmp_path / "twice.csv", [paid | {"EffectiveCost": "100", "BillingAccountId": "2"}, used])
    with pytest.raises(ChecksFailed, match="count twice"):
        take(platform, twice)


def test_unknown_columns_are_kept_with_the_charges(platform: Platform, tmp_path: Path) -> None:
    columns = (*USAGE, "x_Cluster", "Surprise", "tags_extra")
    delivery = take(platform, write_csv(tmp_path / "bill.csv", [usage(1, x_Cluster="a", Surprise="=1+1")], columns))
    assert set(delivery.unknown) == {"x_Cluster", "Surprise", "tags_extra"}
    with platform.ports.sql.read() as sql:
        (one,) = store.stored(sql)
    rows = store.table(platform.ports.objects, one, ["id", "x_Cluster", "Surprise"]).to_pylist()
    assert [(r["x_Cluster"], r["Surprise"]) for r in rows] == [("a", "=1+1")]


def test_blank_lines_nulls_written_out_and_a_byte_order_mark_are_no_values(platform: Platform, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bill.csv", [usage(1, Tags="null", SkuId="NULL"), usage(2)])
    text = path.read_text()
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n\r\n").encode())
    assert take(platform, path).rows == 2
    assert {c.sku for c in platform.call(ListUnattributed()).charges} == {"", "SKU"}


@pytest.mark.parametrize(
    ("name", "billed", "effective", "unused"),
    [
        ("commitment_discount_purchase_scenario_1.csv", "8760.00", "0.00", "0.00"),
        ("commitment_discount_usage_scenario_1.csv", "0.00", "1.00", "0.00"),
        ("zero_percent_utilization_without_commitment_discount_flexibility.csv", "3.50", "3.50", "1.50"),
    ],
)
@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="FOCUS's own examples are not beside this project")
def test_focus_own_examples_are_taken_as_the_excerpts_that_they_are(
    shared_platform: Platform, name: str, billed: str, effective: str, unused: str
) -> None:
    with pytest.raises(InvalidInput, match="--currency"):
        take(shared_platform, EXAMPLES / name)
    with pytest.raises(InvalidInput, match="--lenient"):
        take(shared_platform, EXAMPLES / name, currency="USD")
    delivery = take(shared_platform, EXAMPLES / name, currency="USD", lenient=True)
    (bill,) = delivery.bills
    assert (bill.billed, bill.effective, bill.unused) == (billed, effective, unused)
    assert "BillingAccountId" in delivery.missing
    assert bill.account == name


# What is refused


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("BilledCost", "12,50", "a decimal number"),
        ("BilledCost", "$12", "a decimal number"),
        ("BilledCost", "NaN", "a decimal number"),
        ("BilledCost", "inf", "a decimal number"),
        ("BilledCost", "+1", "a decimal number"),
        ("EffectiveCost", "1e13", "a decimal number"),
        ("EffectiveCost", "", "a value"),
        ("EffectiveCost", "null", "a value"),
        ("EffectiveCost", "-1", "outside of credits and corrections"),
        ("ConsumedQuantity", "-1", "outside of credits and corrections"),
        ("BillingCurrency", "usd", "ISO 4217"),
        ("BillingCurrency", "", "a value"),
        ("ChargeCategory", "Gift", "one of Usage, Purchase"),
        ("ChargeClass", "Refund", "one of Correction"),
        ("PricingCategory", "On-Demand", "one of Standard"),
        ("CommitmentDiscountStatus", "used", "one of Used, Unused"),
        ("ChargePeriodStart", "2026-10-03T05:00:00", "UTC such as"),
        ("ChargePeriodStart", "2026-10-03T05:00:00 CET", "UTC such as"),
        ("ChargePeriodStart", "03.10.2026", "UTC such as"),
        ("ChargePeriodStart", "2026-13-03T05:00:00Z", "UTC such as"),
        ("ChargePeriodEnd", "2026-10-03T05:00:00Z", "later than ChargePeriodStart"),
        ("BillingPeriodEnd", "2026-10-01T00:00:00Z", "later than BillingPeriodStart"),
        ("ServiceName", "", "a value"),
        ("Tags", "project=flights", "a JSON object"),
        ("Tags", '["flights"]', "a JSON object"),
        ("Tags", "x" * (reading.MAX_CELL + 1), "at most"),
        ("ResourceId", "i-1\x1b[31m", "no control characters"),
    ],
)
def test_a_refused_cell_is_named_with_its_line_and_what_was_expected(
    untouched: Platform, tmp_path: Path, column: str, value: str, said: str
) -> None:
    path = write_csv(tmp_path / "bill.csv", [usage(1), usage(2), usage(3, **{column: value}), usage(4)])
    error = refusal(untouched, path)
    problems = error.details["problems"]
    assert isinstance(problems, list)
    assert (problems[0]["file"], problems[0]["line"], problems[0]["column"]) == ("bill.csv", 4, column)
    assert said in problems[0]["expected"]
    assert "bill.csv, line 4" in error.what


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ChargePeriodStart": "2026-08-03T05:00:00Z", "ChargePeriodEnd": "2026-08-03T06:00:00Z"}, "billing period"),
        (
            {
                "BillingPeriodStart": "2027-10-01T00:00:00Z",
                "BillingPeriodEnd": "2027-11-01T00:00:00Z",
                "ChargePeriodStart": "2027-10-03T05:00:00Z",
                "ChargePeriodEnd": "2027-10-03T06:00:00Z",
            },
            "not in the future",
        ),
        ({"ChargePeriodStart": "2006-10-03T05:00:00Z", "ChargeClass": "Correction"}, "at most 3700 days"),
        ({"CommitmentDiscountStatus": "Unused"}, "CommitmentDiscountStatus has one"),
        (
            {"ChargeCategory": "Tax", "CommitmentDiscountStatus": "Used", "CommitmentDiscountId": "c"},
            "outside of usage",
        ),
    ],
)
def test_columns_that_contradict_each_other_are_refused(
    untouched: Platform, tmp_path: Path, changed: Row, said: str
) -> None:
    assert said in refusal(untouched, write_csv(tmp_path / "bill.csv", [usage(1, **changed)])).what


def test_what_a_correction_or_a_credit_may_say_is_taken(platform: Platform, tmp_path: Path) -> None:
    back = {"BilledCost": "-4", "EffectiveCost": "-4"}
    august = {"ChargePeriodStart": "2026-08-03T05:00:00Z", "ChargePeriodEnd": "2026-08-03T06:00:00Z"}
    rows = [
        usage(1),
        usage(2, ChargeCategory="Credit", **back),
        usage(3, ChargeClass="Correction", ConsumedQuantity="-1", **back, **august),
        usage(4, ChargeCategory="Tax", BilledCost="1.9", EffectiveCost="1.9"),
    ]
    (bill,) = take(platform, write_csv(tmp_path / "bill.csv", rows)).bills
    assert bill.effective == "3.90"
    assert bill.by_category["credit"].effective == "-4.00"


def test_lines_are_told_right_beside_blank_lines_and_line_breaks_in_values(untouched: Platform, tmp_path: Path) -> None:
    path = tmp_path / "bill.csv"
    write_csv(path, [usage(1, ChargeDescription="two\nlines"), usage(2), usage(3, BilledCost="?")])
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0], "", *lines[1:]]))
    problems = refusal(untouched, path).details["problems"]
    assert isinstance(problems, list)
    assert [p["line"] for p in problems] == [6]


def test_rows_of_a_wrong_width_are_refused_with_their_lines(untouched: Platform, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bill.csv", [usage(1), usage(2), usage(3)])
    lines = path.read_text().splitlines()
    lines[2] += ",more"
    lines[3] = "1,2"
    path.write_text("\n".join(lines))
    problems = refusal(untouched, path).details["problems"]
    assert isinstance(problems, list)
    assert [(p["line"], p["got"]) for p in problems] == [(3, f"{len(USAGE) + 1} values"), (4, "2 values")]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_a_row_of_a_wrong_width_is_refused_whatever_ends_lines(untouched: Platform, tmp_path: Path, ends: str) -> None:
    path = write_csv(tmp_path / "bill.csv", [usage(1), usage(2), usage(3)])
    lines = path.read_text().splitlines()
    lines[2] = lines[2].rpartition(",")[0]
    path.write_bytes((ends.join(lines) + ends).encode())
    problems = refusal(untouched, path).details["problems"]
    assert isinstance(problems, list)
    assert [(p["line"], p["got"]) for p in problems] == [(3, f"{len(USAGE) - 1} values")]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("closed", [False, True])
def test_a_quotation_mark_that_swallows_the_rows_after_it_is_refused(
    untouched: Platform, tmp_path: Path, ends: str, *, closed: bool
) -> None:
    columns = [*USAGE, "x_note"]
    rows = [usage(n) | {"x_note": "fine"} for n in range(1, 6)]
    path = write_csv(tmp_path / "bill.csv", rows, columns)
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace("fine", '"not fine')
    if closed:
        lines[4] = lines[4].replace("fine", '"q"')
    path.write_bytes((ends.join(lines) + ends).encode())
    problems = refusal(untouched, path).details["problems"]
    assert isinstance(problems, list)
    assert [(p["line"], p["got"]) for p in problems] == [(3, "a quotation mark that nothing closes")]


def test_copies_of_a_row_are_refused_unless_somebody_says_what_they_are(platform: Platform, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bill.csv", [usage(1), usage(2), usage(1), usage(1)])
    error = refusal(platform, path)
    assert error.details["refused"] == 2
    assert "line 4" in error.what
    kept = take(platform, path, copies="keep")
    assert (kept.rows, kept.bills[0].effective) == (4, "40.00")
    charges = platform.call(ListUnattributed()).charges
    assert len({c.id for c in charges}) == 4
    dropped = take(platform, path, copies="drop")
    assert (dropped.rows, dropped.dropped, dropped.bills[0].effective) == (2, 2, "20.00")
    assert dropped.replaced == (kept.bills[0].id,)


def test_all_refused_rows_are_counted_and_checking_reports_them_without_taking_anything(
    untouched: Platform, tmp_path: Path
) -> None:
    rows = [usage(n, BilledCost="x" if n % 2 else "1") for n in range(3000)]
    path = write_csv(tmp_path / "bill.csv", rows)
    assert refusal(untouched, path).details["refused"] == 1500
    report = untouched.call(CheckBill(path=str(path)))
    assert (report.rows, report.refused, len(report.problems)) == (3000, 1500, 1000)
    assert [p.line for p in report.problems[:3]] == [3, 5, 7]
    assert untouched.call(ListBills()) == ()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n",
        b"PAR1 and nothing else",
        b"\x1f\x8bbroken",
        b"\xff\xfe\x00",
        b"just,some,columns\n1,2,3\n",
        b"%PDF-1.7\n",
        (",".join(USAGE) + "\n").encode(),
        b"BilledCost,billedcost\n1,2\n",
        (",".join(f"c{n}" for n in range(600)) + "\n").encode(),
    ],
)
def test_what_is_no_bill_is_refused_in_words(untouched: Platform, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bill.csv"
    path.write_bytes(data)
    with pytest.raises(MacadamError) as caught:
        take(untouched, path)
    assert caught.value.next_step
    assert untouched.call(ListBills()) == ()
    assert list((untouched.ports.settings.home / "tmp").iterdir()) == []


def test_a_bill_that_unpacks_to_too_much_is_refused(
    untouched: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_csv(tmp_path / "bill.csv.gz", [usage(n, ChargeDescription="a" * 1000) for n in range(100)])
    monkeypatch.setattr(reading, "MAX_BYTES", 50_000)
    with pytest.raises(TooLarge):
        take(untouched, path)


def test_parquet_that_says_a_long_text_once_for_many_rows_is_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_BATCH", 2**20)
    path = write_parquet(tmp_path / "bill.parquet", [usage(n, ChargeDescription="x" * 60_000) for n in range(100)])
    layout = reading.look(path)
    sizes = [batch.num_rows for batch in reading.batches(layout, lambda: None)]
    assert sum(sizes) == 100
    assert max(sizes) <= 2**20 // 60_000
    monkeypatch.setattr(reading, "MAX_BYTES", 3 * 2**20)
    with pytest.raises(TooLarge):
        list(reading.batches(layout, lambda: None))


def test_a_file_cut_off_in_its_middle_is_refused(untouched: Platform, tmp_path: Path) -> None:
    whole = write_csv(tmp_path / "bill.csv.gz", [usage(n) for n in range(2000)]).read_bytes()
    (tmp_path / "bill.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceInvalid):
        take(untouched, tmp_path / "bill.csv.gz")
    parquet = write_parquet(tmp_path / "bill.parquet", [usage(1)]).read_bytes()
    (tmp_path / "bill.parquet").write_bytes(parquet[:-20])
    with pytest.raises(SourceInvalid):
        take(untouched, tmp_path / "bill.parquet")


def test_the_homes_own_files_and_files_that_are_not_there_are_no_bills(untouched: Platform, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        take(untouched, untouched.ports.settings.home / "keys")
    with pytest.raises(SourceInvalid):
        take(untouched, tmp_path / "missing.csv")


def test_a_link_in_a_folder_leads_to_no_file_of_the_home(platform: Platform, tmp_path: Path) -> None:
    inside = write_csv(platform.ports.settings.home / "inside.csv", [usage(1)])
    (tmp_path / "bills").mkdir()
    (tmp_path / "bills" / "link.csv").symlink_to(inside)
    with pytest.raises(InvalidInput, match="in the platform's home"):
        take(platform, tmp_path / "bills")


def test_no_more_of_a_file_is_copied_than_may_be_read(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_BYTES", 2 * 2**20)
    path = tmp_path / "bill.csv"
    path.write_bytes(b"x" * 4 * 2**20)
    with pytest.raises(TooLarge, match="more than 2097152 bytes"):
        take(platform, path)


def test_versions_are_told_by_their_columns_or_declared(platform: Platform, tmp_path: Path) -> None:
    assert take(platform, write_csv(tmp_path / "a.csv", [usage(1)])).version == "1.1"
    newest = (*USAGE, "ServiceProviderName", "HostProviderName")
    row = usage(2, ServiceProviderName="AWS", HostProviderName="AWS")
    assert take(platform, write_csv(tmp_path / "b.csv", [row], newest)).version == "1.3"
    without = [c for c in newest if c not in ("ProviderName", "PublisherName")]  # 1.3 has them no longer
    assert take(platform, write_csv(tmp_path / "c.csv", [row | {"ResourceId": "i-9"}], without)).version == "1.3"
    with pytest.raises(InvalidInput, match="HostProviderName"):
        take(platform, write_csv(tmp_path / "d.csv", [usage(3)]), version="1.3")


# GPUs


@pytest.mark.parametrize(
    ("row", "model", "gpus"),
    [
        ({"SkuPriceDetails": '{"InstanceType": "p5.48xlarge", "GpuCount": 8}'}, "h100-sxm-80gb", 8),
        ({"SkuPriceDetails": '{"InstanceType": "p4d.24xlarge"}'}, "a100-sxm-40gb", 8),
        ({"SkuPriceDetails": '{"InstanceType": "m7i.large"}'}, "", 0),
        ({"SkuPriceDetails": '{"InstanceType": "z9.large", "GpuCount": 4}'}, "", 4),
        ({"SkuPriceDetails": '{"GpuCount": "many"}'}, "", 0),
        ({"SkuPriceDetails": '{"GpuCount": -3}'}, "", 0),
        ({"SkuPriceDetails": f'{{"GpuCount": {"9" * 400}}}'}, "", 0),
        ({"ChargeDescription": "$55.04 per On Demand Linux p5.48xlarge Instance Hour"}, "h100-sxm-80gb", 8),
        ({"ChargeDescription": "Nvidia Tesla T4 GPU running in Iowa", "ConsumedQuantity": "2"}, "t4-16gb", 2),
        ({"ChargeDescription": "Nvidia Imaginary GPU running in Iowa"}, "", 0),
    ],
)
def test_gpus_are_recognised_or_left_unknown(
    platform: Platform, tmp_path: Path, row: Row, model: str, gpus: float
) -> None:
    take(platform, write_csv(tmp_path / "bill.csv", [usage(1, **row)]))
    (charge,) = platform.call(ListUnattributed()).charges
    assert (charge.model, charge.gpus) == (model, gpus)


def test_details_that_are_nested_without_end_say_nothing(platform: Platform, tmp_path: Path) -> None:
    deep = usage(1) | {"x_SkuDetails": '{"a":' * 5000 + "1" + "}" * 5000}
    columns = [name for name in USAGE if name != "SkuPriceDetails"] + ["x_SkuDetails"]
    take(platform, write_csv(tmp_path / "bill.csv", [deep], columns), lenient=True)
    assert platform.call(ListUnattributed()).charges[0].gpus == 0


# Whose it is


def test_charges_are_charged_by_rules_then_tags_and_else_to_nobody(platform: Platform, tmp_path: Path) -> None:
    rows = [
        usage(1, Tags='{"project": "flights"}'),
        usage(2, Tags='{"team": "trains"}'),
        usage(3, Tags='{"project": "no-such-project"}'),
        usage(4, SubAccountId="research-7"),
        usage(5),
    ]
    delivery = take(platform, write_csv(tmp_path / "bill.csv", rows))
    bill = delivery.bills[0].id
    first = platform.call(ShowBill(bill=bill))
    assert (first.by_project, first.unattributed) == ({"flights": dollars(10)}, dollars(40))
    rules = (Rule(project="flights", sub_account="research-*"), Rule(project="trains", resource="i-5"))
    mapping = platform.call(MapCharges(rules=rules, tag_keys=("team", "project")))
    assert mapping.version == 1
    assert platform.call(ShowMapping()).rules == rules
    page = platform.call(ShowBill(bill=bill))
    assert page.by_project == {"flights": dollars(20), "trains": dollars(20)}
    assert page.unattributed == dollars(10)
    assert [c.resource for c in platform.call(ListUnattributed()).charges] == ["i-3"]
    assert {c.resource for c in platform.call(ListCharges(project="trains")).charges} == {"i-2", "i-5"}
    with pytest.raises(InvalidInput, match="planes"):
        platform.call(MapCharges(rules=(Rule(project="planes", resource="i-5"),)))


def test_a_rule_that_would_give_everything_away_is_refused() -> None:
    with pytest.raises(InvalidInput):
        Rule(project="flights")


def test_bills_fill_budgets_and_raise_their_alerts(platform: Platform, tmp_path: Path) -> None:
    platform.call(SetBudget(project="flights", amount="12", thresholds=(80,)))
    now = {"BillingPeriodStart": "2026-11-01T00:00:00Z", "BillingPeriodEnd": "2026-12-01T00:00:00Z"}
    now |= {"ChargePeriodStart": "2026-11-20T05:00:00Z", "ChargePeriodEnd": "2026-11-20T06:00:00Z"}
    take(platform, write_csv(tmp_path / "bill.csv", [usage(1, Tags='{"project": "flights"}', **now)]))
    (state,) = platform.call(ListBudgets(project="flights"))
    assert state.billed == Money(micros=10_000_000)
    assert [(a.kind, a.threshold) for a in platform.call(ListAlerts(project="flights"))] == [("actual", 80)]


def test_a_fee_for_the_whole_month_hides_no_work_of_the_days_that_no_bill_has_seen(
    platform: Platform, tmp_path: Path
) -> None:
    tagged = {"Tags": '{"project": "flights"}'}
    month = {"BillingPeriodStart": "2026-11-01T00:00:00Z", "BillingPeriodEnd": "2026-12-01T00:00:00Z"}
    fee = {"ChargePeriodStart": month["BillingPeriodStart"], "ChargePeriodEnd": month["BillingPeriodEnd"]}
    money = {"BilledCost": "900", "EffectiveCost": "900"}
    take(platform, write_csv(tmp_path / "bill.csv", [usage(1, **tagged, **month, **fee, **money)]))
    platform.call(SetBudget(project="flights", amount="1000", hard=True))

    def work(key: str, cost: float) -> bool:
        later = NOW + timedelta(hours=1)
        allowed = platform.ports.sql.write(
            lambda sql: budgets.reserve(sql, "flights", key, dollars(cost), later)
        ).allowed
        if allowed:
            platform.ports.sql.write(lambda sql: budgets.settle(sql, key, dollars(cost), later + timedelta(hours=1)))
        return allowed

    assert work("job:1", 90)
    assert not work("job:2", 20)
    (state,) = platform.call(ListBudgets(project="flights"))
    assert (state.spent, state.billed_to) == (dollars(990), NOW)


def test_who_may_see_a_project_sees_its_charges_and_no_others(platform: Platform, tmp_path: Path) -> None:
    take(platform, write_csv(tmp_path / "bill.csv", [usage(1, Tags='{"project": "flights"}'), usage(2)]))
    token = token_of(platform, "ann", {"flights": "viewer"})
    assert platform.call(ListCharges(project="flights"), token=token).count == 1
    for request in (ListCharges(project="trains"), ListUnattributed(), ListBills(), MapCharges()):
        with pytest.raises(NotAuthorised):
            platform.call(request, token=token)
    with pytest.raises(NotAuthorised):
        platform.call(ImportBill(path=str(tmp_path / "bill.csv")), token=token)


# Laws


cost = st.decimals(Decimal(0), Decimal(10**6), places=20, allow_nan=False)
amounts_of_rows = st.lists(st.tuples(cost, cost, st.sampled_from(["flights", "trains", ""])), min_size=1, max_size=12)


@given(amounts_of_rows, st.randoms(use_true_random=False))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sums_are_exact_in_any_order_and_every_charge_is_within_a_micro(
    tmp_path_factory: pytest.TempPathFactory,
    law_platform: Platform,
    rows: list[tuple[Decimal, Decimal, str]],
    order: random.Random,
) -> None:
    folder = tmp_path_factory.mktemp("law")
    account = str(len(list(folder.parent.iterdir())))
    made = [
        usage(n, BilledCost=f"{billed:f}", EffectiveCost=f"{effective:f}", BillingAccountId=account,
              Tags=f'{{"project":"{project}"}}')
        for n, (billed, effective, project) in enumerate(rows)
    ]  # fmt: skip
    (bill,) = take(law_platform, write_csv(folder / "bill.csv", made)).bills
    assert Decimal(bill.billed) == sum(b for b, _, _ in rows)
    assert Decimal(bill.effective) == sum(e for _, e, _ in rows)
    page = law_platform.call(ShowBill(bill=bill.id))
    assert sum(m.micros for m in (page.unattributed, *page.by_project.values())) == bill.effective_micros
    with law_platform.ports.sql.read() as sql:
        table = store.with_projects(sql, store.table(law_platform.ports.objects, store.find(sql, bill.id)))
    charges = {c.resource: c for c in store.charges(bill, table)}
    assert sum(c.billed.micros for c in charges.values()) == bill.billed_micros
    for n, (billed, effective, project) in enumerate(rows):
        charge = charges[f"i-{n}"]
        assert abs(charge.billed.micros - billed * 10**6) < 1
        assert abs(charge.effective.micros - effective * 10**6) < 1
        assert charge.project == project
    shuffled = order.sample(made, len(made))
    again = take(law_platform, write_csv(folder / "shuffled.csv", shuffled))
    assert again.repeated
    assert again.bills[0].id == bill.id


@pytest.fixture(scope="module")
def law_platform() -> Iterator[Platform]:
    with open_platform(clock=Clock(NOW)) as opened:
        for project in ("flights", "trains"):
            opened.call(CreateProject(project=project))
        yield opened
