"""Jobs and quotas as operations: what may be asked, by whom, and what is answered."""

import io
import re
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from unit.compute.jobs.bench import Bench, gpu_node, open_bench

from macadam.compute.billing.budget_types import SetBudget
from macadam.compute.jobs import bundle, forecast, machine, registry
from macadam.compute.jobs.render_types import RenderJob
from macadam.compute.jobs.spending import window_start
from macadam.compute.jobs.types import (
    CancelJob,
    EstimateJob,
    ExplainJob,
    ListCohorts,
    ListJobs,
    ListQuotas,
    Rate,
    ReadLog,
    RemoveQuota,
    Resources,
    SetPriority,
    SetQuota,
    ShowJob,
    ShowQuota,
    SubmitJob,
)
from macadam.compute.scheduling.decide import decide
from macadam.compute.scheduling.types import Decision
from macadam.errors import Conflict, InvalidInput, NotAuthorised, NotFound, SettingInvalid, TooLarge
from macadam.ledger import service as ledger
from macadam.operations import load, of_request
from macadam.testing import open_platform, token_of

PRICED = {"MACADAM_PRICE_GPU_HOUR": "3600000", "MACADAM_PRICE_CPU_HOUR": "0"}


@pytest.fixture
def bench() -> Iterator[Bench]:
    with open_bench(("p", "q"), PRICED) as made:
        yield made


@pytest.fixture(scope="module")
def shared() -> Iterator[Bench]:
    """For tests that change nothing."""
    load("jobs")
    with open_bench() as made:
        yield made


# --- submitting


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"resources": {"gpus": 1, "milli": 500}}, "together"),
        ({"resources": {"gpus": 3, "nodes": 2}}, "evenly"),
        ({"resources": {"nodes": 2}}, "evenly"),
        ({"resources": {"gpus": -1}}, "resources.gpus"),
        ({"resources": {"cpus": float("nan")}}, "cpus"),
        ({"resources": {"gpu": 1}}, "gpu"),
        ({"command": []}, "command"),
        ({"command": [""]}, "first word"),
        ({"image": "i:1", "requirements": "x"}, "one environment"),
        ({"environment": {"MACADAM_TOKEN": "x"}}, "platform's to set"),
        ({"environment": {"A=B": "x"}}, "environment"),
        ({"environment": {"A": "x\0y"}}, "NUL"),
        ({"files": {"../x": "y"}}, "no path below"),
        ({"files": {"/x": "y"}}, "no path below"),
        ({"files": {"x": "y"}, "source": "/src"}, "one of them"),
        ({"source": "relative"}, "no absolute path"),
        ({"time_limit": -1}, "time_limit"),
        ({"deadline": "2026-01-01T00:00:00"}, "deadline"),
    ],
)
def test_what_could_never_run_is_refused_when_it_is_submitted(shared: Bench, more: dict, said: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InvalidInput) as error:  # as faces do, with plain values
        shared.platform.dispatch(of_request(SubmitJob), {"project": "p", "command": ["true"], **more})
    assert said in f"{error.value}"


def test_a_bundle_that_nobody_stored_is_not_found(bench: Bench) -> None:
    with pytest.raises(NotFound, match="no bundle"):
        bench.submit(source="sha256:" + "0" * 64)


def test_working_files_are_stored_once_and_brought_to_the_attempt(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / ".secret").write_text("no")
    (tmp_path / "link").symlink_to("/etc/passwd")
    by_text = bench.submit(files={"run.sh": "#!/bin/sh\n"})
    (tmp_path / "run.sh").chmod(0o755)
    by_folder = bench.submit(source=str(tmp_path))
    assert by_text.spec.bundle == by_folder.spec.bundle
    again = bench.submit(source=by_text.spec.bundle)
    bench.turn()
    assert bench.executor.orders[f"{again.id}.1"].bundle == by_text.spec.bundle
    with tarfile.open(fileobj=io.BytesIO(bench.platform.ports.objects.get(by_text.spec.bundle))) as tar:
        assert [(one.name, one.mode) for one in tar.getmembers()] == [("run.sh", 0o755)]


def test_nobody_gets_at_another_projects_objects_by_their_digest(bench: Bench) -> None:
    theirs = bench.submit("q", files={"secret.py": "x"}).spec.bundle
    model = bench.platform.ports.objects.put(b"a model")
    for digest in (theirs, model):
        with pytest.raises(NotFound, match="no bundle"):
            bench.submit("p", source=digest)
        # Neither does a digest that stands in one's own command make it one's own.
        bench.submit("p", command=("true", f'"bundle":"{digest}"'), environment={"A": f'"bundle":"{digest}"'})
        with pytest.raises(NotFound, match="no bundle"):
            bench.submit("p", source=digest)
    assert bench.submit("q", source=theirs).spec.bundle == theirs


def test_a_source_never_holds_anything_of_the_home(bench: Bench) -> None:
    home = bench.platform.settings.home
    for source in (home, home / "keys"):
        source.mkdir(exist_ok=True)
        with pytest.raises(InvalidInput, match="home"):
            bench.submit(source=str(source))
    found = bench.submit(source=str(home.parent))
    with tarfile.open(fileobj=io.BytesIO(bench.platform.ports.objects.get(found.spec.bundle))) as tar:
        assert not [one.name for one in tar.getmembers() if one.name.startswith(home.name)]


def test_no_directory_of_the_server_is_read_for_jobs_that_run_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("of the server")
    with open_bench(settings={"MACADAM_EXECUTOR": "ray", "MACADAM_RAY_ADDRESS": "http://127.0.0.1:9"}) as made:
        with pytest.raises(InvalidInput, match="elsewhere"):
            made.submit(source=str(tmp_path))
        assert made.submit(files={"a.py": "1"}).spec.bundle


def test_a_huge_file_is_refused_before_it_is_read(bench: Bench, tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(TooLarge):
        bench.submit(source=str(tmp_path))


def test_too_many_working_files_are_refused() -> None:
    with pytest.raises(TooLarge):
        bundle.pack((f"f{n}", b"", False) for n in range(bundle.MOST_FILES + 1))


def test_values_of_the_environment_are_in_no_leaf(bench: Bench) -> None:
    bench.submit(environment={"API_KEY": "s3cr3t"})
    bench.turn()
    with bench.platform.ports.sql.read() as sql:
        assert "s3cr3t" not in "".join(str(entry.leaf) for entry in ledger.find(sql))


# --- who may


def test_each_role_may_do_its_part_in_its_own_project_only(bench: Bench) -> None:
    job = bench.submit()
    viewer = token_of(bench.platform, "vera", {"p": "viewer"})
    developer = token_of(bench.platform, "dora", {"p": "developer"})
    operator = token_of(bench.platform, "otto", {"p": "operator"})
    stranger = token_of(bench.platform, "sven", {"q": "admin"})
    call = bench.platform.call
    assert call(ShowJob(project="p", job=job.id), token=viewer).job == job
    for token in (viewer, operator, stranger):
        with pytest.raises(NotAuthorised):
            call(SubmitJob(project="p", command=("true",)), token=token)
    assert call(SubmitJob(project="p", command=("true",)), token=developer).author == "principal:dora"
    assert call(SetPriority(project="p", job=job.id, priority=3), token=operator).priority == 3
    for request in (
        ShowJob(project="p", job=job.id),
        ExplainJob(project="p", job=job.id),
        ReadLog(project="p", job=job.id),
        CancelJob(project="p", job=job.id),
        ListJobs(project="p"),
    ):
        with pytest.raises(NotAuthorised):
            call(request, token=stranger)  # type: ignore[arg-type]
    # By way of a project of one's own, another's job is not there.
    for request in (
        ShowJob(project="q", job=job.id),
        CancelJob(project="q", job=job.id),
        ExplainJob(project="q", job=job.id),
        ReadLog(project="q", job=job.id),
        SetPriority(project="q", job=job.id, priority=9),
        RenderJob(project="q", job=job.id, to="kueue", image="i:1"),
    ):
        with pytest.raises(NotFound):
            call(request, token=stranger)  # type: ignore[arg-type]


def test_why_a_job_waits_tells_nothing_of_what_others_run(bench: Bench) -> None:
    theirs = {"command": ("train", "s3cr3t-command"), "name": "s3cr3t-name", "environment": {"A": "s3cr3t-value"}}
    bench.submit("q", Resources(gpus=4), group="s3cr3t-group", **theirs)
    bench.turn()
    bench.submit("q", Resources(gpus=4), **theirs)
    waiting = bench.submit("p", Resources(gpus=4))
    bench.turn()
    asked = bench.platform.call(ExplainJob(project="p", job=waiting.id))
    before = bench.platform.call(EstimateJob(project="p", resources=Resources(gpus=4)))
    assert asked.reason == before.reason == "no-gpus"
    assert "s3cr3t" not in f"{asked}{before}"


def test_no_projects_administrator_sets_its_quota(bench: Bench) -> None:
    admin = token_of(bench.platform, "ada", {"p": "admin"})
    with pytest.raises(NotAuthorised):
        bench.platform.call(SetQuota(tenant="p", gpus=1000), token=admin)
    bench.platform.call(SetQuota(tenant="p", gpus=1))
    assert bench.platform.call(ShowQuota(project="p"), token=admin).quota.gpus == 1
    with pytest.raises(NotAuthorised):
        bench.platform.call(ListQuotas(), token=admin)


# --- reading


def test_jobs_are_listed_newest_first_in_pages(bench: Bench) -> None:
    jobs = [bench.submit() for _ in range(3)]
    bench.platform.call(CancelJob(project="p", job=jobs[1].ref))
    listed = bench.platform.call(ListJobs(project="p", limit=2))
    assert [one.id for one in listed] == [jobs[2].id, jobs[1].id]
    assert [one.id for one in bench.platform.call(ListJobs(project="p", before=listed[-1].id))] == [jobs[0].id]
    assert [one.id for one in bench.platform.call(ListJobs(project="p", state="open"))] == [jobs[2].id, jobs[0].id]
    assert bench.platform.call(ListJobs(project="q")) == ()


def test_a_log_is_read_by_attempt_and_one_that_is_not_there_is_said(bench: Bench) -> None:
    job = bench.submit()
    with pytest.raises(NotFound, match="no attempt 1"):
        bench.platform.call(ReadLog(project="p", job=job.id))
    bench.turn()
    page = bench.platform.call(ReadLog(project="p", job=job.id, offset=4))
    assert page.text == f"of {job.id}.1, 0\n"
    with pytest.raises(NotFound, match="no attempt 2"):
        bench.platform.call(ReadLog(project="p", job=job.id, attempt=2))


def test_what_has_ended_is_neither_cancelled_nor_prioritised(bench: Bench) -> None:
    job = bench.submit()
    bench.turn()
    bench.executor.end(f"{job.id}.1")
    bench.turn()
    for request in (CancelJob(project="p", job=job.id), SetPriority(project="p", job=job.id, priority=1)):
        with pytest.raises(Conflict, match="succeeded already"):
            bench.platform.call(request)  # type: ignore[arg-type]


# --- explaining


def test_before_submitting_it_is_said_when_it_would_start_and_what_it_would_cost(bench: Bench) -> None:
    for _ in range(2):
        bench.submit(resources=Resources(gpus=2), time_limit=600, preemptible=False)
    bench.turn()
    bench.clock.pass_time(timedelta(seconds=100))
    wanted = EstimateJob(project="p", resources=Resources(gpus=2), seconds=60)
    said = bench.platform.call(wanted)
    assert said.reason == "no-gpus"
    assert said.start.likely == bench.clock() + timedelta(seconds=500)
    assert said.end.likely == bench.clock() + timedelta(seconds=560)
    assert said.cost.likely is not None
    assert said.cost.likely.micros == 2 * 60 * 1000
    assert bench.platform.call(ListJobs(project="p", state="waiting")) == ()


def test_among_many_jobs_a_start_is_said_in_few_decisions_and_nearly_as_it_is_played_one_by_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [bench.submit(resources=Resources(gpus=1 + n % 3), time_limit=100 + 37 * (n % 11)) for n in range(150)]
    bench.turn()
    decided: list[float] = []

    def counting(now: float, *rest: Any) -> Decision:
        decided.append(now)
        return decide(now, *rest)

    monkeypatch.setattr(forecast, "decide", counting)
    said = bench.platform.call(ExplainJob(project="p", job=jobs[120].id))
    steps = len(decided)
    monkeypatch.setattr(forecast, "_MANY", 1000)
    decided.clear()
    exactly = bench.platform.call(ExplainJob(project="p", job=jobs[120].id))
    assert said.start.likely is not None
    assert exactly.start.likely is not None
    assert (said.start.likely - bench.clock()) / (exactly.start.likely - bench.clock()) == pytest.approx(1, abs=0.1)
    assert steps <= len(decided)


def test_what_can_never_start_is_said_to_and_what_to_do(bench: Bench) -> None:
    bench.submit(resources=Resources(gpus=4))
    bench.turn()
    said = bench.platform.call(ExplainJob(project="p", job=bench.submit(resources=Resources(gpus=400)).id))
    assert (said.reason, said.start.likely, said.start.basis) == (
        "impossible",
        None,
        "never, with the machines that there are",
    )
    assert "macadam jobs cancel" in said.next_step


def test_what_lies_too_far_ahead_is_said_to(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(12):
        job = bench.submit(resources=Resources(gpus=4), time_limit=3600)
    bench.turn()
    monkeypatch.setattr(forecast, "_MOST_STEPS", 12)
    monkeypatch.setattr(forecast, "_FEWEST_STEPS", 1)
    said = bench.platform.call(ExplainJob(project="p", job=job.id))
    assert said.start.likely is None
    assert re.fullmatch(r"it cannot be said: not within [1-9]\d* minutes, and no further was looked", said.start.basis)


def test_what_would_start_at_once_is_said_to(bench: Bench) -> None:
    said = bench.platform.call(EstimateJob(project="p", resources=Resources(gpus=1), time_limit=60))
    assert (said.reason, said.start.likely) == ("next", bench.clock())
    without_gpus = bench.platform.call(EstimateJob(project="p", time_limit=60))
    assert (without_gpus.reason, without_gpus.start.likely) == ("next", bench.clock())


def test_durations_come_from_jobs_that_are_alike(bench: Bench) -> None:
    for seconds in (10, 20, 30, 40, 1000):
        job = bench.submit(name="train")
        bench.turn()
        bench.executor.end(f"{job.id}.1", seconds=seconds)
        bench.turn()
    said = bench.platform.call(EstimateJob(project="p", name="train", resources=Resources(gpus=1)))
    assert said.end.likely == bench.clock() + timedelta(seconds=30)
    assert said.end.late == bench.clock() + timedelta(seconds=1000)
    assert "5 like it" in said.end.basis


def test_a_job_that_has_run_for_longer_than_most_like_it_is_not_said_to_have_ended(bench: Bench) -> None:
    for seconds in (10, 20, 30, 40, 1000):
        job = bench.submit(name="train")
        bench.turn()
        bench.executor.end(f"{job.id}.1", seconds=seconds)
        bench.turn()
    running = [bench.submit(name="train", preemptible=False) for _ in range(4)]
    bench.turn()
    began = bench.clock()
    bench.clock.pass_time(timedelta(seconds=100))
    said = bench.platform.call(ExplainJob(project="p", job=running[0].id))
    assert said.end.likely == began + timedelta(seconds=1000)
    assert "1 like it of 5 that ran for longer than 100 s" in said.end.basis
    next_ = bench.platform.call(EstimateJob(project="p", name="other", resources=Resources(gpus=1)))
    assert next_.start.likely == began + timedelta(seconds=1000)


def test_what_nobody_can_know_is_not_made_up(bench: Bench) -> None:
    for _ in range(4):
        bench.submit()
    bench.turn()
    said = bench.platform.call(EstimateJob(project="p", resources=Resources(gpus=1)))
    assert (said.start.likely, said.end.likely, said.cost.likely) == (None, None, None)
    assert "nobody knows" in said.start.basis


def test_without_a_price_there_is_no_cost() -> None:
    with open_bench() as bench:
        said = bench.platform.call(EstimateJob(project="p", resources=Resources(gpus=1), seconds=60))
        assert said.cost.likely is None
        assert "MACADAM_PRICE_GPU_HOUR" in said.cost.basis
        job = bench.submit()
        bench.turn()
        bench.executor.end(f"{job.id}.1")
        bench.turn()
        assert bench.now(job).spent is None


def test_a_running_job_a_paused_one_and_an_ended_one_are_explained(bench: Bench) -> None:
    job = bench.submit(max_restarts=1, time_limit=100)
    bench.turn()
    bench.turn()
    said = bench.platform.call(ExplainJob(project="p", job=job.id))
    assert (said.reason, said.end.likely) == ("runs", bench.clock() + timedelta(seconds=100))
    bench.executor.end(f"{job.id}.1", exit_code=137)
    bench.turn()
    assert bench.platform.call(ExplainJob(project="p", job=job.id)).reason == "pause"
    bench.clock.pass_time(timedelta(seconds=2))
    bench.turn()
    bench.executor.end(f"{job.id}.2", exit_code=5)
    bench.turn()
    said = bench.platform.call(ExplainJob(project="p", job=job.id))
    assert (said.reason, said.words) == ("ended", "It failed: it ended with code 5.")


def test_a_budget_without_room_is_named_as_the_reason(bench: Bench) -> None:
    bench.platform.call(SetBudget(project="p", amount="0.01", hard=True))
    job = bench.submit()
    bench.turn()
    said = bench.platform.call(ExplainJob(project="p", job=job.id))
    assert said.reason == "money"
    assert "0.01 USD" in said.words


def test_without_machines_it_is_said_how_the_queue_is_started(bench: Bench) -> None:
    bench.executor.machines = ()
    said = bench.platform.call(EstimateJob(project="p"))
    assert said.reason == "no-machines"
    assert "macadam jobs run" in said.next_step


# --- quotas


def test_a_quota_is_set_shown_listed_and_removed(bench: Bench) -> None:
    bench.platform.call(SetQuota(tenant="p", gpus=2, cohort="c", gpu_hours=10, money="12.5"))
    bench.platform.call(SetQuota(tenant="q", gpus=1, cohort="c"))
    job = bench.submit(resources=Resources(gpus=2))
    bench.turn()
    bench.clock.pass_time(timedelta(hours=1))
    shown = bench.platform.call(ShowQuota(project="p"))
    assert (shown.using, shown.gpu_hours, shown.running) == (2000, 2.0, 1)
    bench.executor.end(f"{job.id}.1")
    bench.turn()
    shown = bench.platform.call(ShowQuota(project="p"))
    assert (shown.using, shown.gpu_hours, shown.spent.micros) == (0, 2.0, 7_200_000)
    assert [one.quota.project for one in bench.platform.call(ListQuotas())] == ["p", "q"]
    (cohort,) = bench.platform.call(ListCohorts())
    assert (cohort.cohort, cohort.projects, cohort.gpus, cohort.machines) == ("c", ("p", "q"), 3, 4)
    bench.platform.call(RemoveQuota(tenant="q"))
    with pytest.raises(NotFound):
        bench.platform.call(ShowQuota(project="q"))


def test_what_runs_is_read_once_however_many_quotas_are_listed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    for name in ("open_attempts", "counts"):
        asked = getattr(registry, name)
        monkeypatch.setattr(registry, name, lambda sql, name=name, asked=asked: reads.append(name) or asked(sql))
    for tenant in ("p", "q"):
        bench.platform.call(SetQuota(tenant=tenant, gpus=1))
    assert len(bench.platform.call(ListQuotas())) == 2
    assert sorted(reads) == ["counts", "open_attempts"]


def test_a_quota_in_another_currency_or_of_nobody_is_refused(bench: Bench) -> None:
    with pytest.raises(InvalidInput, match="EUR"):
        bench.platform.call(SetQuota(tenant="p", gpus=1, money="5", currency="EUR"))
    with pytest.raises(NotFound):
        bench.platform.call(SetQuota(tenant="typo", gpus=1))


def test_windows_begin_by_the_calendar_in_utc() -> None:
    now = datetime(2026, 11, 21, 15, 4, 5, tzinfo=UTC)  # a Saturday
    assert window_start("day", now) == datetime(2026, 11, 21, tzinfo=UTC)
    assert window_start("week", now) == datetime(2026, 11, 16, tzinfo=UTC)
    assert window_start("month", now) == datetime(2026, 11, 1, tzinfo=UTC)


# --- small parts


def test_cost_is_exact_and_rounded_up_once() -> None:
    hour = Rate(nanos=1000 * 3_000_000, own=0, currency="USD")
    assert hour.cost(3600).micros == 3_000_000
    part = Rate(nanos=250 * 3_000_000 + 2000 * 50_000, own=0, currency="USD")
    assert part.cost(1.0).micros == 237  # 208.33 + 27.78, rounded up
    assert msgspec.structs.replace(part, own=part.nanos).own_cost(1.0) == part.cost(1.0)


def test_declared_gpus_are_read_and_nonsense_is_refused() -> None:
    found = machine.declared("2xh100-sxm-80gb")
    assert [(one.index, one.model, one.memory > 80e9 * 0.9, one.virtual) for one in found] == [
        (0, "h100-sxm-80gb", True, True),
        (1, "h100-sxm-80gb", True, True),
    ]
    for text in ("four", "-1", "2x", "99999"):
        with pytest.raises(SettingInvalid):
            machine.declared(text)
    with pytest.raises(NotFound):
        machine.declared("1xno-such-gpu")


def test_a_machine_is_known_by_what_is_said_of_it(tmp_path: Path) -> None:
    said = {
        "MACADAM_GPUS": "1",
        "MACADAM_MACHINE_PROVIDER": "AWS",
        "MACADAM_MACHINE_REGION": "us-east-1",
        "MACADAM_MACHINE_ZONE": "us-east-1a",
        "MACADAM_MACHINE_TYPE": "p5.48xlarge",
        "MACADAM_MACHINE_SPOT": "1",
    }
    for more, spot in (({}, True), ({"MACADAM_MACHINE_SPOT": "0"}, False), ({"MACADAM_MACHINE_SPOT": ""}, None)):
        with open_platform(tmp_path, environment=said | more) as platform:
            (node,) = platform.ports.executor.nodes()
        assert (node.provider, node.region, node.zone, node.machine) == (
            "aws",
            "us-east-1",
            "us-east-1a",
            "p5.48xlarge",
        )
        assert node.spot is spot
    with pytest.raises(SettingInvalid), open_platform(tmp_path, environment={"MACADAM_MACHINE_SPOT": "maybe"}):
        pass


def test_virtual_machines_are_read_and_nonsense_is_refused() -> None:
    one, two = machine.virtual("base=2xh100-sxm-80gb, cheap=1@zone-a:spot")
    assert (one.name, one.spot, one.zone, [device.index for device in one.devices]) == ("base", None, "", [0, 1])
    assert (two.name, two.spot, two.zone, [device.index for device in two.devices]) == ("cheap", True, "zone-a", [2])
    assert len({device.id for node in (one, two) for device in node.devices}) == 3
    for text in ("base", "=2", "a=2,a=2", "a=2:cheap", "../a=1", "a=x"):
        with pytest.raises(SettingInvalid):
            machine.virtual(text)


def test_a_gpu_that_disappears_from_a_node_moves_no_others_work(bench: Bench) -> None:
    first, second = bench.submit(), bench.submit()
    bench.turn()
    held = {next(iter(bench.page(one).attempts[0].places[0].devices)) for one in (first, second)}
    node = gpu_node()
    left = tuple(one for one in node.devices if one.id != min(held))
    bench.executor.machines = (type(node)(name=node.name, cpus=node.cpus, memory=node.memory, devices=left),)
    more = [bench.submit() for _ in range(3)]
    bench.turn()
    given = [device for one in more for row in bench.page(one).attempts for device in row.places[0].devices]
    assert len(given) == 2
    assert not set(given) & held
