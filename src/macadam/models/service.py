"""Operations on runs and on the registry: train, register, list, show.

The heavy part of training is in `launch`; thresholds, evaluations, gates, approvals and aliases are in `gate_service`.
"""

from dataclasses import dataclass
from functools import partial

from macadam.errors import Conflict, InvalidInput, UserCodeFailed
from macadam.models import artifact, launch, registry, supply
from macadam.models.launch import Finished
from macadam.models.registry import version
from macadam.models.signature import Signature
from macadam.models.supply import Signed
from macadam.models.types import (
    ListModels,
    ListRuns,
    Model,
    ModelPage,
    ModelVersion,
    RegisterVersion,
    Run,
    ShowModel,
    ShowRun,
    ShowVersion,
    Train,
)
from macadam.operations import Context, Transaction, operation
from macadam.values import Ref

__all__ = ["version"]

_PROJECT = "/api/v1/projects/{project}"
_MODEL = _PROJECT + "/models/{model}"


@operation(
    Train,
    permission="runs:train",
    http=f"POST {_MODEL}/runs",
    cli="runs train",
    resource="model:{model}",
    prepare=launch.train,
)
def train(tx: Transaction, request: Train, finished: Finished) -> Run:
    """The run becomes visible here, finished or failed, as one transaction. A failed one then raises UserCodeFailed."""
    run = finished.run
    if run.environment is not None:
        _record_environment(tx, run)
    registry.keep_run(tx.sql, run)
    used = [*sorted(set(run.training_sets.values())), *run.snapshots]
    if run.environment is not None:
        used.append(run.environment.ref)
    tx.record(
        run.ref,
        uses=used,
        model=request.model,
        state=run.state,
        error=run.error or None,
        code=run.code,
        environment=run.environment.digest if run.environment else None,
        params=run.params,
        seed=run.seed,
        metrics=run.metrics,
        seconds=run.seconds,
        cpu_seconds=run.cpu_seconds,
        peak_bytes=run.peak_bytes,
        cost_micros=run.cost.micros,
        currency=run.cost.currency,
        artifact=run.artifact or None,
        signature=run.signature or None,
    )
    if run.state == "failed":
        tx.after_commit(partial(_raise_failed, run))
    return run


def _record_environment(tx: Transaction, run: Run) -> None:
    lock = run.environment
    if lock is not None and registry.keep_environment(tx.sql, run.project, lock.digest, tx.now):
        tx.record(lock.ref, digest=lock.digest, python=lock.python, platform=lock.platform, packages=lock.packages)


def _raise_failed(run: Run) -> None:
    raise UserCodeFailed(
        f"{run.entry} failed: {run.error}",
        next_step=f"Correct the code and train again; this attempt is kept as {run.ref}.",
        details={"run": run.ref, "traceback": run.traceback},
    )


@operation(ListRuns, permission="runs:read", http=f"GET {_PROJECT}/runs", cli="runs list")
def list_runs(tx: Transaction, request: ListRuns) -> tuple[Run, ...]:
    return registry.runs(tx.sql, request.project, request.model, request.limit)


@operation(ShowRun, permission="runs:read", http=f"GET {_PROJECT}/runs/{{run}}", cli="runs show")
def show_run(tx: Transaction, request: ShowRun) -> Run:
    return registry.run(tx.sql, request.project, request.run)


def _load(context: Context, run: Run) -> tuple[bytes, Signature]:
    granted = context.authorise("models:register", f"model:{run.model}")
    return artifact.load(granted, context.ports.objects, run.artifact, run.signature, model=run.model)


@dataclass(frozen=True, kw_only=True)
class _Checked:
    run: Run
    signed: Signed


def _check_and_sign(context: Context, request: RegisterVersion) -> _Checked:
    """The stored bytes are read back and checked, whatever the run's process said about them, and signed."""
    with context.read() as sql:
        run = registry.run(sql, request.project, request.run)
    if run.state != "finished":
        raise InvalidInput(
            f"{run.ref} failed and has no model: {run.error}", next_step="Correct the code and train again."
        )
    if run.model != request.model:
        raise InvalidInput(
            f"{run.ref} trained the model {run.model!r}, not {request.model!r}.",
            next_step=f"Register it as a version of {run.model}.",
        )
    model, signature = _load(context, run)
    artifact.check(model, signature)
    return _Checked(run=run, signed=supply.sign(context, run))


@operation(
    RegisterVersion,
    permission="models:register",
    http=f"POST {_MODEL}/versions",
    cli="models register",
    resource="model:{model}",
    prepare=_check_and_sign,
)
def register_version(tx: Transaction, request: RegisterVersion, checked: _Checked) -> ModelVersion:
    run, signed = checked.run, checked.signed
    supply.announce(tx, signed.key)
    registry.ensure_model(tx.sql, request.project, request.model, tx.actor.id, tx.now)
    existing = registry.versions(tx.sql, request.project, request.model)
    for old in existing:
        if old.run == run.ref:
            raise Conflict(f"{run.ref} is registered already, as {old.ref}.", next_step="Use that version.")
    number = 1 + max((v.number for v in existing), default=0)
    new = ModelVersion(
        ref=str(Ref(kind="model", name=request.model, version=str(number))),
        project=request.project,
        model=request.model,
        number=number,
        run=run.ref,
        artifact=run.artifact,
        artifact_bytes=run.artifact_bytes,
        signature=run.signature,
        author=tx.actor.id,
        trainer=run.author,
        at=tx.now,
        model_signature=signed.signature,
        provenance=signed.provenance,
    )
    registry.keep_version(tx.sql, new)
    tx.record(
        new.ref,
        uses=[run.ref, f"signing_key:{signed.key.id}"],
        artifact=new.artifact,
        signature=new.signature,
        format=new.format,
        model_signature=new.model_signature,
        provenance=new.provenance,
        signing_key=signed.key.id,
    )
    return new


@operation(ListModels, permission="models:read", http=f"GET {_PROJECT}/models", cli="models list")
def list_models(tx: Transaction, request: ListModels) -> tuple[Model, ...]:
    return registry.models(tx.sql, request.project)


@operation(ShowModel, permission="models:read", http=f"GET {_MODEL}", cli="models show", resource="model:{model}")
def show_model(tx: Transaction, request: ShowModel) -> ModelPage:
    found = registry.model(tx.sql, request.project, request.model)
    return ModelPage(model=found, versions=registry.versions(tx.sql, request.project, request.model))


@operation(
    ShowVersion,
    permission="models:read",
    http=f"GET {_MODEL}/versions/{{version}}",
    cli="models version",
    resource="model:{model}",
)
def show_version(tx: Transaction, request: ShowVersion) -> ModelVersion:
    return registry.version(tx.sql, request.project, request.model, request.version)
