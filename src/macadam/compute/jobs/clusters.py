"""Opens what the settings name: the executor that carries jobs out, and the clusters that are asked whose their pods are.

What a cluster's objects look like is known in this room, how to speak to it in the adapters; here the one is handed to the other.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from macadam.compute.catalogue import gpus
from macadam.compute.jobs import machine, pods
from macadam.compute.jobs.attempt_objects import AttemptObjects, Site
from macadam.compute.telemetry.types import Pod
from macadam.ports import Executor, Objects, load
from macadam.settings import Clusters, Settings

_GIB = 1 << 30


class _Api(Protocol):
    def items(self, path: str, *, labels: str = "") -> Iterable[dict[str, Any]]: ...
    def close(self) -> None: ...


class _Ray(Protocol):
    def views(self, at: datetime) -> Sequence[object]: ...
    def close(self) -> None: ...


def open_executor(settings: Settings, objects: Objects) -> Executor:
    """The executor of MACADAM_EXECUTOR; a cluster is first spoken to when it is needed. Raises SettingInvalid, MissingExtra."""
    name, directory = settings.jobs.executor, settings.home / "jobs"
    if name == "kubernetes":
        render = AttemptObjects(site(settings.clusters))
        where = (settings.clusters.kubernetes_config, settings.clusters.kubernetes_context)
        return cast("Executor", load(name)(*where, render, objects, directory, recognise=gpus.recognise))
    if name == "ray":
        return cast("Executor", _ray(settings.clusters, objects))
    virtual = machine.virtual(settings.jobs.machines)
    said = {"bought": machine.bought(settings.machine), "metadata": settings.machine.metadata, "virtual": virtual}
    declared = [device for node in virtual for device in node.devices]
    devices = (lambda: declared) if virtual else machine.devices(settings.jobs)
    return cast("Executor", load(name)(directory, objects, devices, **said))


def named(settings: Settings) -> str:
    """Which executor the settings choose, and whose attempts it knows: the same name, the same attempts. No credentials."""
    name, clusters = settings.jobs.executor, settings.clusters
    if name == "kubernetes":
        return f"kubernetes {clusters.kubernetes_context}/{clusters.kubernetes_namespace}"
    if name == "ray":
        return f"ray {urlsplit(clusters.ray_address).netloc.rpartition('@')[2]}/{clusters.ray_prefix}"
    return name


def site(clusters: Clusters) -> Site:
    """How attempts are put on the Kubernetes cluster."""
    return Site(
        namespace=clusters.kubernetes_namespace,
        image=clusters.kubernetes_image,
        storage_class=clusters.kubernetes_storage,
        checkpoint=clusters.kubernetes_checkpoint * _GIB,
    )


def pod_owners(clusters: Clusters) -> tuple[Pod, ...]:
    """Whose the pods of the Kubernetes cluster are now. Raises SettingInvalid, Unavailable."""
    opened = cast("_Api", load("kubernetes_api")(clusters.kubernetes_config, clusters.kubernetes_context))
    try:
        listed = opened.items("/api/v1/pods", labels=pods.SELECTOR)
        return pods.owners(listed, jobs_namespace=clusters.kubernetes_namespace)
    finally:
        opened.close()


def ray_views(clusters: Clusters, at: datetime) -> Sequence[object]:
    """What Ray believes is used, by node and job. Raises Unavailable."""
    opened = cast("_Ray", _ray(clusters, None))
    try:
        return opened.views(at)
    finally:
        opened.close()


def _ray(clusters: Clusters, objects: Objects | None) -> object:
    adapter: Callable[..., object] = load("ray")
    return adapter(
        clusters.ray_address,
        objects,
        token=clusters.ray_token,
        checkpoints=clusters.ray_checkpoints,
        prefix=clusters.ray_prefix,
        recognise=gpus.recognise,
    )
