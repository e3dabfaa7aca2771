"""What Ray's executor does beyond the behaviour of all executors. On a real cluster, where MACADAM_TEST_RAY names one."""

import base64
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from contract import clusters
from contract.test_executor import attempt, said, until

from macadam.adapters import ray_driver, ray_executor
from macadam.adapters.local_objects import LocalObjects
from macadam.adapters.ray_driver import BEGIN, END
from macadam.adapters.ray_executor import RayExecutor
from macadam.adapters.ray_views import holders
from macadam.errors import Unavailable
from macadam.ports import Allotment

NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
def ray(tmp_path: Path) -> Iterator[RayExecutor]:
    made = clusters.ray(tmp_path)
    yield made
    made.close()


def test_a_gang_is_asked_to_end_on_all_its_nodes(ray: RayExecutor) -> None:
    code = "import signal, sys, time\nsignal.signal(15, lambda *_: (print('saved', flush=True), sys.exit(75)))\nprint('up', flush=True)\ntime.sleep(60)"
    ray.start(attempt(code, members=2, grace=5.0))
    until(ray, "j1.1", "running")
    while not all("up" in said(ray, "j1.1", rank) for rank in (0, 1)):
        time.sleep(0.1)
    ray.stop("j1.1", grace=5)
    seen = until(ray, "j1.1", "ended")
    assert (seen.why, seen.exit_code) == ("stopped", 75)
    assert [said(ray, "j1.1", rank) for rank in (0, 1)] == ["up\nsaved\n", "up\nsaved\n"]


def test_working_files_are_where_the_command_runs(ray: RayExecutor, tmp_path: Path) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        text = b"print('from the bundle')"
        entry = tarfile.TarInfo("job.py")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    bundle = LocalObjects(tmp_path / "objects").put(made.getvalue())
    ray.start(attempt("", command=("python", "job.py"), bundle=bundle))
    until(ray, "j1.1", "ended")
    assert said(ray, "j1.1") == "from the bundle\n"


def test_a_member_that_takes_more_memory_than_it_has_is_ended(ray: RayExecutor) -> None:
    code = "import time\nx = bytearray(300 << 20)\nx[::4096] = b'1' * len(x[::4096])\ntime.sleep(30)"
    ray.start(attempt(code, allotments=(Allotment(node="here", memory=100 << 20),)))
    seen = until(ray, "j1.1", "ended")
    assert (seen.why, seen.exit_code) == ("memory", 137)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"image": "x:1"}, "image"),
        ({"signal": 10}, "signal 10"),
        ({"allotments": (Allotment(node="a", cpus=1), Allotment(node="b", cpus=2))}, "members that differ"),
        ({"gpus": {"gpu:0": 500, "gpu:1": 500}}, "parts of several"),
        ({"bundle": "sha256:" + "0" * 64}, "0000"),
    ],
)
def test_what_can_never_run_is_refused_with_the_reason(ray: RayExecutor, wrong: dict[str, object], said: str) -> None:
    ray.start(attempt("print(1)", **wrong))  # type: ignore[arg-type]
    seen = until(ray, "j1.1", "ended")
    assert (seen.why, seen.exit_code) == ("refused", 126)
    assert said in seen.message


def test_what_ray_believes_is_used_is_told_by_node_and_job(ray: RayExecutor) -> None:
    (node,) = ray.nodes()
    assert len(node.devices) == 2
    ray.start(
        attempt(
            "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(120)",
            gpus={"gpu:x/1": 1000},
        )
    )
    until(ray, "j1.1", "running")
    while not said(ray, "j1.1").strip():
        time.sleep(0.1)
    whole, *parts = ray.views(NOW)
    assert (whole.job, whole.gpus_total) == ("", 2)
    assert whole.gpus >= 1
    (mine,) = [part for part in parts if part.job.endswith("j1.1")]
    assert (mine.node, mine.gpus, mine.cpus) == (whole.node, 1, 0.5)
    ray.stop("j1.1", grace=1)
    until(ray, "j1.1", "ended")


def test_a_cluster_that_does_not_answer_is_said(tmp_path: Path) -> None:
    nobody = RayExecutor("http://127.0.0.1:9", LocalObjects(tmp_path))
    with pytest.raises(Unavailable, match="does not answer"):
        nobody.look(["j1.1"])
    nobody.close()


def test_reservations_are_summed_over_what_lives() -> None:
    found = [
        {"node_id": "n", "state": "ALIVE", "job_id": "01", "name": "a", "required_resources": {"GPU": 0.5}},
        {"node_id": "n", "state": "ALIVE", "job_id": "01", "name": "b", "required_resources": {"GPU": 0.25}},
        {"node_id": "n", "state": "DEAD", "job_id": "01", "name": "c", "required_resources": {"GPU": 1}},
        {"node_id": "n", "state": "RUNNING", "type": "NORMAL_TASK", "job_id": "02", "required_resources": {"CPU": 1}},
        {"node_id": "n", "state": "RUNNING", "type": "ACTOR_TASK", "job_id": "02", "required_resources": {"CPU": 9}},
        {"node_id": None, "state": "PENDING_CREATION", "job_id": "02", "required_resources": {"CPU": 9}},
        {
            "node_id": "m",
            "state": "ALIVE",
            "job_id": "03",
            "name": "_ray_internal_job_actor_train",
            "required_resources": {"GPU": 2},
        },
    ]
    assert holders(found, {"01": "mine"}) == {
        ("n", "mine"): {"GPU": 0.75},
        ("n", "02"): {"CPU": 1},
        ("m", "train"): {"GPU": 2},
    }


# --- without a cluster


@contextmanager
def answering(body: bytes, code: int = 200) -> Iterator[RayExecutor]:
    """An executor whose Ray says the same to everything."""

    class Says(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Location", "http://127.0.0.1:1/")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: tests print what they need."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Says) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made = RayExecutor(f"http://127.0.0.1:{server.server_port}", None)
        yield made
        made.close()
        server.shutdown()


@pytest.mark.parametrize(
    ("code", "body"),
    [(200, b"<html>"), (200, b"[]"), (200, b"{}"), (200, b'{"status": 3}'), (302, b"{}"), (500, b"\xff")],
)
def test_an_answer_that_is_none_is_a_cluster_that_does_not_answer(code: int, body: bytes) -> None:
    with answering(body, code) as ray:
        with pytest.raises(Unavailable):
            ray.look(["j1.1"])
        with pytest.raises(Unavailable):
            ray.nodes()
        with pytest.raises(Unavailable):
            ray._logs("j1.1")


@pytest.mark.parametrize(
    ("labels", "bought"),
    [
        ({"ray.io/market-type": "spot", "ray.io/availability-zone": "us-east-1a"}, ("us-east-1a", True)),
        ({"ray.io/market-type": "on-demand"}, ("", False)),
        ({}, ("", None)),
        (None, ("", None)),
        ("ray.io/market-type=spot", ("", None)),
    ],
)
def test_a_node_of_ray_says_its_market_if_its_labels_do(labels: object, bought: tuple[str, bool | None]) -> None:
    node = {"state": "ALIVE", "node_ip": "10.0.0.1", "resources_total": {"CPU": 8, "memory": 1 << 33}, "labels": labels}
    with answering(json.dumps({"data": {"result": {"result": [node]}}}).encode()) as ray:
        (found,) = ray.nodes()
    assert (found.zone, found.spot) == bought


@pytest.mark.parametrize("unit", ["x" * 79 + "\n", "\\" * 7 + "\n", '"\\n\n', "ä→\U0001f600\n", "\x1e\n"])
@pytest.mark.parametrize("shift", range(3))
def test_of_a_log_without_end_the_beginning_and_the_end_are_kept(
    monkeypatch: pytest.MonkeyPatch, unit: str, shift: int
) -> None:
    monkeypatch.setattr(ray_executor, "_LOG", 1000 + shift)
    monkeypatch.setattr(ray_executor, "_TAIL", 400 + shift)
    report = {"exit_code": 3, "why": "", "started": 1.0, "ended": 2.0, "cpu_seconds": 0.0, "peak_bytes": 0}
    text = f"{BEGIN}\n{unit * 5000}last{END}{json.dumps(report)}\n"
    with answering(json.dumps({"logs": text}).encode()) as ray:
        found = ray._logs("j1.1")
    assert len(found) < 2000
    assert found.startswith(f"{BEGIN}\n{unit}")
    assert "... cut ..." in found
    seen = ray_executor._report(found)
    assert seen is not None
    assert seen.exit_code == 3


def test_what_a_member_cuts_loose_ends_with_it_also_on_ray(tmp_path: Path) -> None:
    loose = f"import os, time\nif not os.fork():\n  os.setsid()\n  if os.fork(): os._exit(0)\n  open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n  os.execvpe('sleep', ['sleep', '60'], {{'PATH': os.environ['PATH']}})\nwhile not os.path.exists({str(tmp_path / 'pid')!r}): time.sleep(0.01)\ntime.sleep(0.2)"
    order = {
        "command": ["python", "-c", loose],
        "environment": {},
        "members": 1,
        "signal": 15,
        "grace": 1,
        "time_limit": 0,
        "memory": 0,
        "checkpoint": "",
    }
    told = {"MACADAM_ORDER": base64.b64encode(json.dumps(order).encode()).decode(), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, ray_driver.__file__], env=told, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout.decode().rpartition(END)[2])["exit_code"] == 0
    pid = int((tmp_path / "pid").read_text())
    assert not [one for one in psutil.process_iter(["status"]) if one.pid == pid and one.info["status"] != "zombie"]
