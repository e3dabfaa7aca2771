"""What a server does by itself about devices: collects where there is something to collect, seals, expires, attributes."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from databases import wait_until
from unit.serving import homes

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.compute.telemetry import processes
from macadam.compute.telemetry.processes import HostCollector, Root
from macadam.compute.telemetry.requests import ListDevices
from macadam.compute.telemetry.store import Store
from macadam.compute.telemetry.types import Claim, Sample, to_table
from macadam.errors import UserCodeFailed
from macadam.faces import telemetry_worker
from macadam.faces.telemetry_worker import Attempts, TelemetryWorker
from macadam.models.types import ListRuns, Train
from macadam.testing import open_platform
from macadam.values import utc_now

TEXT = 'DCGM_FI_DEV_GPU_UTIL{UUID="GPU-aa",Hostname="node-1"} 42\n'


@contextmanager
def exporter() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(TEXT.encode())

        def log_message(self, *_arguments: object) -> None:
            """Tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/metrics"
        running.shutdown()
        thread.join()


def test_an_exporter_that_is_named_is_scraped_and_one_that_is_away_holds_nothing_up() -> None:
    with exporter() as url:
        settings = {
            "MACADAM_TELEMETRY_EXPORTERS": f"http://127.0.0.1:9/metrics, {url}",
            "MACADAM_TELEMETRY_EVERY": "0.05",
        }
        with open_platform(environment=settings) as platform:
            assert platform.call(ListDevices(project="*")) == ()
            worker = TelemetryWorker(platform)
            try:
                wait_until(lambda: platform.call(ListDevices(project="*")))
            finally:
                worker.close()
            (seen,) = platform.call(ListDevices(project="*"))
    assert (seen.device, seen.node, seen.gpu_active) == ("gpu:GPU-aa", "node-1", pytest.approx(0.42))


def test_where_there_is_nothing_to_collect_nothing_is_begun() -> None:
    with open_platform(environment={"MACADAM_TELEMETRY_LOCAL": "0"}) as platform:
        assert not telemetry_worker.wanted(platform)
        before = threading.active_count()
        worker = TelemetryWorker(platform)
        assert threading.active_count() == before
        worker.close()
        assert not (platform.settings.home / "telemetry").exists()


def test_a_server_seals_what_is_over_and_expires_what_is_old(tmp_path: Path) -> None:
    settings = {"MACADAM_TELEMETRY_RAW_HOURS": "0"}
    with open_platform(tmp_path / "home", environment=settings) as platform:
        telemetry_worker.seal(platform)  # nothing is there, and nothing is done
        at = utc_now() - timedelta(hours=3)
        old = [Sample(device="gpu:a", at=at + timedelta(seconds=15 * n), gpu_active=0.5) for n in range(4)]
        Store(platform.settings.home).deliver(to_table(old), now=utc_now())
        telemetry_worker.seal(platform)
        root = platform.settings.home / "telemetry"
        assert len(list((root / "minute").glob("*"))) == 1
        telemetry_worker.expire(platform)
        assert list((root / "raw").glob("*")) == []
        assert len(list((root / "minute").glob("*"))) == 1


@contextmanager
def process(code: str | list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """code: for Python, or a command."""
    command = [sys.executable, "-c", code] if isinstance(code, str) else code
    running = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        yield running
    finally:
        for one in [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]:
            one.kill()
        running.wait()
        if running.stdout is not None:
            running.stdout.close()


BUSY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "print('ready', flush=True)\\nwhile True: pass"])
time.sleep(60)
"""


def known(platform: Platform, **claims: Claim) -> Attempts:
    attempts = Attempts(platform)
    attempts._known = dict(claims)
    return attempts


def test_a_process_of_a_job_is_known_by_what_the_executor_marked_it_with() -> None:
    mine = Claim(project="vision", owner="job:1")
    with open_platform() as platform, process(BUSY, MACADAM_ATTEMPT="a1") as running:
        (child,) = psutil.Process(running.pid).children()
        assert known(platform, a1=mine).owner_of(child.pid) == mine
        assert known(platform, a2=mine).owner_of(child.pid) is None  # an attempt that holds nothing now
        assert known(platform, a1=mine).owner_of(os.getpid()) is None
        assert known(platform, a1=mine).owner_of(2**22 + 1) is None


WAITING = """
import time
from pathlib import Path

def train(run):
    Path(run.params["here"]).touch()
    while not Path(run.params["go"]).exists():
        time.sleep(0.02)
    raise ValueError("seen enough")
"""


def test_a_process_of_a_training_is_known_as_its_runs(tmp_path: Path) -> None:
    here, go, source = tmp_path / "here", tmp_path / "go", tmp_path / "source"
    source.mkdir()
    (source / "train.py").write_text(WAITING)
    with open_platform() as platform:
        platform.call(CreateProject(project=homes.PROJECT))
        homes.evidence(platform, "data.register_contract", "contract:flights@1", [])
        homes.evidence(platform, "data.ingest", "table:flights@42", ["contract:flights@1"])
        homes.evidence(platform, "features.register_views", "views:flights@0123456789ab", [])
        request = Train(
            project=homes.PROJECT, model="late", source=str(source), training_sets={"train": homes.plant(platform)},
            params={"here": str(here), "go": str(go)},
        )  # fmt: skip

        def work() -> None:
            with contextlib.suppress(UserCodeFailed):
                platform.call(request)

        training = threading.Thread(target=work)
        training.start()
        try:
            wait_until(here.exists)
            attempts = Attempts(platform)
            attempts.refresh(utc_now())
            children = psutil.Process(os.getpid()).children(recursive=True)
            whose = {attempts.owner_of(child.pid) for child in children} - {None}
        finally:
            go.touch()
            training.join()
        (run,) = platform.call(ListRuns(project=homes.PROJECT))
        assert whose == {Claim(project=homes.PROJECT, owner=run.ref)}
        attempts.refresh(utc_now())
        assert not attempts._known


FORGED = """
import os, subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"],
    env={**os.environ, "MACADAM_ATTEMPT": "a2"}, start_new_session=True,
)
time.sleep(60)
"""


def test_a_job_cannot_have_its_time_charged_to_another_by_its_mark() -> None:
    mine, other = Claim(project="vision", owner="job:1"), Claim(project="nlp", owner="job:2")
    with open_platform() as platform, process(FORGED, MACADAM_ATTEMPT="a1") as running:
        (child,) = psutil.Process(running.pid).children()
        assert known(platform, a1=mine, a2=other).owner_of(child.pid) == mine


def test_what_stands_below_a_supervisor_is_its_attempts_whatever_it_says(tmp_path: Path) -> None:
    script = tmp_path / "macadam" / "adapters" / "supervisor.py"
    script.parent.mkdir(parents=True)
    script.write_text(FORGED)
    mine, other = Claim(project="vision", owner="job:1"), Claim(project="nlp", owner="job:2")
    command = [sys.executable, "-I", "-S", str(script), str(tmp_path / "attempts" / "a1")]
    with open_platform() as platform, process(command, MACADAM_ATTEMPT="a2") as running:
        (child,) = psutil.Process(running.pid).children()
        assert known(platform, a1=mine, a2=other).owner_of(child.pid) == mine
        assert known(platform, a2=other).owner_of(child.pid) is None


def test_a_jobs_processors_and_memory_are_its_owners_children_included() -> None:
    with process(BUSY) as running:
        roots = {running.pid: Root(pid=running.pid, project="vision", owner="job:1")}
        reader = HostCollector(node="here", clock=lambda: datetime.now(UTC), roots=lambda: roots)
        first = {s.part: s for s in reader.read()}
        time.sleep(1.0)
        second = {s.part: s for s in reader.read()}
    assert first["job:1"].host_cpu is None  # nothing to compare with yet
    assert second["job:1"].claims is not None
    assert second["job:1"].claims[0].project == "vision"
    assert 0.1 < (second["job:1"].host_cpu or 0) < 1.5
    assert (second["job:1"].memory_used or 0) > 5_000_000
    assert set(second) == {"", "job:1"}


def test_an_id_that_was_given_to_another_process_is_nobodys() -> None:
    with process(BUSY) as running:
        began = psutil.Process(running.pid).create_time()
        root = Root(pid=running.pid, project="p", owner="job:1", created=began)
        assert processes.owner_of(running.pid, {running.pid: root}) is not None
        other = Root(pid=running.pid, project="p", owner="job:1", created=began - 100)
        assert processes.owner_of(running.pid, {running.pid: other}) is None
