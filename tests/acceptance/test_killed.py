"""`kill -9` at random moments of applying, answering, sealing and serving the control plane, and what is there afterwards.

Ingesting is killed in test_ingest_killed. MACADAM_SOAK=1 kills each of them twenty times; MACADAM_SEED: other moments.
"""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from acceptance.roads import (
    KILLED,
    MODEL,
    PATH,
    PROJECT,
    ROWS,
    SOAK,
    Gateway,
    Road,
    Way,
    chance,
    free_port,
    gateway,
    is_ready,
    questions,
    require_sound,
    sealed,
    until,
)

from macadam.access.types import CreatePrincipal, ListPrincipals
from macadam.app.platform import Platform
from macadam.data.types import ListSnapshots, PreviewTable
from macadam.errors import Unavailable
from macadam.faces.client import Client
from macadam.faces.gateway_process import end_leftover
from macadam.journal.types import ListSegments, SealClosed
from macadam.ledger import service as ledger
from macadam.models.types import ListRuns, ShowModel
from macadam.serving.types import ListEndpoints, Prove
from macadam.testing import local_token
from macadam_verify import __main__ as verifier

KILLS = 20 if SOAK else 3
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800 if SOAK else 300)]


def require_proved(platform: Platform, prediction: str) -> None:
    proof = platform.call(Prove(project=PROJECT, prediction=prediction))
    report = verifier.verify(proof.bundle.encode(), proof.key, [])
    assert report.broken is None


def seal_all(platform: Platform) -> None:
    while platform.call(SealClosed(project=PROJECT)).remaining:
        pass


# --- apply


def kill_apply(road: Road, steps: int, pause: float) -> int:
    """Kills an apply so many steps and seconds after its start. Returns its exit code; all its children end too."""
    with road.start("apply") as process:
        assert process.stdout is not None
        while steps:
            line = process.stdout.readline()
            if not line:
                break
            steps -= " s" in line and "done before" not in line
        time.sleep(pause)
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.communicate()
    _, left = psutil.wait_procs(children, timeout=10)
    assert left == []
    return int(process.returncode)


def require_applied_once(platform: Platform) -> None:
    """One champion, and each row, snapshot, run, version and deployment once."""
    assert platform.call(PreviewTable(project=PROJECT, table="parcels", limit=1)).total == sum(ROWS.values())
    assert len(platform.call(ListSnapshots(project=PROJECT, table="parcels"))) == len(ROWS)
    page = platform.call(ShowModel(project=PROJECT, model=MODEL))
    assert (page.model.aliases, len(page.versions)) == ({"champion": 1}, 1)
    assert [run.state for run in platform.call(ListRuns(project=PROJECT))] == ["finished"]
    assert [one.version for one in platform.call(ListEndpoints(project=PROJECT))] == [f"model:{MODEL}@1"]
    with platform.ports.sql.read() as sql:
        done = [e.leaf for e in ledger.find(sql, project=PROJECT) if e.leaf.outcome == "done"]
    for kind, count in {"data.ingest": len(ROWS), "serving.deploy": 1, "access.create_project": 1}.items():
        subjects = [one.subject for one in done if one.kind == kind and "__quarantine@" not in one.subject]
        assert len(subjects) == len(set(subjects)) == count, kind
    require_sound(platform)


def test_an_apply_that_is_killed_again_and_again_finishes_and_does_nothing_twice(tmp_path: Path) -> None:
    moments, kills, number = chance(), 0, 0
    while kills < KILLS + 1:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        Road(place=folder, home=folder / "home").say("init", PROJECT)
        road = Road(place=folder / PROJECT, home=folder / "home")
        while kill_apply(road, moments.randint(0, 6), moments.uniform(0, 1)) == KILLED and kills < KILLS:
            kills += 1
            with road.platform() as platform:
                require_sound(platform)
        kills += 1
        road.say("apply")
        assert road.say("plan")["steps"] == []
        with road.platform() as platform:
            require_applied_once(platform)


# --- the gateway


@dataclass
class Load:
    """Callers that ask until nobody answers any more. answered: ids that reached a caller."""

    url: str
    token: str
    place: Path
    answered: list[str] = field(default_factory=list)

    def start(self, callers: int = 4) -> list[threading.Thread]:
        threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(callers)]
        for thread in threads:
            thread.start()
        return threads

    def _ask(self, number: int) -> None:
        asked = questions(self.place)
        for _ in range(number * 50):
            next(asked)
        headers = {"authorization": f"Bearer {self.token}"}
        with (
            httpx.Client(base_url=self.url, headers=headers) as client,
            contextlib.suppress(httpx.TransportError),
        ):
            while True:
                answer = client.post(PATH, json=next(asked))
                assert answer.status_code == 200, answer.text
                self.answered.append(answer.json()["prediction"])


def kill_under_load(running: Gateway, way: Way, pause: float) -> list[str]:
    load = Load(url=running.url, token=way.caller["token"], place=way.road.place)
    threads = load.start()
    until(lambda: len(load.answered) > 20)
    time.sleep(pause)
    running.process.kill()
    for thread in threads:
        thread.join()
    return load.answered


def kill_starting(home: Path, pause: float) -> None:
    """Kills a gateway that starts, and recovers what the one before it has left."""
    command = [sys.executable, "-m", "macadam.serving.gateway", "--home", str(home), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(pause)
        process.kill()


def test_a_gateway_killed_under_load_has_journaled_all_that_it_answered(way: Way, tmp_path: Path) -> None:
    road, moments = way.road.copy(tmp_path), chance()
    answered: set[str] = set()
    with road.platform() as platform:
        for _ in range(KILLS):
            with gateway(road.home) as running:
                new = kill_under_load(running, way, moments.uniform(0, 0.5))
            kill_starting(road.home, moments.uniform(0.1, 1))
            assert len(set(new)) == len(new)
            answered.update(new)
            seal_all(platform)
            records = sealed(platform)
            assert answered <= records
            segments = platform.call(ListSegments(project=PROJECT, limit=1000))
            assert sum(segment.count for segment in segments) == len(records)
            assert all(segment.answers <= segment.count for segment in segments)
            # What a caller may have got and the gateway not yet counted: one answer for each of the four callers.
            assert sum(segment.answers for segment in segments) >= len(answered) - 4 * len(segments)
            require_proved(platform, new[-1])
            require_sound(platform)
    left = [path for path in (road.home / "journal" / PROJECT).iterdir() if path.name != "newest"]
    # What a killed gateway counted without a record, which is nothing here, and how it stood: the next one takes both over.
    # A segment that it was just beginning goes after a minute.
    assert {path.suffix for path in left} <= {".gap", ".status", ".new", ".answers"}


# --- sealing

SEALING = """
import sys
from pathlib import Path
from macadam.journal.types import SealClosed
from macadam.testing import open_platform
home, project = sys.argv[1:]
with open_platform(Path(home)) as platform:
    for path in sorted((Path(home) / "journal" / project).glob("*.closed")):
        print(path.stem, flush=True)
        platform.call(SealClosed(project=project, segment=path.stem))
"""


def write_segments(way: Way, home: Path, count: int) -> list[str]:
    """Asks until so many segments are closed. Returns the predictions' ids."""
    folder, asked, answered = home / "journal" / PROJECT, questions(way.road.place), []
    with (
        gateway(home, MACADAM_JOURNAL_SEGMENT_AGE="0.05") as running,
        running.client(way.caller["token"]) as client,
    ):
        end = time.monotonic() + 60
        while len(list(folder.glob("*.closed"))) < count:
            answered.append(client.post(PATH, json=next(asked)).json()["prediction"])
            assert time.monotonic() < end
    return answered


def kill_sealing(home: Path, segments: int, pause: float) -> int:
    """Kills it behind the beginning of its nth segment."""
    command = [sys.executable, "-c", SEALING, str(home), PROJECT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(segments):
            process.stdout.readline()
        time.sleep(pause)
        process.kill()
        process.communicate()
    return int(process.returncode)


def test_a_killed_sealing_leaves_each_segment_sealed_once_or_not_at_all(way: Way, tmp_path: Path) -> None:
    road, moments, interrupted = way.road.copy(tmp_path), chance(), 0
    answered = write_segments(way, road.home, 5 * KILLS)
    for _ in range(KILLS):
        interrupted += kill_sealing(road.home, moments.randint(1, 3), moments.uniform(0, 0.4)) == KILLED
        with road.platform() as platform:
            assert sealed(platform) <= set(answered)
            require_sound(platform)
    assert interrupted, "each was done before its kill: write more segments"
    with road.platform() as platform:
        seal_all(platform)
        assert sealed(platform) == set(answered)
        segments = platform.call(ListSegments(project=PROJECT, limit=1000))
        assert sum(one.count for one in segments) == sum(one.answers for one in segments) == len(answered)
        with platform.ports.sql.read() as sql:
            said = [e.leaf.subject for e in ledger.find(sql, kind="journal.seal_segments")]
        subjects = [subject for subject in said if subject.startswith("segment:")]
        assert sorted(subjects) == sorted(f"segment:{one.id}" for one in segments)
        require_sound(platform)


# --- the control plane


class Writers:
    """Callers that make principals known, one by one, until nobody answers. Each call has a key of its own."""

    def __init__(self, url: str, token: str, number: int) -> None:
        self._url, self._token, self._number = url, token, number
        self.acknowledged: dict[str, Any] = {}
        self.open: list[str] = []

    def start(self, callers: int = 3) -> list[threading.Thread]:
        threads = [threading.Thread(target=self._write, args=(n,)) for n in range(callers)]
        for thread in threads:
            thread.start()
        return threads

    def _write(self, caller: int) -> None:
        with Client(self._url, self._token, retries=0) as client:
            for n in range(100_000):
                name = f"p{self._number}-{caller}-{n}"
                try:
                    self.acknowledged[name] = client.call(CreatePrincipal(principal=name), idempotency_key=name)
                except Unavailable:
                    self.open.append(name)
                    return


def kill_control_plane_starting(road: Road, ports: tuple[int, int], pause: float) -> None:
    with road.start("up", "--port", str(ports[0]), "--gateway-port", str(ports[1])) as process:
        time.sleep(pause)
        process.kill()
        process.communicate()


@contextlib.contextmanager
def control_plane(road: Road, port: int, gateway_port: int) -> Iterator["subprocess.Popen[str]"]:
    """`macadam up`, healthy. Nothing of it is left at the end."""
    process = road.start("up", "--port", str(port), "--gateway-port", str(gateway_port))
    try:
        assert process.stdout is not None
        while "Ctrl-C" not in (line := process.stdout.readline()):
            assert line, process.communicate()[1]
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)
        end_leftover(road.home)


def test_a_killed_control_plane_keeps_what_it_acknowledged_and_the_gateway_answers_on(way: Way, tmp_path: Path) -> None:
    road, moments, ports, asked = (
        way.road.copy(tmp_path),
        chance(),
        (free_port(), free_port()),
        questions(way.road.place),
    )
    with road.platform() as platform:
        token = local_token(platform)
    url, answered = f"http://127.0.0.1:{ports[0]}", []
    caller = Gateway(process=None, url=f"http://127.0.0.1:{ports[1]}").client(way.caller["token"])  # type: ignore[arg-type]
    known: dict[str, Any] = {}
    with caller:
        for number in range(KILLS):
            kill_control_plane_starting(road, ports, moments.uniform(0.1, 2))
            with control_plane(road, *ports) as process:
                until(lambda: is_ready(caller))
                writers = Writers(url, token, number)
                threads = writers.start()
                until(lambda: len(writers.acknowledged) > 5)  # noqa: B023 - called in this turn
                time.sleep(moments.uniform(0, 0.5))
                process.kill()
                for thread in threads:
                    thread.join()
                answered += [caller.post(PATH, json=next(asked)).json()["prediction"] for _ in range(10)]
            known |= writers.acknowledged
            with road.platform() as platform:
                # Who got no answer asks again with the same key; who got one gets it again.
                for name in (*writers.open, *list(writers.acknowledged)[-3:]):
                    again = platform.call(CreatePrincipal(principal=name), idempotency_key=name)
                    assert again == known.setdefault(name, again)
                made = [one.id for one in platform.call(ListPrincipals()) if one.id.startswith("principal:p")]
                assert sorted(made) == sorted(f"principal:{name}" for name in known)
                with platform.ports.sql.read() as sql:
                    said = [e.leaf.subject for e in ledger.find(sql, kind="access.create_principal")]
                assert sorted(s for s in said if s.startswith("principal:p")) == sorted(made)
                require_sound(platform)
    with road.platform() as platform:
        seal_all(platform)
        assert set(answered) <= sealed(platform)
        require_proved(platform, answered[0])
        require_sound(platform)
