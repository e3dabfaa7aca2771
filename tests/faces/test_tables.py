"""Lists as people read them: one plain row each, what matters most first."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from macadam.access.types import CreateProject
from macadam.compute.advice.types import Advice, Measured, Proposal, Saving
from macadam.compute.jobs.price_service import GpuHour
from macadam.compute.jobs.types import (
    AttemptRow,
    Cohort,
    Job,
    JobPage,
    LogText,
    Place,
    Quota,
    QuotaState,
    Resources,
    Spec,
    SubmitJob,
)
from macadam.errors import SettingInvalid
from macadam.faces import cli, tables
from macadam.settings import Settings
from macadam.testing import open_platform
from macadam.values import Money

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def job(**facts: object) -> Job:
    spec = Spec(name="", command=("python", "train.py"), resources=Resources(gpus=2))
    known = {
        "ref": "job:1",
        "id": "1",
        "project": "p",
        "state": "waiting",
        "spec": spec,
        "priority": 0,
        "author": "principal:ann",
    }
    return Job(**(known | {"submitted": NOW - timedelta(minutes=5)} | facts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0s"), (59.6, "1m"), (95, "1m35s"), (3600, "1h"), (7261, "2h1m"), (93600, "1d2h"), (86405, "1d")],
)
def test_a_duration_has_two_units_at_most(seconds: float, said: str) -> None:
    assert tables.lasting(seconds) == said


def test_a_job_is_told_as_squeue_would() -> None:
    (row,) = tables.shaped("compute.list_jobs", (job(),), NOW) or []
    assert list(row)[:4] == ["id", "state", "GPUs", "name"]
    assert (row["GPUs"], row["name"], row["age"], row["by"], row["ran"]) == ("2", "python train.py", "5m", "ann", "")
    ended = job(state="failed", ended=NOW, attained=95, message="it ended with code 3")
    (row,) = tables.shaped("compute.list_jobs", (ended,), NOW) or []
    assert (row["ran"], row["message"]) == ("1m35s", "it ended with code 3")
    part = job(spec=Spec(name="n", command=("x",), resources=Resources(milli=250)))
    (row,) = tables.shaped("compute.list_jobs", (part,), NOW) or []
    assert (row["GPUs"], row["name"]) == ("0.25", "n")


def test_quotas_and_cohorts_tell_numbers_of_gpus_and_not_thousandths() -> None:
    quota = Quota(project="p", gpus=8, cohort="quarry", borrow=4, lend=None, gpu_hours=5000, money=Money(micros=20_000_000_000),
                  window="month", weight=1, at=NOW, by="principal:ann")  # fmt: skip
    state = QuotaState(
        quota=quota,
        using=2500,
        borrowed=0,
        gpu_hours=12.34,
        spent=Money(micros=1_234_567),
        since=NOW,
        running=2,
        waiting=1,
    )
    (row,) = tables.shaped("compute.list_quotas", (state,), NOW) or []
    assert (row["project"], row["GPUs"], row["in use"], row["borrows"], row["lends"]) == ("p", 8, "2.5", "≤ 4", "any")
    assert (row["GPU-hours"], row["money"]) == ("12.3 of 5,000", "1.23 USD of 20,000.00 USD")
    cohort = Cohort(cohort="", projects=("p",), gpus=8, using=2500, machines=16)
    (row,) = tables.shaped("compute.list_cohorts", (cohort,), NOW) or []
    assert (row["cohort"], row["in use"]) == ("(none)", "2.5")


def test_what_has_no_shape_of_its_own_is_left_as_it_is() -> None:
    assert tables.shaped("access.list_projects", ({"project": "p"},)) is None
    assert tables.shaped("compute.list_jobs", "None.") is None


def test_a_list_of_jobs_fits_a_narrow_terminal_with_whole_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    with open_platform(tmp_path / "home") as platform:
        platform.call(CreateProject(project="p"))
        submitted = platform.call(SubmitJob(project="p", command=("python", "train.py", "--epochs", "300")))
    assert cli.main(["jobs", "list", "--project", "p", "--home", str(tmp_path / "home")]) == 0
    said = capsys.readouterr().out
    assert submitted.id in said
    assert "waiting" in said
    assert "macadam jobs explain ID" in said
    assert all(len(line) <= 80 for line in said.splitlines())


def test_prices_bills_and_charges_show_their_amounts_on_a_narrow_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    home = ["--home", str(tmp_path / "home")]
    assert cli.main(["projects", "create", "research", *home]) == 0
    (tmp_path / "bill.csv").write_text(BILL)
    capsys.readouterr()

    def said(*words: str) -> str:
        assert cli.main([*words, *home]) == 0
        out = capsys.readouterr().out
        assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith("Not shown")), out
        return out

    assert "a GPU-hour" in said("cost", "prices", "--project", "research", "--gpu", "H100 SXM")
    imported = said("cost", "import", "bill.csv")
    assert "55.04 USD" in imported
    assert "macadam cost allocate --month 2026-10" in imported
    assert "55.04 USD" in said("cost", "bills")
    assert said("cost", "charges", "--project", "research").count("55.04 USD") == 4
    assert "research" in said("cost", "map", "--rules", '[{"project": "research", "sub_account": "90*"}]')
    assert said("budgets", "set", "--project", "research", "--amount", "200", "--hard")
    listed = said("budgets", "list", "--project", "research")
    assert "200.00 USD" in listed
    assert "yes" in listed


BILL = (
    "BilledCost,EffectiveCost,ListCost,ContractedCost,BillingAccountId,BillingAccountName,BillingCurrency,BillingPeriodStart,"
    "BillingPeriodEnd,ChargePeriodStart,ChargePeriodEnd,ChargeCategory,ChargeClass,ChargeDescription,InvoiceIssuerName,"
    "PricingQuantity,PricingUnit,ProviderName,PublisherName,ServiceCategory,ServiceName,ResourceId,SubAccountId,SkuPriceDetails,Tags\n"
    "55.04,55.04,55.04,55.04,1234,Example,USD,2026-10-01T00:00:00Z,2026-11-01T00:00:00Z,2026-10-03T05:00:00Z,"
    "2026-10-03T06:00:00Z,Usage,,p5.48xlarge,AWS,1,Hours,AWS,AWS,Compute,Amazon EC2,i-1,5678,"
    '"{""InstanceType"": ""p5.48xlarge""}","{""project"": ""research""}"\n'
)


def test_why_a_job_waits_is_told_in_lines_without_what_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = ["--home", str(tmp_path / "home"), "--project", "p"]
    assert cli.main(["projects", "create", "p", "--home", str(tmp_path / "home")]) == 0
    capsys.readouterr()
    assert cli.main(["jobs", "estimate", "--seconds", "3600", *home]) == 0
    out = capsys.readouterr().out
    assert "waiting (next)" in out
    assert "It starts with the queue's next turn." in out
    assert "macadam up" in out
    assert "missing" not in out
    assert " -" not in out


def test_a_job_is_shown_by_what_was_said_of_it_and_its_attempts_by_how_they_ended() -> None:
    place = Place(node="n1", devices={"gpu:a": 1000}, indexes=(0,), milli=1000, cpus=1000, memory=1)
    first = {"id": "1.1", "job": "1", "project": "p", "number": 1, "places": (place,), "started": NOW, "seconds": 95.0}
    ended = AttemptRow(**first, ended=NOW, ending="failed", exit_code=3, message="it ended with code 3")  # type: ignore[arg-type]
    page = JobPage(
        job=job(state="failed", ended=NOW, attempt=1, attained=95, message="it ended with code 3"), attempts=(ended,)
    )
    found = tables.shaped("compute.show_job", page, NOW)
    assert isinstance(found, dict)
    assert found["asks for"] == "GPUs: 2, cores: 1, memory: 1 GiB"
    assert found["command"] == "python train.py"
    assert "group" not in found, "what is as it always is stays unsaid"
    (row,) = found["attempts"]  # type: ignore[misc] # rows
    assert (row["ending"], row["ran"], row["on"], row["GPUs"], row["code"]) == ("failed", "1m35s", "n1", "1", 3)


@pytest.mark.parametrize(
    ("text", "ended", "said"),
    [("a  b\n", True, "a  b"), ("", True, "It wrote nothing."), ("", False, "It has written nothing yet.")],
)
def test_a_log_is_its_text(text: str, ended: bool, said: str) -> None:  # noqa: FBT001 - a table
    page = LogText(job="job:1", attempt=1, rank=0, text=text, next=0, ended=ended)
    assert tables.shaped("compute.read_log", page) == said


def test_a_price_that_was_meant_in_dollars_is_refused_with_what_to_write() -> None:
    with pytest.raises(SettingInvalid, match=r"0\.000002 USD") as refused:
        Settings.load({"MACADAM_PRICE_GPU_HOUR": "2"})
    assert refused.value.next_step == "Give millionths: 2000000 for 2.00 USD."


def test_a_file_without_any_sample_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.csv").write_text("timestamp,duration\n2017,5\n")
    assert cli.main(["gpu", "import", "jobs.csv", "--home", str(tmp_path / "home")]) == 2
    assert "Nothing in jobs.csv is a sample" in capsys.readouterr().err
    assert cli.main(["gpu", "top", "--replay", "jobs.csv", "--once"]) == 2
    assert "Nothing in jobs.csv is a sample" in capsys.readouterr().err


def test_advice_is_shown_with_its_interval_risk_undo_and_what_came_of_it() -> None:
    saving = Saving(
        hours=708.0, low_hours=700.0, high_hours=710.0, expected=Money(micros=2_471_897_647),
        low=Money(micros=2_470_433_433), high=Money(micros=2_473_361_861),
    )  # fmt: skip
    proposal = Proposal(
        kind="idle", project="p", subjects=("notebook:ann",), devices=("gpu:b",), what="Have it stopped.", because="It idled.",
        saving=saving, risk="medium", risks="What is in memory is lost.", undo="Submit it again.",
    )  # fmt: skip
    advice = Advice(
        ref="advice:1", project="p", status="taken", proposal=proposal, start=NOW, end=NOW, believed=1.0, at=NOW, by="x",
        decided_by="principal:ann", measured=Measured(verdict="too early", days=(5, 0)),
    )  # fmt: skip
    shown = tables.shaped("compute.show_advice", advice)
    assert isinstance(shown, dict)
    assert shown["saves in 30 days"] == "2,471.90 USD (2,470.43 USD to 2,473.36 USD)"
    assert (shown["risk"], shown["undo"]) == ("medium: What is in memory is lost.", "Submit it again.")
    assert shown["status"] == "taken by principal:ann"
    early = shown["measured"]
    assert isinstance(early, dict)
    assert early["whole days"] == "5 before, 0 since"
    assert "three whole days" in early["ask again"]
    found = Measured(verdict="saved", days=(5, 4), before=2.5, after=1.25, saving=Money(micros=9_000_000))
    told = tables.shaped("compute.measure_advice", msgspec.structs.replace(advice, measured=found))
    assert isinstance(told, dict)
    assert isinstance(told["measured"], dict)
    assert told["measured"]["saves in 30 days"] == "9.00 USD (no interval)"
    assert told["measured"]["the same work cost"] == "2.5 before, 1.25 since"


def test_a_gpus_price_says_which_it_is_and_what_nobody_says_is_a_dash() -> None:
    told = GpuHour(node="n1", model="l4-24gb", per_gpu_hour=Money(micros=900_000), words="rack", charged=True)
    one, none = tables.shaped("compute.show_gpu_prices", (told, GpuHour(node="n2", model="l4-24gb")), NOW) or []
    assert (one["an hour"], one["price"]) == (str(Money(micros=900_000)), "rack")
    assert (none["an hour"], none["price"]) == ("—", "")


def test_where_no_device_was_seen_it_is_said_how_to_see_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_platform(tmp_path / "home"):
        """It is made."""
    assert cli.main(["gpu", "list", "--project", "*", "--home", str(tmp_path / "home")]) == 0
    assert tables.NO_DEVICES in capsys.readouterr().out
    assert cli.main(["jobs", "prices", "--project", "*", "--home", str(tmp_path / "home")]) == 0
    assert "macadam cost prices" in capsys.readouterr().out
