"""Whose each pod of a cluster is, for telemetry that knows devices by pod (DCGM's `exported_pod`).

Only pods in namespaces that Macadam gives work to count: labels anywhere else are somebody's claim, and nothing is charged on claims.
"""

from collections.abc import Iterable
from typing import Any

from macadam.compute.jobs.kubernetes import PREFIX, namespace
from macadam.compute.telemetry.types import Pod

SELECTOR = f"{PREFIX}/project"  # label selector of pods that may be ours


def owners(pods: Iterable[dict[str, Any]], *, jobs_namespace: str) -> tuple[Pod, ...]:
    """The owner of each pod that Macadam made. pods: as the API server lists them. jobs_namespace: the executor's own.

    The names stand in annotations, as labels cannot hold every one of them.
    """
    found = []
    for pod in pods:
        metadata = pod["metadata"]
        notes = metadata.get("annotations", {})
        project, owner = notes.get(f"{PREFIX}/project", ""), notes.get(f"{PREFIX}/owner", "")
        if project and owner and metadata["namespace"] in (jobs_namespace, namespace(project)):
            found.append(Pod(namespace=metadata["namespace"], name=metadata["name"], project=project, owner=owner))
    return tuple(found)


def gpus(pod: dict[str, Any]) -> dict[str, int]:
    """What a pod holds of GPUs, by Kubernetes' resource: 'nvidia.com/gpu' or a MIG profile's."""
    held: dict[str, int] = {}
    for container in pod["spec"]["containers"]:
        for resource, count in container.get("resources", {}).get("limits", {}).items():
            if resource == "nvidia.com/gpu" or resource.startswith("nvidia.com/mig-"):
                held[resource] = held.get(resource, 0) + int(count)
    return held
