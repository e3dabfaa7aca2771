"""A month divided on a real home: a FOCUS bill, samples of a fleet, and what each may see of it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from unit.compute.billing import bills
from unit.compute.telemetry import fleets
from unit.compute.waterfall import clusters

from macadam import testing
from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.compute.billing.types import ImportBill, MapCharges, WithdrawBill
from macadam.compute.telemetry import service as telemetry
from macadam.compute.telemetry.requests import DeclarePods, PodOwner
from macadam.compute.waterfall import allocation, cascade
from macadam.compute.waterfall.requests import (
    AllocateCosts,
    BreakDown,
    Breakdown,
    ListAllocations,
    ShowOwnerCost,
    ShowOwnerEnergy,
)
from macadam.errors import Conflict, InvalidInput, NotAuthorised, NotFound
from macadam.ledger.types import ShowLog, VerifyLedger
from macadam.testing import Clock

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
START = datetime(2026, 11, 20, tzinfo=UTC)
MONTH = "2026-11"


def hour(number: int, of: int, **changed: str) -> dict[str, str]:
    """20 dollars for an hour of a machine."""
    period = {"ChargePeriodStart": f"2026-11-20T{of:02}:00:00Z", "ChargePeriodEnd": f"2026-11-20T{of + 1:02}:00:00Z"}
    billing = {"BillingPeriodStart": "2026-11-01T00:00:00Z", "BillingPeriodEnd": "2026-12-01T00:00:00Z"}
    money = {"BilledCost": "20.00", "EffectiveCost": "20.00"}
    return bills.usage(number) | period | billing | money | {"ResourceId": f"node-{number:04d}"} | changed


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    home = tmp_path_factory.mktemp("waterfall")
    with testing.open_platform(home / "home", clock=Clock(NOW)) as opened:
        furnish(opened, home)
        yield opened


def furnish(platform: Platform, folder: Path) -> None:
    """Two machines with eight GPUs each for two hours; a third one is paid and was never seen."""
    for name in ("vision", "speech"):
        platform.call(CreateProject(project=name))
    rows = [hour(n, h) for n in (0, 1) for h in (0, 1)]
    rows.append(hour(7, 0, EffectiveCost="3.333333", BilledCost="3.333333"))
    rows.append(hour(8, 0, ChargeCategory="Tax", EffectiveCost="1.90", BilledCost="1.90", PricingCategory=""))
    platform.call(ImportBill(path=str(bills.write_csv(folder / "bill.csv", rows)), lenient=True))
    pods = [
        PodOwner(
            namespace=f"team-{n % 7}",
            name=f"job-{n // 4}",
            project="vision" if n < 8 else "speech",
            owner=f"job:{n // 4}",
        )
        for n in range(16)
        if n % 5 != 4
    ]
    platform.call(DeclarePods(pods=tuple(pods)))
    samples: pa.Table = fleets.fleet(16, 7200, every=60, start=START)
    telemetry.deliver(platform.ports, samples, NOW)
    platform.call(AllocateCosts(month=MONTH))


def shown(platform: Platform, project: str = "*", **asked: object) -> Breakdown:
    return platform.call(BreakDown(project=project, month=MONTH, **asked))


def test_the_waterfall_of_a_real_bill_sums_to_it_to_the_cent(platform):
    (whole,) = shown(platform).whole
    assert whole.bill.micros == 4 * 20_000_000 + 3_333_333 + 1_900_000
    assert sum(line.amount.micros for line in whole.lines) == whole.bill.micros
    amounts = {line.step: line.amount.micros for line in whole.lines}
    assert amounts["tax"] == 1_900_000
    assert amounts["unallocated"] > 0
    assert amounts["effective"] > 0
    assert set(whole.bases) == {"tensor"}


def test_projects_sum_to_the_whole_and_each_sees_its_own(platform):
    everything = shown(platform)
    parts = {one.key: one.bill.micros for one in everything.parts}
    assert sum(parts.values()) == everything.whole[0].bill.micros
    for project in ("vision", "speech"):
        own = shown(platform, project)
        assert own.whole[0].bill.micros == parts[project] > 0
        assert own.doubts == own.flags == ()
        assert {one.key for one in own.parts} == {project}


def test_a_reader_of_a_project_sees_that_project_and_no_other(platform):
    reader = testing.token_of(platform, "principal:rita", {"vision": "viewer"})
    request = BreakDown(project="vision", month=MONTH, by="owner")
    assert platform.call(request, token=reader).whole[0].bill.micros > 0
    for project in ("speech", "*"):
        with pytest.raises(NotAuthorised):
            platform.call(BreakDown(project=project, month=MONTH), token=reader)
    with pytest.raises(NotAuthorised):
        platform.call(AllocateCosts(month=MONTH), token=reader)
    with pytest.raises(NotFound):
        platform.call(ShowOwnerCost(project="vision", owner="job:3", month=MONTH), token=reader)


def test_dividing_needs_leave_to_read_all_bills_and_all_telemetry(platform):
    operator = testing.token_of(platform, "principal:otto", {"*": "operator"})
    with pytest.raises(NotAuthorised, match="bills:read"):
        platform.call(AllocateCosts(month=MONTH), token=operator)


def test_a_jobs_page_has_its_cost_its_energy_and_its_likely_bottleneck(platform):
    found = platform.call(ShowOwnerCost(project="vision", owner="job:0", month=MONTH))
    assert found.waterfalls[0].bill.micros > 0
    assert found.energy.devices_kwh.value > 0
    assert found.energy.co2_kg.low < found.energy.co2_kg.value < found.energy.co2_kg.high
    (profile,) = found.profiles
    assert profile.gpu == "h100-sxm-80gb"
    assert profile.roofline is not None
    assert profile.likely.evidence
    assert profile.mfu is None


def test_the_energy_of_a_job_needs_no_bill_and_says_what_grid_it_was_reckoned_with(platform):
    asked = ShowOwnerEnergy(project="vision", owner="job:0", start=START, end=START + timedelta(hours=2))
    found = platform.call(asked)
    divided = platform.call(ShowOwnerCost(project="vision", owner="job:0", month=MONTH))
    assert found.energy == divided.energy
    assert found.grid == divided.grid
    assert (found.grid.region, found.grid.year) == ("world", 2023)
    assert found.grid.grams_per_kwh.low < found.grid.grams_per_kwh.value < found.grid.grams_per_kwh.high
    assert found.energy.co2_kg.value == pytest.approx(
        found.energy.devices_kwh.value * found.pue.value * found.grid.grams_per_kwh.value / 1000
    )
    assert found.profiles[0].likely.evidence
    assert found.basis.startswith("the device's energy counter")
    with pytest.raises(NotFound, match="was seen"):
        platform.call(ShowOwnerEnergy(project="speech", owner="job:0", start=START, end=NOW))
    reader = testing.token_of(platform, "principal:ron", {"speech": "viewer"})
    with pytest.raises(NotAuthorised):
        platform.call(asked, token=reader)


def test_declared_model_flops_make_the_effective_part_theirs(platform):
    platform.call(AllocateCosts(month=MONTH, flops={"job:0": 1e18}))
    found = platform.call(ShowOwnerCost(project="vision", owner="job:0", month=MONTH))
    assert 0 < found.profiles[0].mfu < 1
    assert set(found.waterfalls[0].bases) == {"mfu"}
    with pytest.raises(InvalidInput, match="times the peak"):
        platform.call(AllocateCosts(month=MONTH, flops={"job:0": 1e25}))
    platform.call(AllocateCosts(month=MONTH))


def test_an_allocation_is_evidence_and_the_newest_of_a_month_counts(platform):
    first = platform.call(ListAllocations())[0]
    second = platform.call(AllocateCosts(month=MONTH))
    assert platform.call(ListAllocations())[0] == second
    assert (first.rows, first.bill) == (second.rows, second.bill)  # the same bytes for the same bills and telemetry
    assert shown(platform).allocation == second.id
    entry = platform.call(ShowLog(kind="compute.allocate_costs", limit=1)).entries[0]
    assert second.id in entry.subject
    assert platform.call(VerifyLedger(deep=True)).problems == ()


def test_figures_whose_bills_or_rules_were_changed_since_say_so(tmp_path):
    with testing.open_platform(tmp_path / "home", clock=Clock(NOW)) as opened:
        furnish(opened, tmp_path)
        assert shown(opened).outdated == ""
        october = bills.usage(1)  # of another month
        opened.call(ImportBill(path=str(bills.write_csv(tmp_path / "october.csv", [october])), lenient=True))
        assert shown(opened, "vision").outdated == ""
        another = [hour(1, 0, BillingAccountId="another"), hour(2, 0, BillingAccountId="another")]
        opened.call(ImportBill(path=str(bills.write_csv(tmp_path / "late.csv", another)), lenient=True))
        assert "more of 2026-11 came" in shown(opened, "vision").outdated
        opened.call(AllocateCosts(month=MONTH))
        assert shown(opened).outdated == ""
        opened.call(MapCharges(tag_keys=("team",)))
        assert "rules" in shown(opened).outdated
        opened.call(AllocateCosts(month=MONTH))
        corrected = [hour(1, 0, BillingAccountId="another", BilledCost="1", EffectiveCost="1")]
        opened.call(ImportBill(path=str(bills.write_csv(tmp_path / "new.csv", corrected)), lenient=True))
        assert "anew" in shown(opened).outdated


def test_figures_say_that_a_bill_of_theirs_was_withdrawn_and_that_one_came_back(tmp_path):
    with testing.open_platform(tmp_path / "home", clock=Clock(NOW)) as opened:
        furnish(opened, tmp_path)
        another = bills.write_csv(tmp_path / "another.csv", [hour(1, 0, BillingAccountId="another")])
        (mistake,) = opened.call(ImportBill(path=str(another), lenient=True)).bills
        before = opened.call(AllocateCosts(month=MONTH))
        opened.call(WithdrawBill(bill=mistake.id, reason="another company's"))
        assert "withdrawn" in shown(opened).outdated
        without = opened.call(AllocateCosts(month=MONTH))
        assert shown(opened).outdated == ""
        assert before.bill[0].micros - without.bill[0].micros == mistake.effective_micros
        assert opened.call(ImportBill(path=str(another), lenient=True)).restored == (mistake.id,)
        assert "more of 2026-11 came" in shown(opened).outdated
        assert opened.call(AllocateCosts(month=MONTH)).bill == before.bill


def test_a_bill_that_is_replaced_while_it_is_divided_is_not_divided(tmp_path, monkeypatch):
    with testing.open_platform(tmp_path / "home", clock=Clock(NOW)) as opened:
        furnish(opened, tmp_path)
        spread, corrected = cascade.spread, [hour(0, 0, BilledCost="1", EffectiveCost="1")]

        def slow(*given, **named):
            opened.call(ImportBill(path=str(bills.write_csv(tmp_path / "new.csv", corrected)), lenient=True))
            return spread(*given, **named)

        monkeypatch.setattr(cascade, "spread", slow)
        with pytest.raises(Conflict, match="anew"):
            opened.call(AllocateCosts(month=MONTH))
        assert len(opened.call(ListAllocations())) == 1


def test_a_month_with_a_bill_that_nobody_divided_is_to_be_divided(tmp_path: Path) -> None:
    with testing.open_platform(tmp_path / "home", clock=Clock(NOW)) as opened:
        opened.call(CreateProject(project="vision"))
        with pytest.raises(NotFound, match="No bill of"):
            opened.call(BreakDown(project="*", month=MONTH))
        opened.call(ImportBill(path=str(bills.write_csv(tmp_path / "bill.csv", [hour(0, 0)])), lenient=True))
        with pytest.raises(NotFound, match="have not been divided") as raised:
            opened.call(BreakDown(project="*", month=MONTH))
    assert raised.value.next_step == f"macadam cost allocate --month {MONTH}"


def test_parts_beyond_the_limit_are_summed_up(platform):
    found = shown(platform, by="owner", limit=2)
    assert [one.key for one in found.parts][-1].endswith("others")
    assert sum(one.bill.micros for one in found.parts) == found.whole[0].bill.micros


def test_what_owners_were_billed_is_found_over_all_months(platform):
    with platform.ports.sql.read() as sql:
        found = allocation.billed(sql, platform.ports.objects, "vision")
    parts = {one.key: one.bill.micros for one in shown(platform, "vision", by="owner").parts if one.key}
    assert {owner: sums["USD"] for owner, sums in found.items()} == parts


def test_a_month_without_bills_or_without_an_allocation_says_what_to_do(platform):
    with pytest.raises(NotFound, match="No bill"):
        platform.call(AllocateCosts(month="2020-01"))
    with pytest.raises(NotFound, match="No bill of 2020-01") as raised:
        platform.call(BreakDown(project="*", month="2020-01"))
    assert "cost import FILE, then macadam cost allocate --month 2020-01" in raised.value.next_step
    with pytest.raises(InvalidInput):
        platform.call(BreakDown(project="*", month="2026-13"))


def test_a_commitment_for_years_asks_for_no_telemetry_of_years():
    start, end = clusters.at(0), clusters.at(24 * 31)
    used = clusters.charge(1, hours=2)
    bought = clusters.charge(0, category="purchase", hours=24 * 1000)
    assert allocation._until([used, bought], start, end) == used.end
    assert allocation._until([bought], start, end) == end
    assert allocation._until([clusters.charge(1, hours=24 * 1000)], start, end) < clusters.at(24 * 401)


_FOCUS = Path(__file__).parents[5] / "shared" / "data" / "billing"


@pytest.mark.skipif(not _FOCUS.is_dir(), reason="FOCUS's example rows are not in ../shared/data/billing")
def test_focus_own_examples_divide_without_a_rest(tmp_path):
    steps: dict[str, int] = {}
    for number, path in enumerate(sorted(_FOCUS.glob("*.csv"))):
        with testing.open_platform(tmp_path / str(number)) as platform:
            platform.call(ImportBill(path=str(path), currency="USD", lenient=True, copies="keep", split=True))
            platform.call(AllocateCosts(month="2023-01"))
            for whole in platform.call(BreakDown(project="*", month="2023-01")).whole:
                assert sum(line.amount.micros for line in whole.lines) == whole.bill.micros
                for line in whole.lines:
                    steps[line.step] = steps.get(line.step, 0) + line.amount.micros
    # What was bought is nothing; what it covers counts once; and what of it nobody used is said.
    assert steps == {"purchase": 0, "other": 3_000_000, "unused": 1_500_000}
