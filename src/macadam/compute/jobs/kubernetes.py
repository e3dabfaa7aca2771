"""Workloads as Kubernetes objects: pods under the `restricted` pod security standard, batch Jobs, namespaces that are closed by default.

Pure: values in, plain dicts out, ready for JSON or YAML. What a cluster must have for them (the NVIDIA device plugin and GPU
feature discovery, Kueue) stands in the how-to; nothing here asks it. https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from collections.abc import Mapping, Sequence
from typing import Any

from macadam.compute.catalogue import gpus
from macadam.compute.jobs.naming import cores, dns_label, label_value, size
from macadam.compute.jobs.workload import CHECKPOINT, Workload

Object = dict[str, Any]

PREFIX = "macadam.local"  # of our labels; .local, so that it is nobody's domain
QUEUE = "macadam"  # the one LocalQueue of a project's namespace
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
_USER = 10001  # any that is not root: most images' files can be read by everybody
_JOB_NAME = 52  # leaves room for '-<index>-<random>' in the names of an indexed Job's pods
_NEVER_WORKS = (126, 127)  # POSIX shells: cannot be executed, was not found
_KEEP = 7 * 86400  # s that a finished Job stays readable
_SHARED_MEMORY = 4  # a quarter of the memory may be /dev/shm, through which data loaders hand batches on
_DASHBOARDS = (8265, 8000)  # of Ray's head: its dashboard, and Serve's proxy, whose health the operator asks for
_SPOT_TAINTS = (("cloud.google.com/gke-spot", "true"), ("kubernetes.azure.com/scalesetpriority", "spot"))


def job(workload: Workload, *, queued: bool = True) -> Object:
    """A batch/v1 Job. queued: suspended until Kueue admits it; otherwise it starts at once."""
    labels = _labels(workload) | (_queue_labels(workload) if queued else {})
    policy = [
        {"action": "FailJob", "onExitCodes": {"containerName": "work", "operator": "In", "values": list(_NEVER_WORKS)}},
        # A pod that was taken away (preempted, drained, spot) has not failed: it does not count as an attempt.
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    spec: Object = {
        "suspend": queued,
        "completions": workload.members,
        "parallelism": workload.members,
        "completionMode": "Indexed",
        "backoffLimit": workload.attempts - 1,
        "podFailurePolicy": {"rules": policy},
        "ttlSecondsAfterFinished": _KEEP,
        "template": pod_template(workload),
    }
    if workload.deadline:
        spec["activeDeadlineSeconds"] = workload.deadline
    metadata = {**_metadata(workload), "name": job_name(workload), "labels": labels}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def job_name(workload: Workload) -> str:
    return dns_label(workload.name, limit=_JOB_NAME)


def pod_template(workload: Workload) -> Object:
    """A pod of a batch Job, with its rank from the Job's index."""
    index = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
    rank: list[Object] = [
        {"name": "MACADAM_RANK", "valueFrom": {"fieldRef": index}},
        {"name": "MACADAM_WORLD", "value": str(workload.members)},
    ]
    spec = pod_spec(workload, extra=rank) | {"restartPolicy": "Never"}
    return {"metadata": {"labels": _labels(workload), "annotations": _annotations(workload)}, "spec": spec}


def pod_spec(workload: Workload, *, extra: Sequence[Object] = (), name: str = "work") -> Object:
    """One container that may not become root, write its image or talk to the cluster's API."""
    spec: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": workload.grace,
        "securityContext": pod_security(),
        "containers": [_container(workload, extra, name)],
        "volumes": _volumes(workload),
    }
    if affinity := gpu_affinity(workload.gpu):
        spec["affinity"] = affinity
    if tolerations := _tolerations(workload):
        spec["tolerations"] = tolerations
    return spec


def _container(workload: Workload, extra: Sequence[Object], name: str) -> Object:
    found: Object = {
        "name": name,
        "image": workload.image,
        "command": [literal(word) for word in workload.command],
        "env": [*_environment(workload), *extra],
        "resources": resources(workload),
        "securityContext": container_security(),
        "volumeMounts": _mounts(workload),
    }
    if workload.port:
        found["ports"] = [{"name": "http", "containerPort": workload.port}]
        found["readinessProbe"] = {"tcpSocket": {"port": "http"}, "periodSeconds": 5}
    return found


def literal(text: str) -> str:
    """A word as it is: of commands and variables Kubernetes takes '$(NAME)' for that variable's value, and '$$' for '$'.

    https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/
    """
    return text.replace("$", "$$")


def resources(workload: Workload) -> Object:
    """Requests equal to limits: a pod of the class Guaranteed, the last to be evicted when a node runs short."""
    amounts = {"cpu": cores(workload.cpu_milli), "memory": size(workload.memory)}
    if workload.gpus:
        amounts[workload.resource] = str(workload.gpus)
    return {"requests": dict(amounts), "limits": dict(amounts)}


def pod_security(user: int = _USER) -> Object:
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "privileged": False,
        "capabilities": {"drop": ["ALL"]},
    }


def gpu_affinity(gpu: str) -> Object:
    """Only nodes whose GPUs are of this product, as GPU feature discovery labels them ('NVIDIA-H100-80GB-HBM3').

    Nothing for ''. Raises NotFound for a GPU that the catalogue does not know.
    """
    if not gpu:
        return {}
    expression = {"key": "nvidia.com/gpu.product", "operator": "In", "values": products(gpu)}
    terms = [{"matchExpressions": [expression]}]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def products(gpu: str) -> list[str]:
    """The label values under which a GPU's nodes may be found: each name that drivers give it, with '-' for spaces."""
    written = (name.replace(" ", "-") for name in gpus.find(gpu).names)
    return [name for name in dict.fromkeys(written) if name == label_value(name)]


def namespace(project: str) -> str:
    """A project's namespace. Prefixed, so that no project can be called kube-system."""
    return dns_label(f"macadam-{project}")


def closed_namespace(project: str, *, ray: str = "") -> list[Object]:
    """A project's namespace: pods must fit the restricted standard, and none talks to anybody but the cluster's DNS.

    ray: the namespace of KubeRay's operator, which then reaches the dashboards of Ray's heads, '' = no need: it asks there how a job
    is, in every mode, and without an answer no RayJob ever ends.
    """
    name = namespace(project)
    labels = {
        "pod-security.kubernetes.io/enforce": "restricted",
        "pod-security.kubernetes.io/warn": "restricted",
        f"{PREFIX}/project": label_value(project),
    }
    dns: Object = {
        "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
        "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
    }
    gang: Object = {"podSelector": {"matchLabels": {f"{PREFIX}/project": label_value(project)}}}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
        _policy(name, "default-deny", {}, ingress=[], egress=[]),
        # Members of a gang, and Ray's head and workers, have to reach each other.
        _policy(
            name, "own-pods-and-dns", gang["podSelector"], ingress=[{"from": [gang]}], egress=[{"to": [gang]}, dns]
        ),
        *([_operator(name, ray)] if ray else []),
    ]


def _operator(space: str, operator: str) -> Object:
    """Lets KubeRay's operator in, by its label (KubeRay's Helm chart) and its namespace: a label alone anybody may carry."""
    origin = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": operator}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}},
    }
    ports = [{"port": port, "protocol": "TCP"} for port in _DASHBOARDS]
    heads = {"matchLabels": {"ray.io/node-type": "head"}}
    spec = {"podSelector": heads, "policyTypes": ["Ingress"], "ingress": [{"from": [origin], "ports": ports}]}
    metadata = {"name": "ray-operator", "namespace": space}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def _policy(space: str, name: str, pods: Object, *, ingress: list[Object], egress: list[Object]) -> Object:
    spec = {"podSelector": pods, "policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress}
    metadata = {"name": name, "namespace": space}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def priority_class(priority: int) -> str:
    """The WorkloadPriorityClass of a priority."""
    return f"macadam-{priority}" if priority >= 0 else f"macadam-minus-{-priority}"


def _labels(workload: Workload) -> dict[str, str]:
    named = {"project": workload.project, "workload": workload.name, "owner": workload.owner}
    return {f"{PREFIX}/{key}": label_value(value) for key, value in named.items() if value}


def _annotations(workload: Workload) -> dict[str, str]:
    """The names as they are; labels have to change some."""
    named = {"project": workload.project, "workload": workload.name, "owner": workload.owner}
    return {f"{PREFIX}/{key}": value for key, value in named.items() if value}


def _queue_labels(workload: Workload) -> dict[str, str]:
    return {_QUEUE_LABEL: QUEUE, _PRIORITY_LABEL: priority_class(workload.priority)}


def _metadata(workload: Workload) -> Object:
    return {
        "name": dns_label(workload.name),
        "namespace": namespace(workload.project),
        "labels": _labels(workload),
        "annotations": _annotations(workload),
    }


def metadata(workload: Workload, *, limit: int, queued: bool) -> Object:
    """What stands over an object of another kind than Job. limit: of its name's length."""
    labels = _labels(workload) | (_queue_labels(workload) if queued else {})
    return {**_metadata(workload), "name": dns_label(workload.name, limit=limit), "labels": labels}


def labelled(workload: Workload, spec: Mapping[str, Any]) -> Object:
    """A pod template around a spec."""
    return {"metadata": {"labels": _labels(workload), "annotations": _annotations(workload)}, "spec": dict(spec)}


def _environment(workload: Workload) -> list[Object]:
    fixed = {"HOME": "/tmp", "TMPDIR": "/tmp"}  # noqa: S108 - inside the container, a volume of its own
    if workload.checkpoint:
        fixed["MACADAM_CHECKPOINT"] = CHECKPOINT
    plain: list[Object] = [{"name": k, "value": literal(v)} for k, v in sorted((fixed | workload.environment).items())]
    secret = sorted(workload.secrets.items())
    return plain + [{"name": k, "valueFrom": {"secretKeyRef": {"name": v, "key": "value"}}} for k, v in secret]


def _volumes(workload: Workload) -> list[Object]:
    found: list[Object] = [{"name": "tmp", "emptyDir": {"sizeLimit": size(max(workload.scratch, 1 << 20))}}]
    if workload.gpus:
        shared = max(workload.memory // _SHARED_MEMORY >> 20, 1) << 20
        found.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size(shared)}})
    if workload.checkpoint:
        found.append({"name": "checkpoint", "persistentVolumeClaim": {"claimName": dns_label(workload.checkpoint)}})
    return found


def _mounts(workload: Workload) -> list[Object]:
    found = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - inside the container
    if workload.gpus:
        found.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 - inside the container
    if workload.checkpoint:
        found.append({"name": "checkpoint", "mountPath": CHECKPOINT})
    return found


def _tolerations(workload: Workload) -> list[Object]:
    found: list[Object] = []
    if workload.gpus:
        found.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if workload.spot:
        found += [
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} for key, value in _SPOT_TAINTS
        ]
    return found
