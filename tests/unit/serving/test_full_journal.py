"""A gateway whose journal's disk is full: who stops, who goes on, how both are seen, and what is said once there is space.

The disk is a small tmpfs where one can be mounted. Elsewhere, and for what has to be exact, the gateway's own limit on the
size of files is set from outside: every write of a record then fails as on a full disk.
"""

import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from unit.serving import homes
from unit.serving.homes import PROJECT
from unit.serving.test_gateway import predict, ready, until

from macadam.app.platform import Platform
from macadam.errors import InvalidInput
from macadam.governance.types import Inspect, PointResult
from macadam.journal.types import DeclareJournal, JournalState, JournalStatus, SealClosed

_ENDLESS = resource.RLIM_INFINITY


class Squeeze:
    """Lets a process write nothing, or everything again."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._pid = process.pid

    def full(self) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (0, _ENDLESS))

    def free(self) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (_ENDLESS, _ENDLESS))


def declare(platform: Platform, on_failure: str) -> None:
    platform.call(DeclareJournal(project=PROJECT, on_journal_failure=on_failure))  # type: ignore[arg-type]


def status(platform: Platform) -> JournalState:
    return platform.call(JournalStatus(project=PROJECT))


def condition(platform: Platform) -> str:
    return "".join(one.condition for one in status(platform).gateways if one.alive)


def point(platform: Platform) -> PointResult:
    return {one.id: one for one in platform.call(Inspect(project=PROJECT)).points}["34"]


def metric(client: httpx.Client, name: str, cause: str) -> int:
    start = f'macadam_gateway_journal_{name}_total{{project="{PROJECT}",cause="{cause}"}} '
    return int(next(line for line in client.get("/metrics").text.splitlines() if line.startswith(start)).split()[-1])


def finish(platform: Platform) -> None:
    """Seals all that is closed."""
    while platform.call(SealClosed(project=PROJECT)).remaining:
        pass


def test_a_project_stops_with_its_journal_and_goes_on_with_it(deployed: Platform, home: Path, token: str) -> None:
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        ready(client)
        assert predict(client).status_code == 200
        squeeze = Squeeze(gateway.process)
        squeeze.full()
        refused = predict(client)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["code"] == "journal-disk-full"
        assert "answered without its record" in refused.json()["detail"]
        assert str(home) not in refused.text
        assert "does not answer" in client.get("/health/ready").json()["detail"]
        assert metric(client, "refused", "disk-full") == 1
        until(lambda: condition(deployed) == "disk-full")
        squeeze.free()
        ready(client)  # by itself: nobody asks a gateway that is not ready
        assert predict(client).status_code == 200
        until(lambda: condition(deployed) == "")
        assert status(deployed).unrecorded == 0
    finish(deployed)
    assert point(deployed).status == "pass"


def test_answers_without_a_record_say_so_are_counted_and_told_once_there_is_space(
    deployed: Platform, home: Path, token: str
) -> None:
    declare(deployed, "answer-unrecorded")
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        ready(client)
        assert "x-macadam-journal" not in predict(client).headers
        squeeze = Squeeze(gateway.process)
        squeeze.full()
        for _ in range(3):
            answer = predict(client)
            assert (answer.status_code, answer.headers["x-macadam-journal"]) == (200, "unrecorded")
            assert 0 < answer.json()["output"]["score"] < 1
            assert answer.json()["prediction"] == ""
        assert client.get("/health/ready").json()["status"] == "degraded"
        assert metric(client, "unrecorded", "disk-full") == 3
        until(lambda: status(deployed).unrecorded == 3)
        squeeze.free()
        assert "x-macadam-journal" not in predict(client).headers
        until(lambda: sum(one.untold for one in status(deployed).gateways) == 0)
    finish(deployed)
    found = status(deployed)
    assert [(gap.answers, gap.causes) for gap in found.gaps] == [(3, {"disk-full": 3})]
    assert (found.unrecorded, found.records, found.answers) == (3, 2, 2)
    failed = point(deployed)
    assert failed.status == "fail"
    assert "3 answers between" in failed.detail
    assert failed.table[0]["without record"] == "3"
    assert "left without a record" in failed.table[0]["counterexample"]


def test_a_count_of_unrecorded_answers_survives_kill_9(deployed: Platform, home: Path, token: str) -> None:
    declare(deployed, "answer-unrecorded")
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        ready(client)
        predict(client)
        Squeeze(gateway.process).full()
        assert [predict(client).status_code for _ in range(5)] == [200] * 5
        gateway.process.send_signal(signal.SIGKILL)
        gateway.process.wait(10)
    assert status(deployed).unrecorded == 5
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        ready(client)
        assert predict(client).status_code == 200
    finish(deployed)
    assert [gap.answers for gap in status(deployed).gaps] == [5]
    assert not list((home / "journal" / PROJECT).glob("*.gap"))


def test_a_high_risk_project_stops_whatever_it_declared_before(deployed: Platform, home: Path, token: str) -> None:
    declare(deployed, "answer-unrecorded")
    deployed.ports.sql.write(lambda sql: sql.exec_driver_sql("UPDATE access_projects SET risk = 'high'"))
    with pytest.raises(InvalidInput, match="high risk"):
        declare(deployed, "answer-unrecorded")
    deployed.call(DeclareJournal(project=PROJECT, durability="answer-after-fsync"))
    declared = status(deployed)
    assert (declared.durability, declared.on_journal_failure) == ("answer-after-fsync", "stop")
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        ready(client)
        assert predict(client).status_code == 200
        Squeeze(gateway.process).full()
        assert predict(client).json()["code"] == "journal-disk-full"


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    folder = home / "journal"
    folder.mkdir(exist_ok=True)
    mount = shutil.which("mount")
    command = [mount or "false", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_on_a_disk_that_is_really_full_every_answer_is_accounted_for(
    deployed: Platform, home: Path, token: str, small_disk: Path
) -> None:
    declare(deployed, "answer-unrecorded")
    recorded = unrecorded = 0
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        ready(client)
        while unrecorded < 20:
            answer = predict(client)
            assert answer.status_code == 200
            if answer.headers.get("x-macadam-journal"):
                unrecorded += 1
            else:
                recorded += 1
        assert recorded > 20
        subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
        until(lambda: "x-macadam-journal" not in (last := predict(client)).headers and last.status_code == 200)
        until(lambda: sum(one.untold for one in status(deployed).gateways) == 0)
    finish(deployed)
    found = status(deployed)
    assert found.unrecorded == sum(gap.answers for gap in found.gaps) >= unrecorded
    assert found.records == found.answers >= recorded
    assert found.missing == found.damaged == ()


def test_answers_after_fsync_leave_records_and_answers_equal(deployed: Platform, home: Path, token: str) -> None:
    deployed.call(DeclareJournal(project=PROJECT, durability="answer-after-fsync"))
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        ready(client)
        assert [predict(client).status_code for _ in range(20)] == [200] * 20
        until(lambda: any(one.durability == "answer-after-fsync" for one in [status(deployed)]))
        until(lambda: sum(one.unsynced for one in status(deployed).gateways) == 0)
    finish(deployed)
    found = status(deployed)
    assert (found.records, found.answers, found.open, found.closed, found.sealed) == (20, 20, 0, 0, 1)
