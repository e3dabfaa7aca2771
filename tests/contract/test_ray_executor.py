"""What Ray's executor does beyond the behaviour of all executors. On a real cluster, where MACADAM_TEST_RAY names one."""

import io
import tarfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from contract import clusters
from contract.test_executor import attempt, said, until

from macadam.adapters.local_objects import LocalObjects
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
