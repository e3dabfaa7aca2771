"""Jobs under a running server, and from the command line: real processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from faces.test_up import Up

from macadam.access.types import CreateProject
from macadam.compute.jobs.types import Job, ListJobs, ReadLog, Resources, ShowJob, SubmitJob
from macadam.errors import InvalidInput
from macadam.faces import cli
from macadam.faces.client import Client
from macadam.faces.gateway_process import end_leftover
from macadam.faces.job_verbs import size
from macadam.testing import local_token, open_platform

FAST = {"MACADAM_JOBS_EVERY": "0.1", "MACADAM_GPUS": "2"}
pytestmark = pytest.mark.slow


def until(client: Client, job: Job, *states: str, within: float = 30) -> Job:
    limit = time.monotonic() + within
    while (found := client.call(ShowJob(project="p", job=job.id)).job).state not in states:
        assert time.monotonic() < limit, found
        time.sleep(0.05)
    return found


def test_a_server_works_its_queue_and_what_runs_survives_its_kill(tmp_path: Path) -> None:
    home, ran = tmp_path / "home", tmp_path / "ran"
    with open_platform(home) as platform:
        platform.call(CreateProject(project="p"))
        token = local_token(platform)
    up = Up(home, **FAST)
    try:
        up.healthy()
        with Client(f"http://127.0.0.1:{up.port}", token) as client:
            code = f"import time; open({str(ran)!r}, 'a').write('began '); time.sleep(3); open({str(ran)!r}, 'a').write('ended'); print('bye')"
            job = client.call(SubmitJob(project="p", command=("python", "-c", code)))
            until(client, job, "running")
        up.process.kill()
        up.process.communicate()
    finally:
        end_leftover(home)
    up = Up(home, **FAST)
    try:
        up.healthy()
        with Client(f"http://127.0.0.1:{up.port}", token) as client:
            assert until(client, job, "running", "succeeded").attempt == 1
            assert until(client, job, "succeeded", "failed").exit_code == 0
            assert client.call(ReadLog(project="p", job=job.id)).text == "bye\n"
        assert ran.read_text() == "began ended"
        memory = sum(
            p.memory_info().rss for p in (psutil.Process(up.process.pid), *psutil.Process(up.process.pid).children())
        )
        assert memory < 300e6
    finally:
        up.stop()


def test_a_command_is_submitted_as_it_is_typed_and_followed_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MACADAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MACADAM_PROJECT", "p")
    for name, value in FAST.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "job.py").write_text("import sys; print('with', sys.argv[1:]); sys.exit(3)")
    assert cli.main(["projects", "create", "p"]) == 0
    capfd.readouterr()
    run = [sys.executable, "-m", "macadam.faces.cli", "jobs", "run"]
    with subprocess.Popen(run, stdout=subprocess.DEVNULL) as queue:
        words = [
            "--deadline",
            "2h",
            "--checkpoint",
            "--checkpoint-every",
            "10m",
            "--grace",
            "5",
            "--gpus",
            "1",
            "--memory",
            "256M",
            "--files",
            str(tmp_path / "code"),
            "--follow",
        ]
        try:
            assert cli.main(["jobs", "start", *words, "--", "python", "job.py", "--epochs", "3"]) == 1
        finally:
            queue.terminate()
    out = capfd.readouterr().out
    assert out.startswith("with ['--epochs', '3']\n")
    assert out.endswith("has failed: it ended with code 3.\n")


def test_whoever_follows_a_job_that_waits_is_told_why_and_gets_the_job_as_one_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MACADAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MACADAM_PROJECT", "p")
    for name, value in FAST.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["projects", "create", "p"]) == 0
    capfd.readouterr()
    command = [sys.executable, "-m", "macadam.faces.cli"]
    start = [*command, "jobs", "start", "--follow", "--json", "--", "python", "-c", "print('the log')"]
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        assert follower.stderr is not None
        told = follower.stderr.readline() + follower.stderr.readline()
        subprocess.run([*command, "jobs", "run", "--until-idle"], check=True, timeout=60, capture_output=True)
        out, err = follower.communicate(timeout=30)
    assert " waits: It starts with the queue's next turn." in told
    assert "macadam up" in told, "nothing works the queue, and that is said"
    assert "the log\n" in err
    assert json.loads(out)["state"] == "succeeded"
    assert follower.returncode == 0


@pytest.mark.parametrize(("text", "bytes_"), [("5", 5), ("1K", 1024), ("512M", 512 << 20), ("64GiB", 64 << 30)])
def test_sizes_are_binary(text: str, bytes_: int) -> None:
    assert size(text) == bytes_


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5G", "1X"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="no size"):
        size(text)


def test_a_queue_in_the_foreground_ends_when_nothing_is_left_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("MACADAM_HOME", str(home))
    monkeypatch.setenv("MACADAM_PROJECT", "p")
    for name, value in FAST.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["projects", "create", "p"]) == 0
    capfd.readouterr()
    command = json.dumps(["python", "-c", "for n in range(3): print('line', n)"])
    assert cli.main(["jobs", "submit", "--command", command, "--resources", '{"gpus": 1}', "--json"]) == 0
    job = json.loads(capfd.readouterr().out)["id"]
    run = [sys.executable, "-m", "macadam.faces.cli", "jobs", "run", "--until-idle"]
    subprocess.run(run, check=True, timeout=60, capture_output=True)
    assert cli.main(["jobs", "follow", job]) == 0
    assert capfd.readouterr().out == f"line 0\nline 1\nline 2\njob:{job} has succeeded.\n"
    assert cli.main(["jobs", "explain", job, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["reason"] == "ended"
    assert cli.main(["jobs", "cancel", job]) == 7
    assert "succeeded already" in capfd.readouterr().err


def test_a_projects_own_jobs_are_replayed_and_no_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path / "home")]
    with open_platform(tmp_path / "home") as platform:
        for project in ("p", "q"):
            platform.call(CreateProject(project=project))
        for project, resources, code in (
            ("p", Resources(gpus=1), "import time; time.sleep(0.3)"),
            ("p", Resources(gpus=2), "import time; time.sleep(0.1)"),
            ("p", Resources(milli=250), ""),
            ("p", Resources(gpus=1), "raise SystemExit(3)"),
            ("p", Resources(), ""),
            ("q", Resources(gpus=1), ""),
        ):
            platform.call(SubmitJob(project=project, command=("python", "-c", code), resources=resources))
    command = [sys.executable, "-m", "macadam.faces.cli", "jobs", "run", "--until-idle", *home]
    subprocess.run(command, check=True, timeout=60, env=os.environ | FAST, capture_output=True)
    with open_platform(tmp_path / "home") as platform:
        done = platform.call(ListJobs(project="p", state="succeeded"))

    capsys.readouterr()
    assert cli.main(["cost", "replay", "--project", "p", "--json", *home]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["baseline"]["jobs"] == 3, "those that succeeded on GPUs"
    worked = sum(job.attained * max(1, job.spec.resources.gpus) for job in done if job.spec.resources.demand)
    assert found["work_gpu_hours"] == pytest.approx(worked / 3600)
    assert worked > 0.5, "they really ran"
    assert found["found"]["mean"] <= found["baseline"]["mean"]

    assert cli.main(["cost", "replay", "--project", "p", *home]) == 0
    assert "1 of them asked for a part of a GPU; each counts as one GPU here." in " ".join(
        capsys.readouterr().out.split()
    )
