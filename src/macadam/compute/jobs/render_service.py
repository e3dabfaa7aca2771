"""Jobs and quotas as files for systems outside this machine: read what is in SQL, render, check, answer. Nothing changes."""

import shlex
from collections.abc import Iterable

from macadam.compute.billing import store
from macadam.compute.jobs import documents, kuberay, kubernetes, kueue, loop, picture, registry, skypilot
from macadam.compute.jobs.render_types import Files, RenderJob, RenderQuotas
from macadam.compute.jobs.types import Job
from macadam.compute.jobs.workload import Workload, whole_seconds
from macadam.errors import InvalidInput
from macadam.operations import Transaction, operation

_JOB = "/api/v1/projects/{project}/jobs/{job}/render/{to}"
_PLATFORM = "platform:home"


@operation(RenderJob, permission="jobs:read", http=f"POST {_JOB}", cli="jobs objects", reads=True)
def render_job(tx: Transaction, request: RenderJob) -> Files:
    """Raises NotFound, and InvalidInput for what that system cannot run."""
    job = registry.find_job(tx.sql, request.project, request.job)
    workload = _workload(job, request)
    notes = _notes(job)
    if request.to == "skypilot":
        found = skypilot.candidates(
            workload, tx.now.date(), models=job.spec.resources.models, own=store.own_prices(tx.sql)
        )
        text = documents.plain([skypilot.task(workload, found, setup=_setup(job))])
        stale = [one.offer.price.source for one in found if one.offer.stale]
        if stale:
            notes.append(f"{len(stale)} of {len(found)} prices are old: check them before you rely on the order.")
        return Files(files={"task.yaml": text}, notes=tuple(notes), candidates=tuple(_plain(found)))
    queued = request.to == "kueue"
    made = (
        kuberay.ray_job(workload, ray=request.ray, queued=queued)
        if request.to == "ray"
        else kubernetes.job(workload, queued=queued)
    )
    operator = ""
    if request.to == "ray":
        operator = request.operator
        notes.append(f"KubeRay's operator is let in from the namespace {operator!r}: say --operator if it is another.")
    objects = [*kubernetes.closed_namespace(request.project, ray=operator), made]
    if job.spec.requirements.strip():
        notes.append("Its requirements are not written: put the packages into the image.")
    return Files(files={"job.yaml": documents.written(objects)}, notes=tuple(notes))


@operation(
    RenderQuotas,
    permission="quotas:read",
    http="POST /api/v1/quotas/render",
    cli="quotas objects",
    resource=_PLATFORM,
    reads=True,
)
def render_quotas(tx: Transaction, request: RenderQuotas) -> Files:
    """Raises InvalidInput for quotas of more GPUs than the flavors have."""
    quotas = [picture.quota(one) for one in registry.all_quotas(tx.sql)]
    priorities = {0, *(job.priority for job in registry.waiting(tx.sql))}
    made = kueue.render(quotas, request.flavors, loop.policy(tx.ports.settings.jobs), priorities)
    spaces = [found for quota in quotas for found in kubernetes.closed_namespace(quota.tenant)]
    files = {"namespaces.yaml": documents.written(spaces), "kueue.yaml": documents.written(made.objects)}
    return Files(files=files, notes=made.notes)


def _workload(job: Job, request: RenderJob) -> Workload:
    """One member of a gang is its share of what the job asks for in all."""
    asked = job.spec.resources
    members = asked.nodes or 1
    image = request.image or job.spec.image
    if not image:
        raise InvalidInput(f"{job.ref} names no image.", next_step="Give --image, with Python and what the job needs.")
    if asked.milli:
        raise InvalidInput(
            f"{job.ref} asks for {asked.milli} thousandths of a GPU.",
            next_step="Clusters give whole GPUs or MIG slices: submit it again with gpus.",
        )
    if job.spec.checkpoint and not request.checkpoint:
        raise InvalidInput(
            f"{job.ref} keeps checkpoints.",
            next_step="Give --checkpoint: a volume claim, or a bucket's URL for skypilot.",
        )
    return Workload(
        name=job.id,
        project=job.project,
        owner=job.ref,
        image=image,
        command=job.spec.command,
        environment=job.spec.environment,
        secrets=request.secrets,
        cpu_milli=max(1, asked.cpu_milli // members),
        memory=asked.memory // members,
        scratch=asked.disk // members or 1 << 30,
        gpus=asked.gpus // members,
        gpu=asked.models[0] if len(asked.models) == 1 else "",
        members=members,
        priority=job.priority,
        deadline=whole_seconds(job.spec.time_limit),
        spot=job.spec.preemptible if request.spot is None else request.spot,
        attempts=job.spec.max_restarts + 1,
        grace=whole_seconds(job.spec.grace),
        checkpoint=request.checkpoint if job.spec.checkpoint else "",
    )


def _notes(job: Job) -> list[str]:
    notes = []
    if job.spec.bundle:
        notes.append(f"Its working files ({job.spec.bundle}) are not written: put them into the image.")
    if job.spec.deadline:
        notes.append("Its deadline is not written: no other queue plans for one.")
    if len(job.spec.resources.models) > 1:
        notes.append("Several GPU models will do; Kubernetes is told none, SkyPilot all of them.")
    return notes


def _setup(job: Job) -> str:
    """Its requirements, written where SkyPilot sets a machine up."""
    text = job.spec.requirements.strip()
    return f"printf '%s\\n' {shlex.quote(text)} > requirements.txt\npip install -r requirements.txt" if text else ""


def _plain(found: "Iterable[skypilot.Candidate]") -> Iterable[dict[str, str | bool]]:
    for line in skypilot.describe(list(found)):
        yield {key: value if isinstance(value, bool) else str(value) for key, value in line.items()}
