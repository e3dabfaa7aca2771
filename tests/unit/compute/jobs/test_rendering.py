"""Jobs and quotas rendered through the one door, and as they are typed; and a job carried out on a cluster by setting alone."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
import yaml
from contract import clusters
from contract.api_server import TOKEN
from unit.compute.jobs.bench import Bench, open_bench

from macadam.access.types import CreateProject
from macadam.compute.jobs import render_service
from macadam.compute.jobs.kueue import Flavor
from macadam.compute.jobs.loop import Queue
from macadam.compute.jobs.render_types import RenderJob, RenderQuotas
from macadam.compute.jobs.types import Job, ReadLog, Resources, SetQuota, ShowJob, SubmitJob
from macadam.compute.telemetry.owners import known_pods
from macadam.errors import InvalidInput, NotAuthorised, NotFound
from macadam.faces import cli, telemetry_worker
from macadam.operations import load, of_request
from macadam.testing import open_platform, token_of
from macadam.values import utc_now

FLAVOR = Flavor(name="h100", gpus=64, cpu_milli=768_000, memory=8 << 40)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    load("jobs")
    with open_bench(("p", "q")) as made:
        yield made


def gang(bench: Bench, **more: object) -> Job:
    asked = Resources(gpus=8, nodes=2, cpus=16, memory=64 << 30, models=("h100-sxm-80gb",))
    return bench.submit(resources=asked, image="registry.example/train:3", **more)


def objects(text: str) -> dict[str, dict[str, Any]]:
    return {found["kind"]: found for found in yaml.safe_load_all(text)}


def leaves(bench: Bench) -> int:
    with bench.platform.ports.sql.read() as sql:
        return int(sql.execute(sa.text("SELECT count(*) FROM ledger_leaves")).scalar_one())


def test_a_gang_is_rendered_with_each_members_share(bench: Bench) -> None:
    job = gang(bench, max_restarts=2, time_limit=10.5, priority=7)
    made = bench.platform.call(RenderJob(project="p", job=job.id, to="kueue"))
    found = objects(made.files["job.yaml"])
    spec = found["Job"]["spec"]
    assert [spec[k] for k in ("suspend", "completions", "backoffLimit", "activeDeadlineSeconds")] == [True, 2, 2, 11]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "4"}
    assert found["Job"]["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "macadam-7"
    assert found["Job"]["metadata"]["annotations"]["macadam.local/owner"] == job.ref
    assert "&" not in made.files["job.yaml"]
    assert objects(bench.platform.call(RenderJob(project="p", job=job.id, to="ray")).files["job.yaml"])["RayJob"]


def test_requirements_reach_skypilot_as_text_and_never_as_commands(bench: Bench, tmp_path: Path) -> None:
    text = "numpy\nMACADAM\ntouch hacked\nit's $(touch hacked) `touch hacked` %s \\n"
    job = gang(bench).spec
    asked = msgspec.structs.replace(
        bench.submit(resources=job.resources), spec=msgspec.structs.replace(job, requirements=text)
    )
    setup = render_service._setup(asked)
    (tmp_path / "pip").write_text("#!/bin/sh\n")
    (tmp_path / "pip").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["sh", "-ec", setup], cwd=tmp_path, env={"PATH": path}, check=True)
    assert (tmp_path / "requirements.txt").read_text() == f"{text}\n"
    assert not (tmp_path / "hacked").exists()


def test_rays_operator_is_let_in_from_where_it_runs(bench: Bench) -> None:
    made = bench.platform.call(RenderJob(project="p", job=gang(bench).id, to="ray", operator="ray-system"))
    found = [one for one in yaml.safe_load_all(made.files["job.yaml"]) if one["metadata"]["name"] == "ray-operator"]
    assert "ray-system" in str(found)
    assert any("ray-system" in note for note in made.notes)


def test_rendering_changes_nothing_and_leaves_no_leaf(bench: Bench) -> None:
    job = gang(bench)
    before = leaves(bench)
    bench.platform.call(RenderJob(project="p", job=job.id, to="kubernetes"))
    bench.platform.call(RenderQuotas(flavors=(FLAVOR,)))
    assert leaves(bench) == before


@pytest.mark.parametrize(
    ("more", "render", "said"),
    [
        ({"image": ""}, {}, "names no image"),
        ({"resources": Resources(milli=500)}, {}, "thousandths"),
        ({"checkpoint": True}, {}, "keeps checkpoints"),
        ({}, {"secrets": {"A B": "x"}}, "variable"),
    ],
)
def test_what_another_system_cannot_run_is_said_before_anything_is_written(
    bench: Bench, more: dict[str, Any], render: dict[str, Any], said: str
) -> None:
    facts: dict[str, Any] = {"image": "i:1", "resources": Resources(gpus=1)} | more
    job = bench.submit(**facts)
    with pytest.raises(InvalidInput, match=said):
        bench.platform.call(RenderJob(project="p", job=job.id, to="kubernetes", **render))


def test_a_price_of_later_is_not_known_to_a_task_of_today(bench: Bench) -> None:
    """The bench's clock stands before all published prices."""
    with pytest.raises(NotFound, match="No price"):
        bench.platform.call(RenderJob(project="p", job=gang(bench).id, to="skypilot"))


def test_only_who_may_read_a_projects_jobs_has_them_rendered(bench: Bench) -> None:
    job = gang(bench)
    token = token_of(bench.platform, "mallory", roles={"q": "developer"})
    with pytest.raises(NotAuthorised):
        bench.platform.dispatch(of_request(RenderJob), {"project": "p", "job": job.id, "to": "kubernetes"}, token=token)
    with pytest.raises(NotAuthorised):
        bench.platform.dispatch(of_request(RenderQuotas), {"flavors": msgspec.to_builtins((FLAVOR,))}, token=token)


def test_all_quotas_become_one_clusters_queues(bench: Bench) -> None:
    bench.platform.call(SetQuota(tenant="p", gpus=16, borrow=8))
    bench.platform.call(SetQuota(tenant="q", gpus=4, gpu_hours=100))
    made = bench.platform.call(RenderQuotas(flavors=(FLAVOR,)))
    text = list(yaml.safe_load_all(made.files["kueue.yaml"]))
    assert [found["metadata"]["name"] for found in text if found["kind"] == "ClusterQueue"] == [
        "macadam-p",
        "macadam-q",
    ]
    assert any("q: Kueue does not count GPU-hours" in note for note in made.notes)
    assert len(list(yaml.safe_load_all(made.files["namespaces.yaml"]))) == 6
    with pytest.raises(InvalidInput, match="20 GPUs"):
        bench.platform.call(RenderQuotas(flavors=(msgspec.structs.replace(FLAVOR, gpus=19),)))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MACADAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MACADAM_PROJECT", "p")
    assert cli.main(["projects", "create", "p"]) == 0
    return tmp_path


def test_commands_write_files_and_say_what_they_do_not_hold(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = '{"gpus": 4, "models": ["h100-sxm-80gb"]}'
    words = [
        "jobs",
        "submit",
        "--command",
        "python",
        "--command",
        "t.py",
        "--resources",
        asked,
        "--image",
        "i:1",
        "--json",
    ]
    capsys.readouterr()
    assert cli.main(words) == 0
    job = json.loads(capsys.readouterr().out)["id"]
    assert cli.main(["jobs", "render", job, "--to", "skypilot", "--out", str(home / "out")]) == 0
    said = capsys.readouterr().out
    assert f"Wrote {home / 'out' / 'task.yaml'}" in said
    assert "USD/h  h100-sxm-80gb on" in said
    task = yaml.safe_load((home / "out" / "task.yaml").read_text())
    assert task["resources"]["ordered"][0]["accelerators"] == {"H100": 4}
    assert cli.main(["jobs", "render", job, "--to", "kubernetes", "--secret", "HF_TOKEN=hub"]) == 0
    assert "secretKeyRef" in capsys.readouterr().out
    (home / "flavors.json").write_text(json.dumps([msgspec.to_builtins(FLAVOR)]))
    assert cli.main(["quotas", "set", "p", "--gpus", "8"]) == 0
    assert cli.main(["quotas", "render", "--flavors", str(home / "flavors.json"), "--out", str(home / "out")]) == 0
    assert (home / "out" / "kueue.yaml").exists()
    pool = "name=h100,machine=p5.48xlarge,most=4,spot=true"
    assert cli.main(["jobs", "terraform", "--cloud", "aws", "--pool", pool, "--out", str(home / "out")]) == 0
    assert json.loads((home / "out" / "main.tf.json").read_text())["resource"]["aws_eks_node_group"]["pool_h100"]


def test_an_elastic_endpoint_is_written_for_whoever_scales_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["jobs", "elastic", "delay-risk", "--image", "i:1", "--run", "serve --fast", "--most", "4", "--gpus", "1"]
    load_of = ["--query", "sum(in_flight)", "--prometheus", "http://prometheus:9090"]
    capsys.readouterr()
    assert cli.main([*words, *load_of]) == 0
    found = objects(capsys.readouterr().out)
    assert found["ScaledObject"]["spec"]["minReplicaCount"] == 0
    assert found["Deployment"]["spec"]["template"]["spec"]["containers"][0]["command"] == ["serve", "--fast"]
    assert cli.main([*words, *load_of, "--by", "hpa"]) == 2
    capsys.readouterr()
    assert cli.main([*words, "--by", "ray", "--app", "serve:app"]) == 0
    assert "import_path: serve:app" in objects(capsys.readouterr().out)["RayService"]["spec"]["serveConfigV2"]


@pytest.mark.parametrize(
    "words",
    [
        ["jobs", "render", "0", "--to", "kubernetes", "--secret", "no-pair"],
        ["jobs", "terraform", "--cloud", "aws", "--pool", "name=x,machine=m,most=many"],
        ["jobs", "terraform", "--cloud", "aws", "--pool", "name=x,size=3"],
        ["quotas", "render", "--flavors", "nowhere.json"],
    ],
)
def test_what_is_typed_wrongly_is_said(home: Path, words: list[str]) -> None:
    assert cli.main(words) == 2


def test_a_job_runs_on_a_cluster_because_a_setting_says_so(tmp_path: Path) -> None:
    cluster, server = clusters.cluster(tmp_path)
    cluster.put("nodes", clusters.node("gpu-1", **{"nvidia.com/gpu": "2"}))
    (tmp_path / "ca.pem").write_text(clusters.certificate()[0])
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "clusters": [{"name": "c", "cluster": {"server": server.url, "certificate-authority": "ca.pem"}}],
        "users": [{"name": "c", "user": {"token": TOKEN}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    settings = {
        "MACADAM_EXECUTOR": "kubernetes",
        "MACADAM_KUBERNETES_CONFIG": str(tmp_path / "kubeconfig"),
        "MACADAM_KUBERNETES_IMAGE": "registry.example/python:3.12",
    }
    with open_platform(environment=settings) as platform:
        platform.call(CreateProject(project="p"))
        asked = Resources(gpus=2)
        job = platform.call(SubmitJob(project="p", command=("python", "-c", "print('on a cluster')"), resources=asked))
        queue = Queue(platform.ports, clock=utc_now, committed=platform.committed)
        owners = ()
        for _ in range(400):
            queue.turn()
            if not owners:
                telemetry_worker.know_pods(platform)
                with platform.ports.sql.read() as sql:
                    owners = tuple(known_pods(sql).values())
            page = platform.call(ShowJob(project="p", job=job.id))
            if page.job.ended is not None:
                break
        assert page.job.state == "succeeded"
        assert [place.node for place in page.attempts[0].places] == ["gpu-1"]
        assert platform.call(ReadLog(project="p", job=job.id)).text == "on a cluster\n"
        assert [(one.project, one.owner) for one in owners] == [("p", job.ref)]
    clusters.end(tmp_path)
