"""Real jobs, killed at random with their supervisors and the queue's own process: each ends as it declared, once, within quotas.

What happened is read from what the jobs themselves wrote and from the ledger, not from the tables that the queue works with.
MACADAM_SOAK=1 runs 500 jobs; MACADAM_SEED: another course.
"""

import contextlib
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import psutil
import pytest
from acceptance.roads import SOAK, chance, require_sound

from macadam.access.types import CreateProject
from macadam.adapters import supervisor
from macadam.adapters.local_executor import LocalExecutor
from macadam.app.platform import Platform
from macadam.compute.jobs import bookkeeping
from macadam.compute.jobs.types import CancelJob, Job, Resources, SetQuota, ShowJob, SubmitJob
from macadam.errors import Conflict
from macadam.ledger import service as ledger
from macadam.ledger.leaf import Leaf
from macadam.testing import open_platform

JOBS = 500 if SOAK else 20
PAUSES = (0.1, 0.5) if SOAK else (0.2, 0.7)
"""Seconds between two kills."""
SECONDS = 1200 if SOAK else 120
GPUS = 6
SETTINGS = {
    "MACADAM_GPUS": str(GPUS),
    "MACADAM_JOBS_EVERY": "0.05",
    "MACADAM_JOBS_RESTART_DELAY": "0.05",
}
# Six GPUs, of three cohorts: two that lend to each other, and one that lends and borrows nothing.
QUOTAS = {
    "ores": SetQuota(tenant="ores", gpus=3, cohort="quarry", borrow=1),
    "sand": SetQuota(tenant="sand", gpus=2, cohort="quarry", lend=1),
    "tar": SetQuota(tenant="tar", gpus=1, cohort="alone", borrow=0),
}
PROGRAM = str(Path(__file__).with_name("job_program.py"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 300)]

Declared = dict[str, tuple[str, int]]
"""By job's id: the state that it is to end in, and its exit code."""


def submit(platform: Platform, place: Path, moments: random.Random) -> tuple[Job, tuple[str, int]]:
    """A job of a random kind, with the outcome that it declares."""
    kind = moments.choices(["work", "fail", "retry", "forever", "long"], [45, 15, 15, 10, 15])[0]
    code = moments.randint(1, 74) if kind == "fail" else 0
    steps = moments.randint(20, 40) if kind == "long" else moments.randint(1, 12)
    program = {"fail": "work", "long": "work"}.get(kind, kind)
    shape = moments.choice([{"gpus": 1}, {"gpus": 1}, {"gpus": 2}, {"milli": 500}, {"milli": 250}, {}])
    project = moments.choice(list(QUOTAS))
    if project == "tar" and shape.get("gpus") == 2:
        shape = {"gpus": 1}
    job = platform.call(
        SubmitJob(
            project=project,
            name=kind,
            command=("python", "-I", "-S", PROGRAM, str(place), program, str(code), str(steps), "0.02"),
            resources=Resources(**shape, cpus=0.05, memory=64 << 20),
            priority=moments.randint(0, 3),
            checkpoint=True,
            grace=5,
            max_restarts=100,
        )
    )
    state = {"fail": "failed", "forever": "cancelled"}.get(kind, "succeeded")
    return job, (state, code)


class Daemon:
    """`macadam jobs run` as a process, killed and started again."""

    def __init__(self, home: Path) -> None:
        self.home, self.kills = home, 0
        self._log = (home.parent / "daemon.log").open("ab")
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "macadam.faces.cli", "jobs", "run", "--home", str(self.home)]
        plain = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
        return subprocess.Popen(command, env={**plain, **SETTINGS}, stdout=self._log, stderr=self._log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.kills += 1
        self.process = self._start()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self._log.close()


class Killer:
    """Kills members of running jobs, their supervisors and the queue's process, and lets the machine announce its end."""

    def __init__(self, home: Path, daemon: Daemon, moments: random.Random) -> None:
        self._home, self._daemon, self._moments = home, daemon, moments
        self.killed: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.wait(self._moments.uniform(*PAUSES)):
            what = self._moments.choices(["member", "supervisor", "daemon", "leaving"], [10, 4, 2, 1])[0]
            if not self._daemon.kills:
                what = "daemon"  # however short the run is
            if what == "daemon":
                # At any instant of its start or its turns, not only once it is well under way.
                self._daemon.kill()
            elif what == "leaving":
                self._leave()
            else:
                self._kill(what)
                continue
            self.killed[what] += 1

    def _kill(self, what: str) -> None:
        begun = sorted(self._home.glob("jobs/attempts/*/begun.json"))
        open_ones = [path for path in begun if not path.with_name(supervisor.OUTCOME).exists()]
        if not open_ones:
            return
        path = self._moments.choice(open_ones)
        with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
            facts = msgspec.json.decode(path.read_bytes())
            pid, start = facts["members"][0]
            if supervisor.start_of(pid) != start:
                return
            process = psutil.Process(pid)
            if what == "supervisor":
                parent = process.parent()
                if parent is None or "supervisor.py" not in " ".join(parent.cmdline()):
                    return
                process = parent
            process.kill()
            self.killed[what] += 1

    def _leave(self) -> None:
        machine = LocalExecutor.__new__(LocalExecutor)
        machine._place = self._home / "jobs"
        machine.notice(datetime.now(UTC) + timedelta(seconds=20))
        self._stop.wait(0.4)
        machine.notice(None)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def wait_for(
    platform: Platform, declared: Declared, projects: dict[str, str], moments: random.Random
) -> dict[str, Job]:
    """Cancels at random what never ends by itself; returns all jobs once they have ended."""
    limit = time.monotonic() + SECONDS
    open_ones, ended = dict(projects), {}
    to_cancel = [job for job, (state, _) in declared.items() if state == "cancelled"]
    while open_ones:
        assert time.monotonic() < limit, f"{len(open_ones)} jobs have not ended"
        if to_cancel and moments.random() < 0.3:
            job = to_cancel.pop()
            platform.call(CancelJob(project=projects[job], job=job, grace=moments.choice([-1, 0, 0.2])))
        for job, project in list(open_ones.items())[:: max(1, len(open_ones) // 40)]:
            found = platform.call(ShowJob(project=project, job=job)).job
            if found.ended is not None:
                ended[job] = found
                del open_ones[job]
        time.sleep(0.05)
    return ended


@pytest.fixture
def home(tmp_path: Path) -> Path:
    place = tmp_path / "home"
    with open_platform(place, environment=SETTINGS) as platform:
        for project, quota in QUOTAS.items():
            platform.call(CreateProject(project=project))
            platform.call(quota)
    for folder in ("locks", "ends"):
        (tmp_path / folder).mkdir()
    return place


def lines(place: Path, name: str) -> list[list[str]]:
    path = place / name
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def test_each_job_ends_as_it_declared_once_and_quotas_hold_at_every_instant(home: Path) -> None:
    place, moments, began = home.parent, chance(), time.monotonic()
    declared: Declared = {}
    projects: dict[str, str] = {}
    daemon = Daemon(home)
    killer = Killer(home, daemon, random.Random(moments.random()))
    try:
        with open_platform(home, environment=SETTINGS) as platform:
            for _ in range(JOBS):
                job, outcome = submit(platform, place, moments)
                declared[job.id], projects[job.id] = outcome, job.project
            ended = wait_for(platform, declared, projects, moments)
    finally:
        killer.close()
        daemon.close()
    print(
        f"{JOBS} jobs in {time.monotonic() - began:.0f} s, {sum(j.attempt for j in ended.values())} attempts, killed: "
        f"{dict(killer.killed)}, endings: {Counter(j.ending for j in ended.values())}, "
        f"preempted {sum(j.preemptions for j in ended.values())} times"
    )
    assert {job: (j.state, j.exit_code if j.state != "cancelled" else 0) for job, j in ended.items()} == declared
    with open_platform(home, environment=SETTINGS) as platform:
        leaves = job_leaves(platform)
        require_sound(platform)
    require_ended_once(leaves, declared)
    require_done_once(place, declared, leaves)
    require_nothing_lost(place)
    require_within_quotas(leaves)
    assert daemon.kills >= (20 if SOAK else 1)
    assert not SOAK or killer.killed["member"] + killer.killed["supervisor"] >= JOBS // 20


def job_leaves(platform: Platform) -> list[Leaf]:
    """About attempts, in the ledger's order."""
    with platform.ports.sql.read() as sql:
        found = [entry for entry in ledger.find(sql, limit=10_000_000) if entry.leaf.subject.startswith("job:")]
    return [entry.leaf for entry in sorted(found, key=lambda entry: entry.index)]


def require_within_quotas(leaves: list[Leaf]) -> None:
    """Holdings are what starts added and ends took away, leaf by leaf: whatever the order of anything else."""
    held: Counter[str] = Counter()
    devices: Counter[str] = Counter()
    taken: dict[str, dict[str, int]] = {}
    most: Counter[str] = Counter()
    for leaf in leaves:
        key = f"{leaf.subject}.{leaf.body.get('attempt')}"
        if leaf.kind == bookkeeping.START:
            assert key not in taken
            given = dict(text.rsplit("=", 1) for text in leaf.body["devices"])
            taken[key] = {device: int(milli) for device, milli in given.items()}
            held[leaf.project] += leaf.body["milli"]
            devices.update(taken[key])
        elif leaf.kind == bookkeeping.END:
            held[leaf.project] -= leaf.body["milli"]
            devices.subtract(taken.pop(key))
        else:
            continue
        assert all(milli <= 1000 for milli in devices.values()), leaf
        for quota in QUOTAS.values():
            own = 1000 * quota.gpus
            assert held[quota.tenant] <= own + (10**9 if quota.borrow is None else 1000 * quota.borrow), leaf
            others = [one for one in QUOTAS.values() if one.cohort == quota.cohort]
            assert sum(held[one.tenant] for one in others) <= 1000 * sum(one.gpus for one in others), leaf
            lent = sum(max(0, held[one.tenant] - 1000 * one.gpus) for one in others if one is not quota)
            if quota.lend is not None and len(others) == 2:
                assert lent <= 1000 * quota.lend, leaf
        most |= held
    assert taken == {}
    assert set(held.values()) == {0}
    print(f"the most that was held at once, in thousandths: {dict(most)}")


def require_ended_once(leaves: list[Leaf], declared: Declared) -> None:
    """One leaf takes each job to its end, and no attempt begins before the one before it has ended."""
    finals: Counter[str] = Counter()
    open_ones: dict[str, int] = {}
    number: Counter[str] = Counter()
    for leaf in leaves:
        job = leaf.subject.removeprefix("job:")
        if leaf.kind == bookkeeping.START:
            assert job not in open_ones
            number[job] += 1
            open_ones[job] = number[job]
            assert leaf.body["attempt"] == number[job]
        elif leaf.kind == bookkeeping.END:
            assert open_ones.pop(job) == leaf.body["attempt"]
            finals[job] += leaf.body["state"] in ("succeeded", "failed", "cancelled")
        elif leaf.kind == "compute.cancel_job" and leaf.body["before"] == "waiting":
            finals[job] += 1  # it had not begun
    assert finals == Counter(dict.fromkeys(declared, 1))


def require_done_once(place: Path, declared: Declared, leaves: list[Leaf]) -> None:
    """What the jobs wrote. A job that said so once more had been killed or stopped after its work was at its end."""
    assert lines(place, "violations") == []
    by_itself = {job: code for job, (state, code) in declared.items() if state != "cancelled"}
    done = lines(place, "done")
    assert Counter(job for job, _, _ in done) == Counter(dict.fromkeys(by_itself, 1))
    assert {job: int(code) for job, _, code in done} == by_itself
    endings = {
        (leaf.subject.removeprefix("job:"), leaf.body["attempt"]): leaf.body["ending"]
        for leaf in leaves
        if leaf.kind == bookkeeping.END
    }
    at = {job: int(attempt) for job, attempt, _ in done}
    for job, attempt in lines(place, "again"):
        assert int(attempt) > at[job]
        assert endings[job, at[job]] in ("killed", "lost", "preempted", "node"), (job, attempt)
    began = Counter((job, attempt) for job, attempt, _ in lines(place, "began"))
    assert set(began.values()) == {1}, "an attempt ran more than once"


def require_nothing_lost(place: Path) -> None:
    """Each attempt goes on from where the one before it had saved, or further."""
    steps: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for job, attempt, step in lines(place, "began"):
        steps[job].append((int(attempt), int(step)))
    for job, attempts in steps.items():
        assert [step for _, step in sorted(attempts)] == sorted(step for _, step in attempts), job
    assert any(step > 0 for attempts in steps.values() for _, step in attempts), "none went on from a checkpoint"


def test_a_job_that_has_ended_cannot_be_cancelled(home: Path) -> None:
    daemon = Daemon(home)
    try:
        with open_platform(home, environment=SETTINGS) as platform:
            job = platform.call(SubmitJob(project="tar", command=("python", "-c", "pass")))
            wait_for(platform, {job.id: ("succeeded", 0)}, {job.id: "tar"}, chance())
            with pytest.raises(Conflict):
                platform.call(CancelJob(project="tar", job=job.id))
    finally:
        daemon.close()
