"""What a cloud announces to its machine, over HTTP against a stand-in that refuses what the clouds refuse."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from contract.metadata_server import Cloud, event, serving

from macadam.adapters.interruptions import Notice, Watcher
from macadam.adapters.local_executor import LocalExecutor
from macadam.adapters.local_objects import LocalObjects
from macadam.testing import open_platform

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with serving() as made:
        yield made


class Watching:
    """A watcher whose clock is turned by hand."""

    def __init__(self, provider: str, cloud: Cloud) -> None:
        self.now = NOW
        self.watcher = Watcher(provider, address=cloud.url, now=lambda: self.now)  # type: ignore[arg-type]

    def look(self) -> Notice:
        return self.watcher.look()


@pytest.fixture
def watch(cloud: Cloud) -> Iterator[type[Watching]]:
    made: list[Watching] = []

    class Kept(Watching):
        def __init__(self, provider: str, cloud: Cloud) -> None:
            super().__init__(provider, cloud)
            made.append(self)

    yield Kept
    for one in made:
        one.watcher.close()


def test_aws_is_asked_with_a_token_and_says_when_the_machine_goes(cloud: Cloud, watch: type[Watching]) -> None:
    aws = watch("aws", cloud)
    assert aws.look() == Notice()
    cloud.action = {"action": "terminate", "time": "2026-11-21T12:02:00Z"}
    assert aws.look() == Notice(leaving=NOW + timedelta(minutes=2), words="AWS: terminate")
    assert cloud.asked.count("PUT /latest/api/token") == 1
    cloud.tokens.clear()  # it has expired
    assert aws.look().leaving == NOW + timedelta(minutes=2)
    assert cloud.asked.count("PUT /latest/api/token") == 2
    cloud.action = None
    assert aws.look() == Notice()


def test_a_recommendation_of_aws_is_a_risk_and_no_notice(cloud: Cloud, watch: type[Watching]) -> None:
    cloud.rebalance = True
    found = watch("aws", cloud).look()
    assert (found.leaving, found.risky) == (None, True)


def test_hibernation_begins_at_once_and_a_time_that_is_none_leaves_the_shortest(
    cloud: Cloud, watch: type[Watching]
) -> None:
    cloud.action = {"action": "hibernate", "time": "2026-11-21T12:02:00Z"}
    assert watch("aws", cloud).look().leaving == NOW
    cloud.action = {"action": "stop", "time": "soon"}
    assert watch("aws", cloud).look().leaving == NOW + timedelta(seconds=30)


def test_gcp_says_that_it_is_preempted_and_the_end_does_not_move_on(cloud: Cloud, watch: type[Watching]) -> None:
    gcp = watch("gcp", cloud)
    assert gcp.look() == Notice()
    cloud.preempted = True
    assert gcp.look().leaving == NOW + timedelta(seconds=30)
    gcp.now += timedelta(seconds=20)
    assert gcp.look().leaving == NOW + timedelta(seconds=30)


@pytest.mark.parametrize(
    ("said", "left"), [("NONE", None), ("MIGRATE_ON_HOST_MAINTENANCE", None), ("TERMINATE_ON_HOST_MAINTENANCE", 60)]
)
def test_maintenance_ends_a_machine_of_gcp_unless_it_is_migrated(
    cloud: Cloud, watch: type[Watching], said: str, left: int | None
) -> None:
    cloud.maintenance = said
    assert watch("gcp", cloud).look().leaving == (None if left is None else NOW + timedelta(seconds=left))


@pytest.mark.parametrize(
    ("kind", "at", "machine", "leaving"),
    [
        ("Preempt", "Sat, 21 Nov 2026 12:00:30 GMT", "west_0", NOW + timedelta(seconds=30)),
        ("Preempt", "2026-11-21T12:00:30Z", "west_0", NOW + timedelta(seconds=30)),
        ("Terminate", "", "west_0", NOW),  # it has begun
        ("Redeploy", "Sat, 21 Nov 2026 12:10:00 GMT", "west_0", NOW + timedelta(minutes=10)),
        ("Redeploy", "Sat, 28 Nov 2026 12:00:00 GMT", "west_0", None),  # not yet
        ("Freeze", "Sat, 21 Nov 2026 12:15:00 GMT", "west_0", None),
        ("Preempt", "Sat, 21 Nov 2026 12:00:30 GMT", "west_1", None),
        ("Preempt", "soon", "west_0", NOW),
    ],
)
def test_of_azures_events_count_those_that_end_this_machine(
    cloud: Cloud, watch: type[Watching], kind: str, at: str, machine: str, leaving: datetime | None
) -> None:
    cloud.events = [event(kind, at, machine, "west_7")]
    assert watch("azure", cloud).look().leaving == leaving


@pytest.mark.parametrize("at", ["9999-12-31T23:59:59-14:00", "Fri, 31 Dec 9999 23:59:59 -1400"])
def test_an_instant_that_no_clock_reaches_ends_nobodys_watch(cloud: Cloud, watch: type[Watching], at: str) -> None:
    cloud.action = {"action": "stop", "time": at}
    assert watch("aws", cloud).look().leaving == NOW + timedelta(seconds=30)
    cloud.events = [event("Preempt", at, "west_0")]
    assert watch("azure", cloud).look().leaving == NOW


@pytest.mark.parametrize("provider", ["aws", "gcp", "azure"])
@pytest.mark.parametrize(
    "broken", [(200, b"<html>"), (200, b"\xff\xfe"), (200, b"9" * 100_000), (302, b""), (403, b""), (500, b"[]")]
)
def test_an_answer_that_is_none_changes_nothing(
    cloud: Cloud, watch: type[Watching], provider: str, broken: tuple[int, bytes]
) -> None:
    watching = watch(provider, cloud)
    cloud.broken = broken
    assert watching.look() == Notice()
    cloud.broken, cloud.preempted = None, True
    cloud.action = {"action": "terminate", "time": "2026-11-21T12:02:00Z"}
    cloud.events = [event("Preempt", "Sat, 21 Nov 2026 12:00:30 GMT", "west_0")]
    known = watching.look()
    assert known.leaving is not None
    cloud.broken = broken
    assert watching.look() == known


def test_no_proxy_is_asked(cloud: Cloud, watch: type[Watching], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    cloud.preempted = True
    assert watch("gcp", cloud).look().leaving is not None


def test_whoever_wants_to_know_does_not_wait_for_the_cloud(cloud: Cloud, tmp_path: Path) -> None:
    cloud.wait = threading.Event()
    said = {"MACADAM_GPUS": "1", "MACADAM_MACHINE_PROVIDER": "gcp", "MACADAM_MACHINE_METADATA": cloud.url}
    with open_platform(tmp_path, environment=said) as platform:
        began = time.monotonic()
        (node,) = platform.ports.executor.nodes()
        assert time.monotonic() - began < 1
        assert node.leaving is None
        cloud.preempted = True
        cloud.wait.set()
        limit = time.monotonic() + 20
        while platform.ports.executor.nodes()[0].leaving is None:
            assert time.monotonic() < limit
            time.sleep(0.05)


def test_nothing_is_asked_unless_a_cloud_is_named(cloud: Cloud, tmp_path: Path) -> None:
    for provider in ("", "own", "lambda"):
        here = LocalExecutor(tmp_path, LocalObjects(tmp_path / "o"), bought={"provider": provider}, metadata=cloud.url)
        here.nodes()
        time.sleep(0.1)
        here.close()
    assert cloud.asked == []


def test_a_recommendation_closes_the_machine_to_new_work(cloud: Cloud, tmp_path: Path) -> None:
    cloud.rebalance = True
    here = LocalExecutor(tmp_path, LocalObjects(tmp_path / "o"), bought={"provider": "aws"}, metadata=cloud.url)
    limit = time.monotonic() + 20
    while not here.nodes()[0].closed:
        assert time.monotonic() < limit
        time.sleep(0.02)
    assert here.nodes()[0].leaving is None
    here.close()
