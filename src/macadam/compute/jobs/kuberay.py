"""Workloads as KubeRay's RayJob and RayService (ray.io/v1): a Ray cluster of their own, gone when the job is done.

The image has to contain Ray of the version that is named. Fields: https://ray-project.github.io/kuberay/reference/api/.
"""

import base64
import re
import shlex
from collections.abc import Sequence
from typing import Any

import msgspec
import yaml

from macadam.compute.jobs import kubernetes
from macadam.compute.jobs.kubernetes import Object
from macadam.compute.jobs.workload import Workload
from macadam.errors import InvalidInput

_API = "ray.io/v1"
_APPLICATION = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*\Z")
_PLAIN = re.compile(r"[A-Za-z0-9_@%+:,./-][A-Za-z0-9_@%+=:,./-]*\Z")
_RUN = "import base64,json,os,sys; words=json.loads(base64.b64decode(sys.argv[1])); os.execvp(words[0], words)"
_NAME = 40  # KubeRay adds suffixes to a job's name and refuses those that end up longer than 63
_HEAD_CORES, _HEAD_MEMORY = 2000, 8 << 30  # Ray's advice for a head that runs no tasks
_SUBMITTER_CORES, _SUBMITTER_MEMORY = 500, 512 << 20
_RAY_USER = 1000  # of the rayproject/ray images, who owns what Ray writes
_KEEP = 3600  # s that a finished cluster stays, for its logs


def ray_job(workload: Workload, *, ray: str, queued: bool = True) -> Object:
    """A RayJob: the command runs as the driver; members are the workers that it finds. ray: version, such as '2.52.0'."""
    spec: Object = {
        "entrypoint": entrypoint(workload.command),
        "suspend": queued,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _KEEP,
        "backoffLimit": workload.attempts - 1,
        "submissionMode": "K8sJobMode",
        "submitterPodTemplate": _submitter(workload),
        "rayClusterSpec": _cluster(workload, ray, least=workload.members, most=workload.members),
    }
    if workload.deadline:
        spec["activeDeadlineSeconds"] = workload.deadline
    metadata = kubernetes.metadata(workload, limit=_NAME, queued=queued)
    return {"apiVersion": _API, "kind": "RayJob", "metadata": metadata, "spec": spec}


def entrypoint(command: Sequence[str]) -> str:
    """The command as text that becomes the same words again.

    KubeRay puts it into a shell script of a container, where Kubernetes fills in '$(NAME)', and `ray job submit` quotes the words that are
    left for another shell, but as Windows does. Only plain words outlive that; others are sent in Base64, and Python takes them out.
    """
    if all(_PLAIN.match(word) for word in command):
        return " ".join(command)
    packed = base64.b64encode(msgspec.json.encode(list(command))).decode()
    return shlex.join(("python", "-c", _RUN, packed))


def ray_service(
    workload: Workload, *, ray: str, import_path: str, least: int = 1, most: int = 1, queued: bool = True
) -> Object:
    """A RayService with one Serve application that keeps between `least` and `most` replicas, one on each worker.

    import_path: MODULE:APPLICATION in the image. Raises InvalidInput for bounds or an application that are none.
    """
    if not _APPLICATION.match(import_path):
        raise InvalidInput(f"{import_path!r} is no Serve application.", next_step="Write it as MODULE:APPLICATION.")
    if not 0 <= least <= most or most < 1:
        raise InvalidInput(f"{least} to {most} replicas are no range.", next_step="Give 0 ≤ least ≤ most, most ≥ 1.")
    each: dict[str, Any] = {"num_cpus": workload.cpu_milli / 1000}
    if workload.gpus:
        each["num_gpus"] = workload.gpus
    deployment = {
        "name": "replicas",
        "autoscaling_config": {"min_replicas": least, "max_replicas": most},
        "ray_actor_options": each,
    }
    application = {"name": "endpoint", "route_prefix": "/", "import_path": import_path, "deployments": [deployment]}
    spec = {
        "serveConfigV2": yaml.safe_dump({"applications": [application]}, sort_keys=True),
        "rayClusterConfig": _cluster(workload, ray, least=least, most=most) | {"enableInTreeAutoscaling": most > least},
    }
    metadata = kubernetes.metadata(workload, limit=_NAME, queued=queued)
    return {"apiVersion": _API, "kind": "RayService", "metadata": metadata, "spec": spec}


def _cluster(workload: Workload, ray: str, *, least: int, most: int) -> Object:
    head = _part(workload, _HEAD_CORES, _HEAD_MEMORY)
    head_pod = _pod(head, "ray-head") | {"containers": [_with_ports(_pod(head, "ray-head")["containers"][0])]}
    start = {"num-gpus": str(workload.gpus)} if workload.gpus else {}
    workers = {
        "groupName": "workers",
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": start,
        "template": kubernetes.labelled(workload, _pod(workload, "ray-worker")),
    }
    return {
        "rayVersion": ray,
        # The head runs no tasks: what it would need of the workers' resources is theirs.
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104 - the pod's own address
            "template": kubernetes.labelled(workload, head_pod),
        },
        "workerGroupSpecs": [workers],
    }


def _part(workload: Workload, milli: int, memory: int) -> Workload:
    """The same pod without GPUs, for what steers."""
    given = {name: getattr(workload, name) for name in Workload.__struct_fields__}
    return Workload(**(given | {"cpu_milli": milli, "memory": memory, "gpus": 0, "mig": "", "gpu": "", "port": 0}))


def _pod(workload: Workload, name: str) -> Object:
    """KubeRay starts Ray in the container, so it names no command of its own."""
    spec = kubernetes.pod_spec(workload, name=name)
    spec["securityContext"] = kubernetes.pod_security(_RAY_USER)
    container = {key: value for key, value in spec["containers"][0].items() if key != "command"}
    # Ray Serve's proxy is what answers on a port, and KubeRay probes it itself.
    container.pop("readinessProbe", None)
    container.pop("ports", None)
    return spec | {"containers": [container]}


def _with_ports(container: Object) -> Object:
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": 8000}
    return container | {"ports": [{"name": name, "containerPort": port} for name, port in ports.items()]}


def _submitter(workload: Workload) -> Object:
    pod = _pod(_part(workload, _SUBMITTER_CORES, _SUBMITTER_MEMORY), "ray-job-submitter")
    return kubernetes.labelled(workload, pod | {"restartPolicy": "Never"})
