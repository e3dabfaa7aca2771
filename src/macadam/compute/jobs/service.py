"""Jobs as operations: submit, estimate, list, show, explain, logs, cancel, priority.

They change what is wanted; `loop` makes it so. Which attempt runs where is in SQL alone, so that any process can ask.
"""

from datetime import UTC, datetime, timedelta

import msgspec

from macadam.compute.catalogue import gpus
from macadam.compute.jobs import bundle, explaining, past, registry
from macadam.compute.jobs.bookkeeping import Books
from macadam.compute.jobs.holdings import holdings
from macadam.compute.jobs.prices import Desk
from macadam.compute.jobs.types import (
    ACTIVE,
    CancelJob,
    EstimateJob,
    ExplainJob,
    Explanation,
    Job,
    JobCost,
    JobPage,
    ListJobs,
    LogText,
    ReadLog,
    Resources,
    SetPriority,
    ShowJob,
    ShowJobCosts,
    Spec,
    SubmitJob,
)
from macadam.compute.telemetry import owners
from macadam.errors import Conflict, InvalidInput, NotFound
from macadam.operations import Context, Transaction, operation
from macadam.values import digest_of, require_aware, uuid7

_JOBS = "/api/v1/projects/{project}/jobs"
_JOB = _JOBS + "/{job}"
_ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)

owners.register("jobs", holdings)


def _bring(context: Context, request: SubmitJob) -> str:
    """The digest of the working files, which are stored before the job is."""
    context.progress("storing working files", 0, 0)
    settings = context.ports.settings
    return bundle.bring(
        context.ports.objects,
        request.files,
        request.source,
        home=settings.home,
        local=settings.jobs.executor == "local",
    )


@operation(SubmitJob, permission="jobs:submit", http=f"POST {_JOBS}", cli="jobs submit", prepare=_bring)
def submit_job(tx: Transaction, request: SubmitJob, files: str) -> Job:
    """Raises InvalidInput for what could never run, NotFound for a bundle that is not of this project's jobs."""
    if request.source == files != "" and not registry.has_bundle(tx.sql, request.project, files):
        raise bundle.no_bundle(files)  # a digest is no secret, and the object behind it may be anybody's
    job = _job(tx, request, _spec(request, files))
    registry.keep_job(tx.sql, job)
    asked = job.spec.resources
    tx.record(
        job.ref,
        name=job.spec.name or None,
        spec=digest_of(msgspec.json.encode(job.spec, order="sorted")),
        bundle=files or None,
        gpus=asked.gpus,
        milli=asked.milli,
        cpu_milli=asked.cpu_milli,
        memory=asked.memory,
        priority=job.priority,
        preemptible=job.spec.preemptible,
        max_restarts=job.spec.max_restarts,
    )
    return job


def _spec(request: SubmitJob, files: str) -> Spec:
    if request.command[0] == "" or any("\0" in word for word in request.command):
        raise InvalidInput("The command's first word is empty, or a word holds NUL.", next_step="Name a program.")
    if request.image and request.requirements:
        raise InvalidInput("Both an image and requirements were given.", next_step="Give one environment.")
    if any("\0" in value for value in request.environment.values()):
        raise InvalidInput("A variable's value holds NUL.", next_step="Remove it.")
    taken = sorted(name for name in request.environment if name.startswith("MACADAM_"))
    if taken:
        raise InvalidInput(f"{taken[0]} is the platform's to set.", next_step="Choose another name.")
    shared = {name: getattr(request, name) for name in Spec.__struct_fields__ if name not in ("bundle", "deadline")}
    deadline = require_aware(request.deadline, "The deadline") if request.deadline else None
    return Spec(bundle=files, deadline=deadline, **shared | {"resources": _known(request.resources)})


def _known(asked: Resources) -> Resources:
    """With the catalogue's names of its GPUs. Raises NotFound for one that it does not know: a job would wait for it for ever."""
    return msgspec.structs.replace(asked, models=tuple(gpus.find(model).name for model in asked.models))


def _job(tx: Transaction, request: SubmitJob | EstimateJob, spec: Spec) -> Job:
    identity = uuid7()
    return Job(
        ref=f"job:{identity}",
        id=identity,
        project=request.project,
        state="waiting",
        spec=spec,
        priority=request.priority,
        author=tx.actor.id,
        submitted=tx.now,
    )


@operation(
    EstimateJob,
    permission="jobs:read",
    http=f"POST {_JOBS}/estimate",
    cli="jobs estimate",
    reads=True,
)
def estimate_job(tx: Transaction, request: EstimateJob) -> Explanation:
    deadline = require_aware(request.deadline, "The deadline") if request.deadline else None
    spec = Spec(
        name=request.name,
        command=request.command,
        resources=_known(request.resources),
        group=request.group,
        deadline=deadline,
        time_limit=request.time_limit,
        preemptible=request.preemptible,
        checkpoint=request.checkpoint,
        checkpoint_every=request.checkpoint_every,
        max_restarts=request.max_restarts,
    )
    return explaining.explain(tx.sql, tx.ports, _job(tx, request, spec), tx.now, seconds=request.seconds)


@operation(ListJobs, permission="jobs:read", http=f"GET {_JOBS}", cli="jobs list")
def list_jobs(tx: Transaction, request: ListJobs) -> tuple[Job, ...]:
    return registry.list_jobs(tx.sql, request.project, request.state, request.before, request.limit)


@operation(ShowJob, permission="jobs:read", http=f"GET {_JOB}", cli="jobs show")
def show_job(tx: Transaction, request: ShowJob) -> JobPage:
    job = registry.find_job(tx.sql, request.project, request.job)
    return JobPage(job=job, attempts=registry.attempts_of(tx.sql, job.id))


@operation(ExplainJob, permission="jobs:read", http=f"GET {_JOB}/explanation", cli="jobs explain")
def explain_job(tx: Transaction, request: ExplainJob) -> Explanation:
    job = registry.find_job(tx.sql, request.project, request.job)
    return explaining.explain(tx.sql, tx.ports, job, tx.now)


@operation(ShowJobCosts, permission="jobs:read", http="GET /api/v1/projects/{project}/job-costs", cli="jobs costs")
def show_job_costs(tx: Transaction, request: ShowJobCosts) -> tuple[JobCost, ...]:
    """By what was written down when each attempt started."""
    start = require_aware(request.start, "The start") if request.start else _ALWAYS
    end = require_aware(request.end, "The end") if request.end else tx.now + timedelta(microseconds=1)
    return past.costs(registry.ended_between(tx.sql, request.project, start, end))


@operation(ReadLog, permission="jobs:logs", http=f"GET {_JOB}/log", cli="jobs log")
def read_log(tx: Transaction, request: ReadLog) -> LogText:
    """Raises NotFound if it has not started, or its log was removed."""
    job = registry.find_job(tx.sql, request.project, request.job)
    number = request.attempt or job.attempt
    if not 0 < number <= job.attempt:
        raise NotFound(
            f"{job.ref} has no attempt {number or 1}; it has had {job.attempt}.",
            next_step=f"macadam jobs explain {job.id} --project {job.project}",
        )
    page = tx.ports.executor.log(f"{job.id}.{number}", offset=request.offset, limit=request.limit, rank=request.rank)
    return LogText(
        job=job.ref, attempt=number, rank=request.rank, text=page.text, next=page.next, ended=page.ended, cut=page.cut
    )


@operation(CancelJob, permission="jobs:cancel", http=f"POST {_JOB}/cancel", cli="jobs cancel")
def cancel_job(tx: Transaction, request: CancelJob) -> Job:
    """A job that is cancelled already, or is being, is left as it is. Raises Conflict for one that has ended otherwise."""
    job = registry.find_job(tx.sql, request.project, request.job)
    before = job.state
    if job.state == "cancelled" or job.wish == "cancel":
        tx.record(job.ref, state=job.state, before=before)
        return job
    if job.ended is not None:
        raise Conflict(f"{job.ref} has {job.state} already.", next_step="Nothing is left to cancel.")
    words = f"cancelled by {tx.actor.id}"
    if job.state in ACTIVE:
        job = msgspec.structs.replace(job, grace=request.grace)
        _books(tx).stop(job, registry.find_attempt(tx.sql, job.attempt_id), "cancel", words=words)
        job = registry.find_job(tx.sql, request.project, request.job)
    else:
        job = msgspec.structs.replace(
            job, state="cancelled", ended=tx.now, ending="cancelled", message=words, ready=None
        )
        registry.save_job(tx.sql, job)
    tx.record(job.ref, state=job.state, before=before)
    return job


@operation(SetPriority, permission="jobs:prioritise", http=f"POST {_JOB}/priority", cli="jobs priority")
def set_priority(tx: Transaction, request: SetPriority) -> Job:
    """Raises Conflict for a job that has ended."""
    job = registry.find_job(tx.sql, request.project, request.job)
    if job.ended is not None:
        how = "is" if job.state == "cancelled" else "has"
        raise Conflict(f"{job.ref} {how} {job.state} already.", next_step="Submit it anew.")
    changed = msgspec.structs.replace(job, priority=request.priority)
    registry.save_job(tx.sql, changed)
    tx.record(job.ref, priority=changed.priority, before=job.priority)
    return changed


def _books(tx: Transaction) -> Books:
    settings = tx.ports.settings
    desk = Desk(tx.sql, settings.prices, tx.now)
    return Books(sql=tx.sql, now=tx.now, desk=desk, restart_delay=settings.jobs.restart_delay)
