"""What the executor of Kubernetes does beyond the behaviour of all executors, over TLS against a stand-in of a cluster."""

import base64
import copy
import io
import tarfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from contract import api_server, clusters
from contract.api_server import TOKEN, Cluster
from contract.test_executor import attempt, said, until

from macadam.adapters import kubernetes_api
from macadam.adapters.kubernetes_api import Access, KubernetesApi
from macadam.adapters.kubernetes_executor import KubernetesExecutor
from macadam.adapters.kubernetes_sight import nodes_of, quantity
from macadam.adapters.local_objects import LocalObjects
from macadam.compute.catalogue.gpus import recognise
from macadam.compute.jobs import pods
from macadam.compute.jobs.attempt_objects import AttemptObjects, Site
from macadam.errors import InvalidInput, SettingInvalid, Unavailable
from macadam.ports import Allotment, Attempt

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[KubernetesExecutor]:
    made = clusters.kubernetes(tmp_path)
    yield made
    made.close()
    clusters.end(tmp_path)


@pytest.fixture
def cluster(executor: KubernetesExecutor, tmp_path: Path) -> Cluster:
    return clusters.cluster(tmp_path)[0]


def of_kind(cluster: Cluster, kind: str) -> list[dict[str, Any]]:
    return [found for key, found in cluster.objects.items() if key[0] == kind]


def test_a_server_with_another_certificate_is_not_spoken_to(executor: KubernetesExecutor, tmp_path: Path) -> None:
    _, server = clusters.cluster(tmp_path)
    stranger = KubernetesApi(Access(server=server.url, token=TOKEN))  # the system's authorities only
    with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
        stranger.get("/api/v1/nodes")
    stranger.close()
    with pytest.raises(SettingInvalid, match="HTTPS"):
        Access(server="http://127.0.0.1:8080")


def test_a_token_that_counts_for_nothing_is_said_and_never_shown(executor: KubernetesExecutor, tmp_path: Path) -> None:
    _, server = clusters.cluster(tmp_path)
    access = Access(server=server.url, authority=clusters.certificate()[0], token="s3cr3t-token")
    api = KubernetesApi(access)
    with pytest.raises(Unavailable, match="401") as refused:
        list(api.items("/api/v1/nodes"))
    api.close()
    assert "s3cr3t" not in f"{refused.value}{access!r}"


def test_a_token_is_read_anew_each_time_and_one_that_is_none_is_said_and_never_shown(
    executor: KubernetesExecutor, tmp_path: Path
) -> None:
    _, server = clusters.cluster(tmp_path)
    file = tmp_path / "token"
    api = KubernetesApi(Access(server=server.url, authority=clusters.certificate()[0], token_file=str(file)))
    for spoilt in (None, b"s3cr3t\nX-Evil: 1", b"s3cr3t\xff"):
        if spoilt is not None:
            file.write_bytes(spoilt)
        with pytest.raises(Unavailable) as refused:
            list(api.items("/api/v1/nodes"))
        assert "s3cr3t" not in str(refused.value)
    file.write_text(f"{TOKEN}\n")
    assert list(api.items("/api/v1/nodes"))
    api.close()


@pytest.mark.parametrize(
    ("code", "body"),
    [(200, b"<html>a proxy</html>"), (200, b""), (200, b"[]"), (302, b"{}"), (304, b""), (503, b"\xff")],
)
def test_an_answer_that_is_none_is_a_server_that_does_not_answer(
    executor: KubernetesExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, body: bytes
) -> None:
    def answer(handler: Any) -> None:
        handler.send_response(code)
        handler.send_header("Location", "https://127.0.0.1:1/elsewhere")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    monkeypatch.setattr(api_server._Handler, "do_GET", answer)
    with pytest.raises(Unavailable):
        executor.look(["j1.1"])
    with pytest.raises(Unavailable):
        executor.nodes()


def test_a_log_is_read_no_further_than_was_asked(
    executor: KubernetesExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from a server that knows no limit."""
    sent = []

    def flood(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(64):
            try:
                handler.wfile.write(b"x" * (1 << 20))
            except OSError:
                return
            sent.append(1)

    monkeypatch.setattr(api_server._Handler, "do_GET", flood)
    _, server = clusters.cluster(tmp_path)
    api = KubernetesApi(Access(server=server.url, authority=clusters.certificate()[0], token=TOKEN))
    assert api.read("/api/v1/namespaces/x/pods/y/log", offset=10, limit=100) == b"x" * 100
    api.close()
    assert len(sent) < 64


def test_a_cluster_that_falters_is_asked_again(executor: KubernetesExecutor, cluster: Cluster, tmp_path: Path) -> None:
    mark = f"open({str(tmp_path / 'ran')!r}, 'a').write('x')"
    for _ in range(4):
        cluster.failing = 1
        with pytest.raises(Unavailable):
            executor.start(attempt(mark))
        cluster.failing = 1
        with pytest.raises(Unavailable):
            executor.look(["j1.1"])
        executor.start(attempt(mark))
    until(executor, "j1.1", "ended")
    assert (tmp_path / "ran").read_text() == "x"


def test_a_namespace_that_is_missing_is_said_with_what_makes_it(executor: KubernetesExecutor, cluster: Cluster) -> None:
    cluster.namespaces = {"default"}
    for ask in (lambda: executor.start(attempt("print(1)")), lambda: executor.stop("j1.1", grace=1)):
        with pytest.raises(Unavailable, match="no namespace macadam"):
            ask()
    cluster.namespaces = {"macadam"}
    executor.start(attempt("print(1)"))
    until(executor, "j1.1", "ended")


def test_many_attempts_are_seen_in_one_list(executor: KubernetesExecutor, cluster: Cluster) -> None:
    names = [f"j{n}.1" for n in range(10)]
    for name in names[:9]:
        executor.start(attempt("print(1)", name=name))
    limit = time.monotonic() + 30
    while any(seen.state not in ("ended", "unknown") for seen in executor.look(names).values()):
        assert time.monotonic() < limit
    assert [executor.look(names)[name].state for name in names] == ["ended"] * 9 + ["unknown"]
    while of_kind(cluster, "pods"):  # the cluster collects them in its own time
        assert time.monotonic() < limit
        time.sleep(0.02)
    cluster.requests.clear()
    executor.look(names)
    assert {path.rsplit("/", 1)[1] for _, path in cluster.requests} == {"jobs"}


def bundle(tmp_path: Path, size: int = 0) -> str:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        text = b"print('from the bundle')" + b"#" * size
        entry = tarfile.TarInfo("job.py")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    return LocalObjects(tmp_path / "objects").put(made.getvalue())


def test_working_files_arrive_also_if_whoever_started_was_killed_before_they_were_sent(
    executor: KubernetesExecutor, cluster: Cluster, tmp_path: Path
) -> None:
    work = attempt("", command=("python", "job.py"), bundle=bundle(tmp_path))
    render = AttemptObjects(Site(image="x"))
    _, server = clusters.cluster(tmp_path)
    api = KubernetesApi(Access(server=server.url, authority=clusters.certificate()[0], token=TOKEN))
    api.create("/apis/batch/v1/namespaces/macadam/jobs", render.job(work))  # ... and killed here
    api.close()
    time.sleep(0.1)
    assert executor.look(["j1.1"])["j1.1"].state == "starting"
    executor.start(work)
    until(executor, "j1.1", "ended")
    assert said(executor, "j1.1") == "from the bundle\n"
    executor.forget("j1.1")
    assert of_kind(cluster, "configmaps") == []


def test_nothing_of_a_forgotten_attempt_is_held_back_by_its_finalizer(
    executor: KubernetesExecutor, cluster: Cluster
) -> None:
    executor.start(attempt("import time; time.sleep(30)", members=2, grace=0.2))
    until(executor, "j1.1", "running")
    executor.forget("j1.1")
    limit = time.monotonic() + 5
    while of_kind(cluster, "pods"):
        assert time.monotonic() < limit
        time.sleep(0.02)
    assert executor.look(["j1.1"])["j1.1"].state == "unknown"


def test_exit_code_and_log_of_a_stopped_pod_are_kept_before_it_goes(
    executor: KubernetesExecutor, cluster: Cluster
) -> None:
    code = "import signal, sys, time\nsignal.signal(15, lambda *_: (print('saved'), sys.exit(75)))\nprint('up', flush=True)\ntime.sleep(30)"
    executor.start(attempt(code))
    until(executor, "j1.1", "running")
    while "up" not in said(executor, "j1.1"):
        time.sleep(0.02)
    executor.stop("j1.1", grace=5)
    time.sleep(0.5)  # nobody looks for a while: the pod has to wait for it
    assert of_kind(cluster, "pods")
    seen = until(executor, "j1.1", "ended")
    time.sleep(0.1)
    assert of_kind(cluster, "pods") == []
    assert (seen.why, seen.exit_code) == ("stopped", 75)
    assert said(executor, "j1.1") == "up\nsaved\n"
    assert executor.look(["j1.1"])["j1.1"] == seen


def test_an_interruption_at_any_request_of_reading_an_end_loses_nothing_of_it(
    executor: KubernetesExecutor, cluster: Cluster
) -> None:
    interrupted = 0
    for at in range(10):
        name = f"j{at}.1"
        executor.start(attempt("print('said'); raise SystemExit(3)", name=name))
        limit = time.monotonic() + 10
        while not cluster.objects["jobs", "macadam", executor._render.name(name)]["status"].get("conditions"):
            assert time.monotonic() < limit
            time.sleep(0.01)
        cluster.fail_at = at
        try:
            executor.look([name])
        except Unavailable:
            interrupted += 1
        cluster.fail_at = None
        seen = executor.look([name])[name]
        assert (seen.state, seen.exit_code) == ("ended", 3)
        assert said(executor, name) == "said\n"
    assert interrupted >= 5


def test_two_processes_that_see_it_end_see_the_same(executor: KubernetesExecutor, tmp_path: Path) -> None:
    other = clusters.kubernetes(tmp_path)
    for n in range(5):
        executor.start(attempt("raise SystemExit(3)", name=f"j{n}.1"))
    seen = [until(one, f"j{n}.1", "ended") for n in range(5) for one in (executor, other)]
    assert [one.exit_code for one in seen] == [3] * 10
    other.close()


def test_whoever_saw_too_little_does_not_write_over_what_another_saw(
    executor: KubernetesExecutor, cluster: Cluster, tmp_path: Path
) -> None:
    executor.start(attempt("raise SystemExit(3)"))
    key = ("jobs", "macadam", executor._render.name("j1.1"))
    limit = time.monotonic() + 10
    while not cluster.objects[key]["status"].get("conditions"):
        assert time.monotonic() < limit
        time.sleep(0.01)
    stale = copy.deepcopy(cluster.objects[key])
    other = clusters.kubernetes(tmp_path)
    assert until(other, "j1.1", "ended").exit_code == 3
    other.close()
    # The pods are gone by now, so the older copy of the Job looks as if all of them were lost.
    assert executor._see("j1.1", stale, []).state == "running"
    assert executor.look(["j1.1"])["j1.1"].exit_code == 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"requirements": "numpy"}, "requirements"),
        ({"gpus": {"gpu:here/0": 500}}, "a part of a GPU"),
        ({"allotments": (Allotment(node="here", cpus=1), Allotment(node="here", cpus=2))}, "members that differ"),
        ({"environment": {"API_KEY": "x"}}, "API_KEY"),
        ({"image": "not an image"}, "image"),
    ],
)
def test_what_can_never_run_is_refused_with_the_reason(
    executor: KubernetesExecutor, wrong: dict[str, object], said: str
) -> None:
    executor.start(attempt("print(1)", **wrong))  # type: ignore[arg-type]
    seen = until(executor, "j1.1", "ended")
    assert (seen.why, seen.exit_code) == ("refused", 126)
    assert said in seen.message


def test_working_files_that_are_too_large_are_refused(executor: KubernetesExecutor, tmp_path: Path) -> None:
    executor.start(attempt("", command=("python", "job.py"), bundle=bundle(tmp_path, size=1 << 20)))
    seen = until(executor, "j1.1", "ended")
    assert seen.why == "refused"
    assert "ConfigMap" in seen.message


def test_an_attempt_asks_for_its_devices_its_node_and_its_signal() -> None:
    render = AttemptObjects(Site(image="x"))

    def spec(**more: Any) -> dict[str, Any]:
        found = render.job(Attempt(id="j.1", job="j", project="p", command=("x",), **more))["spec"]
        assert found["backoffLimit"] == 0
        spec: dict[str, Any] = found["template"]["spec"]
        return spec

    whole = spec(
        allotments=(Allotment(node="n1", gpus={"gpu:n1/0": 1000, "gpu:n1/3": 1000}, memory=1 << 30),), signal=10
    )
    (container,) = whole["containers"]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "2"}
    assert container["lifecycle"] == {"stopSignal": "SIGUSR1"}
    (term,) = whole["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"][0]["values"] == ["n1"]
    sliced = spec(allotments=(Allotment(node="n1", gpus={"gpu:n1/mig:1g.10gb-2": 1000}),))
    assert sliced["containers"][0]["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == "1"
    with pytest.raises(InvalidInput, match="several profiles"):
        spec(allotments=(Allotment(node="n1", gpus={"gpu:n1/mig:1g.10gb-2": 1000, "gpu:n1/0": 1000}),))


def test_nodes_say_what_can_be_allotted_and_when_they_go() -> None:
    plain = clusters.node("n1", **{"nvidia.com/gpu": "2", "nvidia.com/mig-1g.10gb": "1"})
    plain["metadata"]["labels"] |= {  # type: ignore[index] # a dict of dicts
        "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
        "nvidia.com/gpu.memory": "81559",
        "topology.kubernetes.io/zone": "z",
    }
    going = clusters.node("n2")
    going["spec"] = {"taints": [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}], "unschedulable": True}
    closed = clusters.node("n3")
    closed["spec"] = {"unschedulable": True}
    dead = clusters.node("n4")
    dead["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]  # type: ignore[index] # a dict of dicts
    one, two, three = nodes_of([plain, going, closed, dead], recognise, NOW)
    assert [node.closed for node in (one, two, three)] == [False, True, True]
    assert three.leaving is None
    assert (one.cpus, one.memory, one.zone, one.leaving) == (8000, 32 << 30, "z", None)
    assert [(d.id, d.model) for d in one.devices] == [
        ("gpu:n1/0", "h100-sxm-80gb"),
        ("gpu:n1/1", "h100-sxm-80gb"),
        ("gpu:n1/mig:1g.10gb-0", "h100-sxm-80gb"),
    ]
    assert (two.name, two.leaving) == ("n2", NOW + timedelta(seconds=120))
    (again,) = nodes_of([going], recognise, NOW + timedelta(seconds=30), {"n2": NOW + timedelta(seconds=120)})
    assert again.leaving == two.leaving, "an announcement without a time does not move on with each look"
    assert [quantity(text) for text in ("1500m", "2", "1Gi", "1k", "1Ei", "2T", "1e3")] == [
        1.5,
        2,
        1 << 30,
        1000,
        1 << 60,
        2 * 10**12,
        1000,
    ]


@pytest.mark.parametrize(
    ("key", "left"),
    [
        ("aws-node-termination-handler/spot-itn", 120),
        ("karpenter.sh/disrupted", 120),
        ("cloud.google.com/impending-node-termination", 15),
        ("node.kubernetes.io/out-of-service", 0),
        ("ToBeDeletedByClusterAutoscaler", 600),
        ("nvidia.com/gpu", None),
    ],
)
@pytest.mark.parametrize("ready", ["True", "False"])
def test_a_taint_that_announces_a_nodes_end_says_how_long_it_has(key: str, left: int | None, ready: str) -> None:
    found = clusters.node("n1")
    found["spec"] = {"taints": [{"key": key, "effect": "NoSchedule", "value": "x"}]}
    found["status"]["conditions"] = [{"type": "Ready", "status": ready}]  # type: ignore[index] # a dict of dicts
    seen = [node.leaving for node in nodes_of([found], recognise, NOW)]
    # One that goes away is told of even if it is not ready any more: what runs there has to be stopped.
    assert seen == (
        [] if left is None and ready == "False" else [left if left is None else NOW + timedelta(seconds=left)]
    )


def test_a_node_whose_object_is_deleted_goes_away() -> None:
    found = clusters.node("n1")
    found["metadata"]["deletionTimestamp"] = "2026-11-21T00:00:00Z"  # type: ignore[index] # a dict of dicts
    (node,) = nodes_of([found], recognise, datetime(2026, 11, 21, 0, 0, 30, tzinfo=UTC))
    assert node.leaving == datetime(2026, 11, 21, 0, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("provider_id", "labels", "said"),
    [
        ("aws:///us-east-1a/i-0abc", {"eks.amazonaws.com/capacityType": "SPOT"}, ("aws", True)),
        ("aws:///us-east-1a/i-0abc", {"eks.amazonaws.com/capacityType": "ON_DEMAND"}, ("aws", False)),
        ("aws:///us-east-1a/i-0abc", {"karpenter.sh/capacity-type": "spot"}, ("aws", True)),
        ("aws:///us-east-1a/i-0abc", {"karpenter.sh/capacity-type": "reserved"}, ("aws", False)),
        ("aws:///us-east-1a/i-0abc", {}, ("aws", None)),
        ("gce://p/us-central1-a/n", {"cloud.google.com/gke-spot": "true"}, ("gcp", True)),
        ("gce://p/us-central1-a/n", {"cloud.google.com/gke-provisioning": "preemptible"}, ("gcp", True)),
        ("gce://p/us-central1-a/n", {"cloud.google.com/gke-provisioning": "standard"}, ("gcp", False)),
        ("gce://p/us-central1-a/n", {"cloud.google.com/gke-nodepool": "a"}, ("gcp", False)),
        ("azure:///subscriptions/s", {"kubernetes.azure.com/scalesetpriority": "spot"}, ("azure", True)),
        ("azure:///subscriptions/s", {"kubernetes.azure.com/agentpool": "a"}, ("azure", False)),
        ("kind://docker/a/b", {}, ("", None)),
        ("", {"karpenter.sh/capacity-type": "who knows"}, ("", None)),
        # What contradicts itself may be taken away.
        ("", {"karpenter.sh/capacity-type": "on-demand", "cloud.google.com/gke-spot": "true"}, ("", True)),
    ],
)
def test_a_node_says_where_it_was_bought_and_as_what(
    provider_id: str, labels: dict[str, str], said: tuple[str, bool | None]
) -> None:
    found = clusters.node("n1")
    found["metadata"]["labels"] |= labels | {  # type: ignore[index] # a dict of dicts
        "topology.kubernetes.io/region": "us-east-1",
        "topology.kubernetes.io/zone": "us-east-1a",
        "node.kubernetes.io/instance-type": "p5.48xlarge",
    }
    found["spec"] = {"providerID": provider_id} if provider_id else {}
    (node,) = nodes_of([found], recognise, NOW)
    assert (node.provider, node.spot) == said
    assert (node.region, node.zone, node.machine) == ("us-east-1", "us-east-1a", "p5.48xlarge")


def test_a_pod_is_known_by_whom_macadam_made_it_for(executor: KubernetesExecutor, cluster: Cluster) -> None:
    executor.start(attempt("import time; time.sleep(5)", gpus={"gpu:here/0": 1000}))
    until(executor, "j1.1", "running")
    (mine,) = of_kind(cluster, "pods")
    stranger = {"metadata": {**mine["metadata"], "namespace": "elsewhere"}, "spec": mine["spec"]}
    bare = {"metadata": {"namespace": "macadam", "name": "x"}, "spec": mine["spec"]}
    (found,) = pods.owners([mine, stranger, bare], jobs_namespace="macadam")
    assert (found.project, found.owner, found.name) == ("p", "job:j1", mine["metadata"]["name"])
    assert pods.gpus(mine) == {"nvidia.com/gpu": 1}


def kubeconfig(tmp_path: Path, **user: str) -> dict[str, Any]:
    return {
        "current-context": "main",
        "contexts": [{"name": "main", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [
            {
                "name": "c",
                "cluster": {
                    "server": "https://cluster.example",
                    "certificate-authority-data": base64.b64encode(b"PEM").decode(),
                },
            }
        ],
        "users": [{"name": "u", "user": user or {"token": TOKEN}}],
    }


def read(tmp_path: Path, config: dict[str, Any]) -> Access:
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config))
    return kubernetes_api.from_kubeconfig(path)


def test_a_kubeconfig_tells_server_authority_and_credentials(tmp_path: Path) -> None:
    found = read(tmp_path, kubeconfig(tmp_path))
    assert (found.server, found.authority, found.token) == ("https://cluster.example", "PEM", TOKEN)
    (tmp_path / "me.pem").write_text("CERTIFICATE")
    (tmp_path / "me.key").write_text("KEY")
    assert read(tmp_path, kubeconfig(tmp_path, tokenFile="mine")).token_file == str(tmp_path / "mine")
    found = read(tmp_path, kubeconfig(tmp_path, **{"client-certificate": "me.pem", "client-key": "me.key"}))
    assert (found.certificate, found.key) == ("CERTIFICATE", "KEY")


def test_a_kubeconfig_that_is_unsafe_or_unusable_is_refused(tmp_path: Path) -> None:
    unsafe = kubeconfig(tmp_path)
    unsafe["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = True
    program = kubeconfig(tmp_path, exec="aws")
    other = kubeconfig(tmp_path, **{"as": "somebody-who-may-less"})
    for config in (unsafe, program, other, {}, {"current-context": "other", "contexts": []}):
        with pytest.raises(SettingInvalid):
            read(tmp_path, config)
    with pytest.raises(SettingInvalid):
        kubernetes_api.from_kubeconfig(tmp_path / "nowhere")


def test_a_pods_own_account_is_read_from_where_the_kubelet_puts_it(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("PEM")
    found = kubernetes_api.in_cluster({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)
    assert (found.server, found.authority, found.token_file) == ("https://10.0.0.1:443", "PEM", str(tmp_path / "token"))
    with pytest.raises(SettingInvalid, match="runs in no cluster"):
        kubernetes_api.in_cluster({}, tmp_path)
