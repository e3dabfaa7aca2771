"""The study of queueing reads traces strictly, shares fairly and adds up."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.compute.simulation import queueing
from macadam.compute.simulation.queue import Jobs
from macadam.errors import InvalidInput, SourceInvalid
from macadam.faces.cli import main

HEADER = "timestamp,duration,num_gpus,gpu_time,cluster\n"
ROWS = (
    "2017-10-09 07:00:00,7200.0,2,0,b\n"
    "2017-10-09 06:00:00,3600.0,1,0,a\n"
    "2017-10-09 06:00:10,60.0,1,0,a\n"
    "2017-10-09 06:00:20,60.0,1,0,a\n"
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.csv"
    path.write_text(HEADER + ROWS)
    return path


def test_jobs_are_read_in_order_of_submission(trace: Path) -> None:
    jobs = queueing.read_jobs(trace)
    assert jobs.submitted == [0.0, 10.0, 20.0, 3600.0]
    assert jobs.tenant == ["a", "a", "a", "b"]


@pytest.mark.parametrize(
    "row",
    [
        "2017-10-09 07:00:00,nan,1,0,a",
        "x,1,1,0,a",
        "2017-10-09,-1,1,0,a",
        "2017-10-09,1,1.5,0,a",
        "2017-10-09,1,0,0,a",
        "2017-10-09,1,inf,0,a",
        "2017-10-09,1,1e400,0,a",
        "2017-10-09,1,1,0,",
        "2017-10-09,1,1,0",
        "2017-10-09,1,1,0,a,more",
        "2017-10-09T07:00:00+02:00,1,1,0,a",
    ],
)
def test_a_row_that_makes_no_sense_is_refused_with_its_line(trace: Path, row: str) -> None:
    trace.write_text(HEADER + ROWS + row + "\n")
    with pytest.raises(SourceInvalid, match="line 6"):
        queueing.read_jobs(trace)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (HEADER.replace("num_gpus", "gpus").encode(), "num_gpus"),
        ((HEADER.strip() + ",cluster\n").encode(), "cluster"),
        (b"\xbb\x00\xff", "UTF-8"),
        ((HEADER + "2017-10-09,1,1,0," + "x" * 200_000).encode(), "field limit"),
        ((HEADER + '2017-10-09,1,1,0,"a\n').encode(), "unexpected end"),
        ((HEADER + "0001-01-01,1,1,0,a\n9999-12-31,1,1,0,a\n").encode(), "days"),
        ((HEADER + "2017-10-09,1e300,1,0,a\n").encode(), "days"),
        (HEADER.encode(), "no jobs"),
        (b"", "column"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_and_it_is_said_why(trace: Path, content: bytes, said: str) -> None:
    trace.write_bytes(content)
    with pytest.raises(SourceInvalid, match=said):
        queueing.read_jobs(trace)


def test_a_byte_order_mark_is_passed_over(trace: Path) -> None:
    trace.write_bytes(b"\xef\xbb\xbf" + (HEADER + ROWS).encode())
    assert len(queueing.read_jobs(trace)) == 4


@pytest.mark.parametrize(
    "words",
    [
        ["simulate", "queue", "--gpus", "0", "--policy", "static"],
        ["simulate", "queue", "--gpus", "-3"],
        ["simulate", "queue", "--gpus", "4", "--cost", "nan"],
        ["cost", "replay", "--gpus", "0"],
        ["cost", "replay", "--gpus", "-4"],
        ["cost", "replay", "--cost", "inf"],
    ],
)
def test_a_pool_or_a_cost_that_cannot_be_is_refused_as_one_value_with_the_next_step(
    trace: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main([*words, "--jobs", str(trace), "--json"]) == 2
    printed = capsys.readouterr()
    error = json.loads(printed.err or printed.out)
    assert error["code"] == "invalid-input"
    assert error["next"].startswith("Give --")


def test_shares_that_some_jobs_do_not_fit_into_are_said_to_never_run_them(
    trace: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace.write_text(HEADER + "2017-10-09,5,3,0,a\n2017-10-09,5,3,0,b\n")
    picture = ["--plot", str(tmp_path / "jobs.svg")]
    assert main(["simulate", "queue", "--jobs", str(trace), "--gpus", "4", "--policy", "all", *picture]) == 0
    assert "never runs" in capsys.readouterr().out


def test_shares_follow_demand_but_have_room_for_the_largest_job_and_add_up() -> None:
    jobs = Jobs(submitted=[0.0] * 3, seconds=[900.0, 90.0, 10.0], gpus=[1, 1, 4], tenant=["a", "b", "c"])
    assert queueing.proportional(jobs, 20) == {"c": 4, "a": 15, "b": 1}
    assert sum(queueing.proportional(jobs, 5).values()) == 5


def test_an_elastic_pool_pays_whole_machines_for_each_hour_in_which_they_are_needed(trace: Path) -> None:
    jobs = queueing.read_jobs(trace)
    summary, _ = queueing.run(jobs, 8, "default")
    assert summary.elastic_gpu_hours == 8 * 3
    assert summary.pool_gpu_hours == 8 * 3
    assert summary.preemptions == 0


def test_the_command_prints_one_value_that_says_who_waits_longer_than_alone(
    trace: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "jobs.svg"
    words = [
        "simulate",
        "queue",
        "--jobs",
        str(trace),
        "--gpus",
        "3",
        "--policy",
        "all",
        "--plot",
        str(picture),
        "--json",
    ]
    assert main(words) == 0
    found = {one["policy"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["default"]["worse"] == []
    assert found["default"]["mean"] <= found["static"]["mean"]
    assert found["static"]["jobs_per_second"] == 0, "what was simulated for another policy is not measured again"
    assert picture.read_text().startswith("<svg")


def test_replaying_a_file_says_what_the_same_work_costs(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "replay", "--jobs", str(trace), "--gpus", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["found"]["gpus"] <= 4
    assert 0 <= found["saved"] <= found["saved_at_most"]
    assert found["work_gpu_hours"] == pytest.approx(5 + 120 / 3600)


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 3000), st.integers(1, 4)), min_size=1, max_size=12),
    st.sampled_from(["default", "fifo-backfill", "oracle"]),
)
def test_no_schedule_pays_less_for_a_pool_than_the_least_that_is_said(
    rows: list[tuple[int, int, int]], name: queueing.Name
) -> None:
    submitted, seconds, gpus = zip(*sorted(rows), strict=True)
    tenants = ["ab"[at % 2] for at in range(len(rows))]
    jobs = Jobs(submitted=list(submitted), seconds=list(seconds), gpus=list(gpus), tenant=tenants)
    summary, _ = queueing.run(jobs, 8, name)
    assert queueing.least_paid(jobs, 8) <= summary.pool_gpu_hours + 1e-9
    work = sum(need * long for need, long in zip(gpus, seconds, strict=True)) / 3600
    assert queueing.least_paid(jobs, 8) >= work - 1e-9


def test_a_policy_that_is_not_known_is_refused_with_those_that_are(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "queue", "--jobs", str(trace), "--gpus", "3", "--policy", "luck"]) != 0
    assert "least-attained" in capsys.readouterr().err


def test_a_pool_too_small_for_the_largest_job_is_refused(trace: Path) -> None:
    with pytest.raises(InvalidInput, match="needs 2 GPUs"):
        queueing.run(queueing.read_jobs(trace), 1, "default")


def test_replaying_a_project_asks_for_its_jobs_and_says_so_where_there_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(tmp_path / "home")]
    assert main(["projects", "create", "ores", *home]) == 0
    assert main(["cost", "replay", "--project", "ores", *home]) != 0
    assert "no job that succeeded on GPUs" in capsys.readouterr().err


def test_replaying_a_project_prices_its_pools_at_what_its_own_jobs_were_charged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = ["--home", str(tmp_path / "home")]
    monkeypatch.setenv("MACADAM_GPUS", "1xl40s-48gb")
    monkeypatch.setenv("MACADAM_PRICE_GPU_HOUR", "2000000")
    monkeypatch.setenv("MACADAM_PRICE_CPU_HOUR", "0")
    assert main(["projects", "create", "ores", *home]) == 0
    start = ["jobs", "start", "--project", "ores", "--gpus", "1", "--memory", "64M"]
    assert main([*start, *home, "--", "true"]) == 0
    assert main(["jobs", "run", "--until-idle", *home]) == 0
    capsys.readouterr()
    assert main(["cost", "replay", "--project", "ores", "--json", *home]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["money"]["gpu_hour"]["micros"] == pytest.approx(
        2_000_000, rel=0.01
    )  # each attempt is rounded up to a micro
    hours = found["elastic"]["elastic_gpu_hours"]
    assert found["money"]["elastic"]["micros"] == pytest.approx(hours * 2_000_000, rel=0.01)
    assert main(["cost", "replay", "--project", "ores", *home]) == 0
    assert "what a GPU has cost its jobs on average" in capsys.readouterr().out
