"""Real processes on virtual spot and on-demand machines: notices, checkpoints, moves, and the queue's process killed in the middle.

What happened is read from what the jobs wrote and from the queue's own records.
"""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from acceptance.roads import require_sound

from macadam.access.types import CreateProject
from macadam.adapters.local_executor import LocalExecutor
from macadam.app.platform import Platform
from macadam.compute.jobs.types import ExplainJob, Job, JobPage, Resources, ShowJob, SubmitJob
from macadam.testing import open_platform

SETTINGS = {
    "MACADAM_MACHINES": "base=1:on-demand,cheap=1@zone-a:spot",
    "MACADAM_JOBS_EVERY": "0.05",
    "MACADAM_JOBS_RESTART_DELAY": "0.05",
    "MACADAM_JOBS_CHANGEOVER": "3",
    "MACADAM_JOBS_SPOT_STEP": "1",
    "MACADAM_JOBS_SPOT": "greedy",
}
PROGRAM = str(Path(__file__).with_name("job_program.py"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def daemon(home: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "macadam.faces.cli", "jobs", "run", "--home", str(home)]
    plain = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    with (home.parent / "daemon.log").open("ab") as log:
        return subprocess.Popen(command, env={**plain, **SETTINGS}, stdout=log, stderr=log)


def submit(platform: Platform, place: Path, steps: int, **more: object) -> Job:
    """About so many twentieths of a second of work."""
    facts = {
        "project": "p",
        "command": ("python", "-I", "-S", PROGRAM, str(place), "work", "0", str(steps), "0.05"),
        "resources": Resources(gpus=1, cpus=0.05, memory=64 << 20),
        "checkpoint": True,
        "grace": 2,
        "max_restarts": 20,
    }
    return platform.call(SubmitJob(**facts | more))  # type: ignore[arg-type]


def page(platform: Platform, job: Job) -> JobPage:
    return platform.call(ShowJob(project="p", job=job.id))


def machines(platform: Platform, job: Job) -> list[str]:
    return [row.places[0].node for row in page(platform, job).attempts]


def until(what: Callable[[], bool], within: float = 60) -> None:
    limit = time.monotonic() + within
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.05)


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def lines(place: Path, name: str) -> list[list[str]]:
    path = place / name
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def test_jobs_use_spot_leave_it_on_notice_and_go_on_demand_in_time_whoever_is_killed(tmp_path: Path) -> None:
    home, place = tmp_path / "home", tmp_path
    for folder in ("locks", "ends"):
        (place / folder).mkdir()
    with open_platform(home, environment=SETTINGS) as platform:
        platform.call(CreateProject(project="p"))
        here = platform.ports.executor
        assert isinstance(here, LocalExecutor)
        process = daemon(home)
        try:
            # 1. With time enough it is on spot, and leaves the on-demand machine to what may not be stopped.
            patient = submit(platform, place, 80, time_limit=20, deadline=soon(3600))
            until(lambda: machines(platform, patient) == ["cheap"] and page(platform, patient).job.state == "running")
            firm = submit(platform, place, 2, preemptible=False)
            until(lambda: page(platform, firm).job.state == "succeeded")
            assert machines(platform, firm) == ["base"]
            # 2. The spot machine goes; it saves, waits for spot, and the queue's process is killed meanwhile.
            here.notice(soon(6), machine="cheap")
            until(lambda: page(platform, patient).job.wish == "node" or page(platform, patient).job.state == "waiting")
            process.kill()
            process.wait()
            process = daemon(home)
            until(lambda: page(platform, patient).job.state == "waiting")
            until(lambda: "cheap" not in [node.name for node in here.nodes()])
            until(lambda: "waits for spot" in platform.call(ExplainJob(project="p", job=patient.id)).words)
            assert page(platform, patient).attempts[0].ending == "node"
            # 3. Spot comes back: it goes on there. One that is in a hurry takes the on-demand machine at once.
            hurried = submit(platform, place, 20, time_limit=5, deadline=soon(12))
            until(lambda: machines(platform, hurried)[:1] == ["base"])
            here.notice(None, machine="cheap")
            until(lambda: machines(platform, patient) == ["cheap", "cheap"])
            until(lambda: all(page(platform, one).job.state == "succeeded" for one in (patient, hurried)))
            # 4. One whose slack runs out on spot is moved on demand, and the process is killed in the middle of that.
            slack = submit(platform, place, 200, group="slow", time_limit=30, deadline=soon(42))
            until(lambda: machines(platform, slack) == ["cheap"])
            until(lambda: page(platform, slack).job.wish == "move" or len(machines(platform, slack)) > 1)
            process.kill()
            process.wait()
            process = daemon(home)
            until(lambda: page(platform, slack).job.state == "succeeded")
            ended = page(platform, slack)
            assert ended.attempts[0].ending == "moved"
            assert ended.job.ended and ended.job.spec.deadline and ended.job.ended < ended.job.spec.deadline  # noqa: PT018 - one fact
        finally:
            process.terminate()
            process.wait(30)
        require_sound(platform)
    assert lines(place, "violations") == []
    jobs = (patient, firm, hurried, slack)
    assert Counter(job for job, *_ in lines(place, "done")) == Counter(job.id for job in jobs)
    steps = [int(step) for job, _, step in lines(place, "began") if job == patient.id]
    assert steps == sorted(steps)
    assert steps[-1] > 0, "it went on from its checkpoint"
    assert len(lines(place, "began")) == len({(job, attempt) for job, attempt, _ in lines(place, "began")})
