"""Carries out one step of a plan: puts in what earlier steps gave, and calls the operation unless its work is there."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from macadam.access.policy_types import ActivatePolicies, ProposePolicies, ShowPolicies
from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.data.types import Ingest, RegisterContract, RegisterSource
from macadam.delivery import observe
from macadam.delivery.plan import find_evaluation, find_run, find_version
from macadam.delivery.project import read
from macadam.delivery.types import From, StartOf, Step
from macadam.errors import UserCodeFailed
from macadam.features.types import BuildTrainingSet, MaterialiseOnline, RegisterViews
from macadam.journal.types import DeclareJournal
from macadam.models import capture
from macadam.models.types import (
    CheckGate,
    DeclareThresholds,
    Evaluate,
    RegisterVersion,
    Run,
    SetAlias,
    Train,
)
from macadam.operations import Progress, Request
from macadam.serving.types import Deploy
from macadam.values import instant

REQUESTS: dict[str, type[Request[Any]]] = {
    kind.__name__: kind
    for kind in (
        CreateProject,
        DeclareJournal,
        ProposePolicies,
        ShowPolicies,
        ActivatePolicies,
        RegisterContract,
        RegisterSource,
        Ingest,
        RegisterViews,
        BuildTrainingSet,
        Train,
        RegisterVersion,
        DeclareThresholds,
        Evaluate,
        CheckGate,
        SetAlias,
        MaterialiseOnline,
        Deploy,
    )
}


def resolved(step: Step, outcomes: Mapping[str, Mapping[str, object]], began: datetime) -> dict[str, object]:
    """The step's arguments with every `From` and `StartOf` replaced by what it stands for."""

    def value(argument: object) -> object:
        if isinstance(argument, Mapping):
            mark = argument.get("$")
            if mark == "from":
                wanted = msgspec.convert(argument, From)
                found = outcomes[wanted.step][wanted.field]
                return str(found) if wanted.text else found
            if mark == "start":
                return instant(began)
            return {key: value(inner) for key, inner in argument.items()}
        if isinstance(argument, (From, StartOf)):
            return value(msgspec.to_builtins(argument))
        return argument

    return {name: value(argument) for name, argument in step.arguments.items()}


def carry_out(
    platform: Platform, request: str, arguments: dict[str, object], key: str, progress: Progress
) -> tuple[dict[str, object], bool]:
    """Calls the operation; returns its response as plain values, and whether it was there already.

    Raises what the operation raises, and UserCodeFailed for a training that has failed before under this key.
    """
    wanted = msgspec.convert(arguments, REQUESTS[request])
    existing = _existing(platform, wanted)
    answer = existing or platform.call(wanted, idempotency_key=key, progress=progress)
    if isinstance(answer, Run) and answer.state == "failed":
        raise UserCodeFailed(
            f"Training {answer.model} failed: {answer.error}",
            next_step=f"Correct the code and apply again; see `macadam runs show {answer.ref}`.",
            details={"run": answer.ref, "traceback": answer.traceback},
        )
    plain: dict[str, object] = msgspec.to_builtins(answer)
    return plain, existing is not None


def _existing(platform: Platform, wanted: Request[Any]) -> msgspec.Struct | None:
    """What doing the step would only repeat: known once the steps before it are done, not when the plan was made."""
    if isinstance(wanted, Train):
        project = read(Path(wanted.source))
        section = msgspec.structs.replace(
            project.document.models[wanted.model], train=wanted.entry, params=wanted.params, seed=wanted.seed
        )
        state = observe.model_state(platform, wanted.project, wanted.model, observe.declarations(project))
        code, _ = capture.archive(project.directory)
        return find_run(state, section, wanted.training_sets, observe.code_digest(code, observe.declarations(project)))
    if isinstance(wanted, RegisterVersion):
        state = observe.model_state(platform, wanted.project, wanted.model, ())
        return find_version(state, wanted.run)
    if isinstance(wanted, Evaluate) and wanted.version.isdecimal():
        state = observe.model_state(platform, wanted.project, wanted.model, ())
        return state.thresholds and find_evaluation(
            state, int(wanted.version), wanted.training_set, state.thresholds.ref
        )
    return None
