"""Workloads as Kubernetes objects: what they say, and that Kubernetes' own schemas take them."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from contract.api_server import expanded
from hypothesis import given, settings
from hypothesis import strategies as st

from macadam.compute.jobs import elastic, kuberay, kubernetes, validation
from macadam.compute.jobs.naming import parse_quantity
from macadam.compute.jobs.workload import Workload, whole_seconds
from macadam.errors import InvalidInput, NotFound

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it reads its data in a way that importlib deprecates
    import kubernetes_validate

KUBERNETES = "1.37"


def by_kubernetes(found: dict[str, Any]) -> None:
    """Raises ValidationError unless Kubernetes' published schema, in its strict form, takes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kubernetes_validate.validate(found, KUBERNETES, strict=True)


def workload(**given: Any) -> Workload:
    fixed: dict[str, Any] = {"name": "train-1", "project": "flights", "image": "registry.example/train:3"}
    return Workload(**(fixed | {"command": ("python", "train.py")} | given))


TEXT = st.text(min_size=1, max_size=80)
WORKLOADS = st.builds(
    workload,
    name=TEXT,
    project=TEXT,
    owner=TEXT,
    cpu_milli=st.integers(1, 10**6),
    memory=st.integers(1 << 20, 1 << 45),
    scratch=st.integers(0, 1 << 45),
    gpus=st.integers(0, 16),
    gpu=st.sampled_from(["", "h100-sxm-80gb"]),
    members=st.integers(1, 64),
    deadline=st.integers(0, 10**7),
    attempts=st.integers(1, 10),
    spot=st.booleans(),
    priority=st.integers(-(2**31), 2**31 - 1),
    environment=st.dictionaries(st.sampled_from(["A", "B_1", "LR"]), st.text(max_size=20)),
    secrets=st.dictionaries(st.sampled_from(["HF_TOKEN", "PASSWORD"]), st.just("hub")),
    checkpoint=st.sampled_from(["", "claim"]),
)


@settings(max_examples=40, deadline=None)
@given(given=WORKLOADS, queued=st.booleans())
def test_every_workload_is_a_job_that_kubernetes_takes(*, given: Workload, queued: bool) -> None:
    found = kubernetes.job(given, queued=queued)
    validation.check_objects([found])
    by_kubernetes(found)


@settings(max_examples=25, deadline=None)
@given(WORKLOADS)
def test_requests_are_what_was_asked_for_and_equal_to_the_limits(given: Workload) -> None:
    amounts = kubernetes.resources(given)
    assert amounts["requests"] == amounts["limits"]
    assert parse_quantity(amounts["limits"]["cpu"]) * 1000 == given.cpu_milli
    assert parse_quantity(amounts["limits"]["memory"]) == given.memory
    assert int(amounts["limits"].get("nvidia.com/gpu", "0")) == given.gpus


def test_a_job_waits_for_kueue_and_says_in_which_queue() -> None:
    found = kubernetes.job(workload(priority=-3, gpus=2, deadline=3600, members=4, attempts=3))
    assert found["spec"]["suspend"] is True
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "macadam"
    assert found["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "macadam-minus-3"
    assert found["metadata"]["namespace"] == "macadam-flights"
    spec = found["spec"]
    assert [spec[k] for k in ("completions", "parallelism", "backoffLimit", "activeDeadlineSeconds")] == [4, 4, 2, 3600]
    unqueued = kubernetes.job(workload(), queued=False)
    assert unqueued["spec"]["suspend"] is False
    assert "kueue.x-k8s.io/queue-name" not in unqueued["metadata"]["labels"]


def test_a_pod_cannot_become_root_write_its_image_or_call_the_cluster() -> None:
    spec = kubernetes.job(workload(gpus=1))["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "privileged": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all("sizeLimit" in volume["emptyDir"] for volume in spec["volumes"])


def test_a_mig_slice_is_asked_for_by_its_profile() -> None:
    found = kubernetes.resources(workload(gpus=2, mig="1g.10gb"))
    assert found["limits"]["nvidia.com/mig-1g.10gb"] == "2"
    assert "nvidia.com/gpu" not in found["limits"]


def test_a_gpu_is_found_by_the_label_that_feature_discovery_gives_its_nodes() -> None:
    affinity = kubernetes.gpu_affinity("h100-sxm-80gb")["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    (expression,) = term["matchExpressions"]
    assert expression["key"] == "nvidia.com/gpu.product"
    assert "NVIDIA-H100-80GB-HBM3" in expression["values"]
    with pytest.raises(NotFound):
        kubernetes.gpu_affinity("no-such-gpu")


def test_only_work_that_may_be_interrupted_tolerates_spot_nodes() -> None:
    def keys(given: Workload) -> set[str]:
        spec = kubernetes.job(given)["spec"]["template"]["spec"]
        return {toleration["key"] for toleration in spec.get("tolerations", ())}

    assert keys(workload()) == set()
    assert keys(workload(gpus=1)) == {"nvidia.com/gpu"}
    assert "cloud.google.com/gke-spot" in keys(workload(gpus=1, spot=True))


def test_a_secret_is_named_and_its_value_never_stands_in_an_object() -> None:
    found = kubernetes.job(workload(secrets={"HF_TOKEN": "hub"}))
    (container,) = found["spec"]["template"]["spec"]["containers"]
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "value"}}} in container["env"]
    with pytest.raises(InvalidInput, match="HF_TOKEN"):
        workload(environment={"HF_TOKEN": "hf_abc"})
    assert workload(environment={"TOKENIZERS_PARALLELISM": "false"}).environment


def test_a_namespace_is_closed_before_anything_runs_in_it() -> None:
    objects = kubernetes.closed_namespace("flights")
    validation.check_objects(objects)
    for found in objects:
        by_kubernetes(found)
    space, deny, _ = objects
    assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert deny["spec"]["podSelector"] == {}
    assert (deny["spec"]["ingress"], deny["spec"]["egress"]) == ([], [])


def test_kuberays_operator_and_nobody_else_reaches_a_head_from_outside() -> None:
    *_, policy = objects = kubernetes.closed_namespace("flights", ray="ray-system")
    validation.check_objects(objects)
    by_kubernetes(policy)
    assert policy["spec"]["podSelector"] == {"matchLabels": {"ray.io/node-type": "head"}}
    (rule,) = policy["spec"]["ingress"]
    (origin,) = rule["from"]  # both selectors in one: a label alone anybody may carry
    assert origin["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "ray-system"}}
    assert origin["podSelector"] == {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}}
    assert 8265 in [port["port"] for port in rule["ports"]]


@settings(max_examples=20, deadline=None)
@given(WORKLOADS)
def test_every_workload_is_a_ray_job_whose_pods_kubernetes_takes(given: Workload) -> None:
    found = kuberay.ray_job(given, ray="2.52.0")
    validation.check_objects([found])
    cluster = found["spec"]["rayClusterSpec"]
    assert [g["replicas"] for g in cluster["workerGroupSpecs"]] == [given.members]
    assert len(found["metadata"]["name"]) <= 40
    for template in (cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]):
        as_pod = template["metadata"] | {"name": "x"}
        by_kubernetes({"apiVersion": "v1", "kind": "Pod", "metadata": as_pod, "spec": template["spec"]})


def test_a_command_outlives_the_shells_between_a_ray_job_and_its_head(tmp_path: Path) -> None:
    show = "import sys; print(ascii(sys.argv[1:]))"
    odd = ["a b", "$HOME", "$$", "$(HOME)", "`id`", "x; touch hacked", "'\"\\", "", "ä→", "# no", "*", "-"]
    # As KubeRay writes its script, Kubernetes its arguments, and Ray's CLI what it submits (`list2cmdline`).
    (tmp_path / "ray").write_text(
        f"#!{sys.executable}\nimport subprocess, sys\nsubprocess.run(subprocess.list2cmdline(sys.argv[2:]), shell=True, check=True)\n"
    )
    (tmp_path / "ray").chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    script = expanded(f"ray -- {kuberay.entrypoint(['python', '-c', show, *odd])} ;", {"HOME": "filled in"})
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ce", "--", script], cwd=tmp_path, env={"PATH": path}, capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == ascii(odd)
    assert not (tmp_path / "hacked").exists()
    assert kuberay.entrypoint(["python", "train.py", "--epochs=3"]) == "python train.py --epochs=3"


def test_the_head_of_a_ray_cluster_takes_no_gpu() -> None:
    cluster = kuberay.ray_job(workload(gpus=8, members=2), ray="2.52.0")["spec"]["rayClusterSpec"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    (worker,) = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "8"


def test_a_ray_service_scales_between_its_bounds() -> None:
    found = kuberay.ray_service(workload(gpus=1, port=8000), ray="2.52.0", import_path="serve:app", least=0, most=4)
    validation.check_objects([found])
    assert "min_replicas: 0" in found["spec"]["serveConfigV2"]
    assert found["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"] is True
    with pytest.raises(InvalidInput):
        kuberay.ray_service(workload(), ray="2.52.0", import_path="serve:app", least=3, most=2)


def plan(**given: Any) -> elastic.Plan:
    fixed: dict[str, Any] = {
        "least": 0,
        "most": 4,
        "target": 8,
        "query": "sum(in_flight)",
        "address": "http://prom:9090",
    }
    return elastic.Plan(**(fixed | given))


def test_keda_scales_to_zero_and_an_autoscaler_of_kubernetes_refuses_to() -> None:
    objects = elastic.endpoint(workload(port=8000, gpus=1), plan())
    validation.check_objects(objects)
    deployment, service, scaler = objects
    by_kubernetes(deployment)
    by_kubernetes(service)
    assert "replicas" not in deployment["spec"]
    assert scaler["spec"]["minReplicaCount"] == 0
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    with pytest.raises(InvalidInput, match="at least one"):
        elastic.endpoint(workload(port=8000), plan(), by="hpa")
    *_, autoscaler = elastic.endpoint(workload(port=8000), plan(least=1), by="hpa")
    validation.check_objects([autoscaler])
    by_kubernetes(autoscaler)


@pytest.mark.parametrize(
    "wrong", [{"least": 5}, {"most": 0}, {"target": 0}, {"target": float("nan")}, {"query": ""}, {"address": "prom"}]
)
def test_a_plan_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        plan(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image": "x y"},
        {"command": ()},
        {"cpu_milli": 0},
        {"memory": 5},
        {"gpus": -1},
        {"members": 0},
        {"mig": "big"},
        {"mig": "1g.10gb"},
        {"environment": {"A B": ""}},
        {"environment": {"A": "1"}, "secrets": {"A": "x"}},
        {"deadline": 2**31},
        {"port": 70000},
    ],
)
def test_a_workload_that_is_none_is_refused_when_it_is_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        workload(**wrong)


def test_a_field_that_nobody_meant_is_an_error_before_it_is_written() -> None:
    found = kubernetes.job(workload())
    found["spec"]["backofLimit"] = 3
    with pytest.raises(InvalidInput, match="backofLimit"):
        validation.check_objects([found])
    unlimited = kubernetes.job(workload())
    del unlimited["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    with pytest.raises(InvalidInput, match="limits"):
        validation.check_objects([unlimited])


def test_seconds_are_rounded_up_and_never_invented() -> None:
    assert [whole_seconds(0), whole_seconds(0.1), whole_seconds(5)] == [0, 1, 5]
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(InvalidInput):
            whole_seconds(wrong)
