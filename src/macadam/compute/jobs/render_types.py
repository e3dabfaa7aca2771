"""What rendering is asked and what it answers."""

from typing import Annotated, Literal

import msgspec

from macadam.compute.jobs.kueue import Flavor
from macadam.compute.jobs.types import JobId, Value
from macadam.operations import Request
from macadam.values import Name

Target = Literal["kubernetes", "kueue", "ray", "skypilot"]
_Text = Annotated[str, msgspec.Meta(max_length=500)]


class Files(Value, frozen=True, kw_only=True):
    """Text files by name, and what they do not hold, in words. candidates: of a task for many clouds, with prices and sources."""

    files: dict[str, str]
    notes: tuple[str, ...] = ()
    candidates: tuple[dict[str, str | bool], ...] = ()


class RenderJob(Request[Files], frozen=True, kw_only=True):
    """Write a job as files for another system that runs it: Kubernetes, Kueue's queue, Ray on Kubernetes, or SkyPilot's clouds.

    to: kubernetes starts at once, kueue waits for its quota. image: instead of the job's own. ray: the version in the image.
    operator: the namespace of KubeRay's operator, which has to reach the job's head.
    secrets: variable → name of a secret of that system. checkpoint: a volume claim, or a bucket's URL for skypilot.
    spot: may run on machines that can be taken away; by itself what is preemptible may.
    """

    project: Name
    job: JobId
    to: Target
    image: _Text = ""
    ray: Annotated[str, msgspec.Meta(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+\Z")] = "2.52.0"
    operator: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")] = "default"
    secrets: dict[str, _Text] = msgspec.field(default_factory=dict)
    checkpoint: _Text = ""
    spot: bool | None = None


class RenderQuotas(Request[Files], frozen=True, kw_only=True):
    """Write all quotas as Kueue's objects, so that a cluster's own queue keeps the same limits.

    flavors: a JSON list of the cluster's kinds of GPU nodes: name, gpus, cpu_milli, memory (bytes), labels, mig, slices, taints.
    """

    flavors: Annotated[tuple[Flavor, ...], msgspec.Meta(min_length=1, max_length=64)]
