"""Operations on quality and its gate: thresholds, evaluations, gate decisions, approvals, aliases.

A protected alias moves only in a transaction that has asked the gate. Refusals are evidence: `CheckGate` records
its verdict, and the dispatcher records a denial when `SetAlias` or `Approve` raises GateRefused.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from macadam.errors import Conflict, GateRefused, InvalidInput, NotFound
from macadam.models import evaluation, gates, registry, rows, supply, training_sets
from macadam.models.evaluation import Measured, Resampling
from macadam.models.gates import Facts, Rules
from macadam.models.rows import Rows
from macadam.models.training_sets import TrainingSet
from macadam.models.types import (
    Alias,
    Approval,
    Approve,
    CheckGate,
    Comparison,
    DeclareThresholds,
    Evaluate,
    Evaluation,
    GateResult,
    ListApprovals,
    ListEvaluations,
    ModelVersion,
    Run,
    SetAlias,
    ShowEvaluation,
    ShowThresholds,
    Thresholds,
)
from macadam.operations import Context, Transaction, operation
from macadam.values import digest_of, uuid7

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CHAMPION = "champion"
PROTECTED = frozenset({CHAMPION})
"""Aliases that move only through the gate: what serves people."""

MOST_REASONS = 50
"""Said in a leaf or an error; the gate's own record has all of them."""

_MODEL = "/api/v1/projects/{project}/models/{model}"
_VERSION = _MODEL + "/versions/{version}"
_DECLARE_FIRST = "Declare gates.yaml: macadam gates declare"


# --- thresholds


@operation(
    DeclareThresholds,
    permission="thresholds:declare",
    http=f"POST {_MODEL}/thresholds",
    cli="gates declare",
    resource="model:{model}",
)
def declare_thresholds(tx: Transaction, request: DeclareThresholds) -> Thresholds:
    """The same text again changes nothing and is answered with the declaration in force."""
    rules = gates.parse(request.text)
    digest = digest_of(request.text.encode())
    current = registry.thresholds(tx.sql, request.project, request.model)
    if current is not None and current.digest == digest:
        return current
    declared = Thresholds(
        ref=f"thresholds:{request.model}@{digest[7:19]}",
        project=request.project,
        model=request.model,
        digest=digest,
        text=request.text,
        author=tx.actor.id,
        at=tx.now,
    )
    registry.keep_thresholds(tx.sql, declared, uuid7())
    limits = {bound.metric: str(bound) for bound in rules.metrics}
    tx.record(declared.ref, digest=digest, metrics=limits, approvals=rules.approvals, text=request.text)
    return declared


@operation(
    ShowThresholds,
    permission="gates:read",
    http=f"GET {_MODEL}/thresholds",
    cli="gates thresholds",
    resource="model:{model}",
)
def show_thresholds(tx: Transaction, request: ShowThresholds) -> Thresholds:
    found = registry.thresholds(tx.sql, request.project, request.model)
    if found is None:
        raise NotFound(f"No thresholds are declared for {request.model!r}.", next_step=_DECLARE_FIRST)
    return found


def _in_force(sql: sa.Connection, project: str, model: str) -> Thresholds:
    found = registry.thresholds(sql, project, model)
    if found is None:
        raise Conflict(f"No thresholds are declared for {model!r}.", next_step=_DECLARE_FIRST)
    return found


# --- evaluations


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is evaluated, on what, under which rules, and what it may have seen before."""

    version: ModelVersion
    run: Run
    thresholds: Thresholds
    rules: Rules
    measured_on: TrainingSet
    seen: tuple[TrainingSet, ...]
    champion: ModelVersion | None


@dataclass(frozen=True, kw_only=True)
class _Finding:
    """The result of the heavy part."""

    subject: _Subject
    measured: Measured
    overlap: int
    comparison: Comparison | None
    seconds: float


def _measure(context: Context, request: Evaluate) -> _Finding:
    """Loads the model and the rows, and measures. Raises Conflict if no thresholds are declared yet."""
    begin = time.perf_counter()
    with context.read() as sql:
        subject = _subject(sql, request)
    how = Resampling(resamples=request.resamples, seed=request.seed, threshold=subject.rules.threshold)
    with tempfile.TemporaryDirectory(prefix="evaluate-", dir=context.ports.settings.home / "work") as folder:
        place = Path(folder)
        found = _fetch(context, subject.measured_on, place)
        model, signature = supply.load(context, subject.version)
        context.progress(f"measuring {subject.version.ref} on {found.table.num_rows} rows", 0, 0)
        probabilities = evaluation.score(model, signature, found)
        measured = evaluation.measure(found, probabilities, how, slices=subject.rules.slice_rows)
        comparison = _compare(context, subject, found, probabilities, how)
        overlap = sum(rows.overlap(found, _fetch(context, seen, place)) for seen in subject.seen)
    return _Finding(
        subject=subject,
        measured=measured,
        overlap=overlap,
        comparison=comparison,
        seconds=round(time.perf_counter() - begin, 3),
    )


def _compare(
    context: Context, subject: _Subject, found: Rows, new: "npt.NDArray[np.float64]", how: Resampling
) -> Comparison | None:
    champion = subject.champion
    if champion is None:
        return None
    context.progress(f"comparing with {champion.ref}", 0, 0)
    model, signature = supply.load(context, champion)
    try:
        old = evaluation.score(model, signature, found)
    except InvalidInput as error:  # the champion takes features that these rows lack: the gate will say so
        return Comparison(champion=champion.ref, metrics={}, note=error.what)
    return evaluation.compare(found, new, champion.ref, old, how)


def _fetch(context: Context, wanted: TrainingSet, place: Path) -> Rows:
    path = place / f"{wanted.digest[7:]}.parquet"
    if not path.exists():
        training_sets.fetch(context, wanted, path)
    return rows.read(path)


def _subject(sql: sa.Connection, request: Evaluate) -> _Subject:
    version = registry.version(sql, request.project, request.model, request.version)
    thresholds = _in_force(sql, request.project, request.model)
    rules = gates.parse(thresholds.text)
    run = registry.run(sql, request.project, version.run)
    number = registry.alias_number(sql, request.project, request.model, CHAMPION) if rules.champion else 0
    rival = number and number != version.number
    return _Subject(
        version=version,
        run=run,
        thresholds=thresholds,
        rules=rules,
        measured_on=training_sets.find(sql, request.project, request.training_set),
        seen=tuple(training_sets.find(sql, request.project, ref) for ref in sorted(set(run.training_sets.values()))),
        champion=registry.version(sql, request.project, request.model, str(number)) if rival else None,
    )


@operation(
    Evaluate,
    permission="evaluations:run",
    http=f"POST {_VERSION}/evaluations",
    cli="evaluations run",
    resource="model:{model}",
    prepare=_measure,
)
def evaluate(tx: Transaction, request: Evaluate, finding: _Finding) -> Evaluation:
    """Thresholds come first in the ledger: those that the measuring began with must still be in force."""
    subject = finding.subject
    if _in_force(tx.sql, request.project, request.model).ref != subject.thresholds.ref:
        raise Conflict("Other thresholds were declared while the version was measured.", next_step="Evaluate it again.")
    new = _evaluation(tx, request, finding)
    report = tx.ports.objects.put(msgspec.json.encode(new))
    registry.keep_evaluation(tx.sql, new)
    tx.record(
        new.ref,
        uses=[new.model_ref, new.thresholds, new.training_set],
        report=report,
        rows=new.rows,
        positives=new.positives,
        overlap=new.overlap,
        metrics=new.metrics,
        slices=len(new.slices),
        champion=new.comparison.champion if new.comparison else None,
        resamples=new.resamples,
        seed=new.seed,
        drawn_by=new.drawn_by,
    )
    return new


def _evaluation(tx: Transaction, request: Evaluate, finding: _Finding) -> Evaluation:
    subject, measured, new_id = finding.subject, finding.measured, uuid7()
    return Evaluation(
        ref=f"evaluation:{new_id}",
        id=new_id,
        project=request.project,
        model=request.model,
        version=subject.version.number,
        model_ref=subject.version.ref,
        thresholds=subject.thresholds.ref,
        training_set=subject.measured_on.ref,
        rows=measured.rows,
        positives=measured.positives,
        overlap=finding.overlap,
        metrics=measured.metrics,
        slices=measured.slices,
        comparison=finding.comparison,
        threshold=subject.rules.threshold,
        resamples=request.resamples,
        seed=request.seed,
        seconds=finding.seconds,
        drawn_by=measured.drawn_by,
        author=tx.actor.id,
        at=tx.now,
    )


@operation(
    ListEvaluations,
    permission="evaluations:read",
    http=f"GET {_MODEL}/evaluations",
    cli="evaluations list",
    resource="model:{model}",
)
def list_evaluations(tx: Transaction, request: ListEvaluations) -> tuple[Evaluation, ...]:
    return registry.evaluations(tx.sql, request.project, request.model, limit=request.limit)


@operation(
    ShowEvaluation,
    permission="evaluations:read",
    http="GET /api/v1/projects/{project}/evaluations/{evaluation}",
    cli="evaluations show",
)
def show_evaluation(tx: Transaction, request: ShowEvaluation) -> Evaluation:
    return registry.evaluation(tx.sql, request.project, request.evaluation)


# --- the gate


def _facts(sql: sa.Connection, version: ModelVersion) -> Facts:
    project, model = version.project, version.model
    champion = registry.alias_number(sql, project, model, CHAMPION)
    return Facts(
        version=version,
        thresholds=registry.thresholds(sql, project, model),
        evaluations=registry.evaluations(sql, project, model, number=version.number),
        equality=registry.run(sql, project, version.run).equality,
        approvals=registry.approvals(sql, project, model, version.number),
        champion=f"model:{model}@{champion}" if champion else "",
    )


def ask(tx: Transaction, version: ModelVersion) -> GateResult:
    """What the gate says now; nothing is recorded."""
    facts = _facts(tx.sql, version)
    rules = gates.parse(facts.thresholds.text) if facts.thresholds else None
    checks = gates.judge(rules, facts)
    counted = gates.counted(rules, facts) if rules else None
    new_id = uuid7()
    return GateResult(
        ref=f"gate:{new_id}",
        id=new_id,
        project=version.project,
        model=version.model,
        version=version.number,
        model_ref=version.ref,
        verdict="pass" if all(check.passed for check in checks) else "refused",
        measures_pass=all(check.passed for check in checks if check.criterion != gates.APPROVALS),
        reasons=gates.reasons(checks),
        checks=checks,
        thresholds=facts.thresholds.ref if facts.thresholds else "",
        evaluation=counted.ref if counted else "",
        approvals=tuple(a.ref for a in gates.counting(rules, facts)) if rules else (),
        at=tx.now,
    )


def _record_gate(tx: Transaction, result: GateResult) -> None:
    registry.keep_gate(tx.sql, result)
    used = [ref for ref in (result.evaluation, result.thresholds, result.model_ref) if ref]
    tx.record(
        result.ref,
        uses=used,
        verdict=result.verdict,
        reasons=list(result.reasons[:MOST_REASONS]),
        reasons_in_all=len(result.reasons),
        checks=len(result.checks),
    )


@operation(
    CheckGate, permission="gates:check", http=f"POST {_VERSION}/gate", cli="gates check", resource="model:{model}"
)
def check_gate(tx: Transaction, request: CheckGate) -> GateResult:
    result = ask(tx, registry.version(tx.sql, request.project, request.model, request.version))
    _record_gate(tx, result)
    return result


# --- approvals


@operation(
    Approve,
    permission="approvals:give",
    http=f"POST {_VERSION}/approvals",
    cli="gates approve",
    resource="model:{model}",
)
def approve(tx: Transaction, request: Approve) -> Approval:
    version = registry.version(tx.sql, request.project, request.model, request.version)
    _refuse_makers(tx, version)
    for old in registry.approvals(tx.sql, request.project, request.model, version.number):
        if old.approver == tx.actor.id:
            raise Conflict(
                f"{tx.actor.id} has approved {version.ref} already.", next_step="Check the gate: macadam gates check."
            )
    new_id = uuid7()
    new = Approval(
        ref=f"approval:{new_id}",
        id=new_id,
        project=request.project,
        model=request.model,
        version=version.number,
        model_ref=version.ref,
        artifact=version.artifact,
        approver=tx.actor.id,
        note=request.note,
        at=tx.now,
    )
    registry.keep_approval(tx.sql, new)
    tx.record(new.ref, uses=[version.ref], artifact=new.artifact, note=new.note or None)
    return new


def _refuse_makers(tx: Transaction, version: ModelVersion) -> None:
    declared = registry.thresholds(tx.sql, version.project, version.model)
    if declared is not None and not gates.parse(declared.text).not_author:
        return
    if tx.actor.id in (version.author, version.trainer):
        did = "registered" if tx.actor.id == version.author else "trained"
        reason = f"{tx.actor.id} {did} {version.ref}, so cannot approve it"
        raise GateRefused(
            f"{reason}.",
            next_step="Ask another person who holds the role approver.",
            details={"model": version.ref, "artifact": version.artifact, "reasons": [reason]},
        )


@operation(
    ListApprovals,
    permission="gates:read",
    http=f"GET {_VERSION}/approvals",
    cli="gates approvals",
    resource="model:{model}",
)
def list_approvals(tx: Transaction, request: ListApprovals) -> tuple[Approval, ...]:
    version = registry.version(tx.sql, request.project, request.model, request.version)
    return registry.approvals(tx.sql, request.project, request.model, version.number)


# --- aliases


@operation(
    SetAlias,
    permission="models:promote",
    http=f"PUT {_MODEL}/aliases/{{alias}}",
    cli="models alias",
    resource="model:{model}",
)
def set_alias(tx: Transaction, request: SetAlias) -> Alias:
    """The gate is asked in the transaction that moves the alias: nothing can change between the two."""
    version = registry.version(tx.sql, request.project, request.model, request.version)
    result = _pass(tx, version, request.alias) if request.alias in PROTECTED else None
    new = Alias(
        ref=f"alias:{request.model}@{request.alias}",
        project=request.project,
        model=request.model,
        alias=request.alias,
        version=version.number,
        model_ref=version.ref,
        previous=registry.alias_number(tx.sql, request.project, request.model, request.alias),
        gate=result.ref if result else "",
        approvals=result.approvals if result else (),
        author=tx.actor.id,
        at=tx.now,
    )
    registry.keep_alias(tx.sql, new)
    used = [ref for ref in (new.model_ref, new.gate, *new.approvals) if ref]
    tx.record(new.ref, uses=used, version=new.version, previous=new.previous, artifact=version.artifact)
    return new


def _pass(tx: Transaction, version: ModelVersion, alias: str) -> GateResult:
    """Records a passing gate. Raises GateRefused, naming all that is missing or not good enough."""
    result = ask(tx, version)
    if result.verdict == "pass":
        _record_gate(tx, result)
        return result
    said = "; ".join(result.reasons[:MOST_REASONS])
    raise GateRefused(
        f"The gate refuses {version.ref} for {alias!r}: {said}.",
        next_step=_next_step(result),
        details={
            "model": version.ref,
            "alias": alias,
            "thresholds": result.thresholds,
            "evaluation": result.evaluation,
            "reasons": list(result.reasons[:MOST_REASONS]),
            "checks": gates.as_details(result.checks)[:MOST_REASONS],
        },
    )


def _next_step(result: GateResult) -> str:
    if not result.thresholds:
        return _DECLARE_FIRST
    if not result.evaluation:
        return f"Evaluate it: macadam evaluations run {result.model} {result.version} --training-set …"
    if result.measures_pass:
        return f"Have it approved: macadam gates approve {result.model} {result.version}"
    return "Improve the model and register another version."
