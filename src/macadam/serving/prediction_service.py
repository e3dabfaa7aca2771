"""Operations on predictions: labels that arrive later, live quality, one prediction, and its proof."""

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from macadam import catalog
from macadam.data import reading as tables
from macadam.errors import InvalidInput, NotFound
from macadam.journal import record
from macadam.journal.service import holding
from macadam.journal.types import TABLE
from macadam.lazy import lazy
from macadam.ledger import key_service, sequencer, witnesses
from macadam.ledger import service as ledger
from macadam.models.metrics import Scored
from macadam.operations import Context, Transaction, operation
from macadam.serving import proof, reading, registry
from macadam.serving.schema import feedback
from macadam.serving.types import (
    Accuracy,
    Feedback,
    FetchReceipt,
    Label,
    LiveAccuracy,
    LiveQuality,
    PredictionPage,
    Proof,
    Prove,
    Receipt,
    RecordFeedback,
    ShowPrediction,
)
from macadam.values import instant, require_aware, uuid7

if TYPE_CHECKING:
    import numpy as np
else:
    np = lazy("numpy")

_PROJECT = "/api/v1/projects/{project}"
_PREDICTION = _PROJECT + "/predictions/{prediction}"
_CHUNK = 500


# --- labels


@operation(
    RecordFeedback,
    permission="feedback:record",
    http=f"POST {_PROJECT}/feedback",
    cli="predictions feedback",
)
def record_feedback(tx: Transaction, request: RecordFeedback) -> Feedback:
    """One leaf holds the digest of the whole batch: prediction, label and time of each, sorted."""
    labels = _sorted(request.labels)
    batch = uuid7()
    counted: dict[str, Any] = {"new": 0, "changed": 0, "same": 0}
    for start in range(0, len(labels), _CHUNK):
        _keep(tx, request.project, labels[start : start + _CHUNK], batch, counted)
    lines = "".join(f"{label.prediction} {label.label!r} {instant(label.at)}\n" for label in labels)
    digest = "sha256:" + hashlib.sha256(lines.encode()).hexdigest()
    tx.record(f"feedback:{batch}", digest=digest, labels=len(labels), **counted)
    return Feedback(id=batch, labels=len(labels), digest=digest, **counted)


def _sorted(labels: Sequence[Label]) -> list[Label]:
    """By prediction; its last one where a batch has several. Raises InvalidInput."""
    kept: dict[str, Label] = {}
    for label in labels:
        if not math.isfinite(label.label):
            raise InvalidInput(f"The label of {label.prediction} is {label.label}.", next_step="Send finite numbers.")
        plain = Label(
            prediction=proof.bare_id(label.prediction),
            label=label.label,
            at=require_aware(label.at, "The label's time"),
        )
        if plain.prediction not in kept or kept[plain.prediction].at <= plain.at:
            kept[plain.prediction] = plain
    return [kept[prediction] for prediction in sorted(kept)]


def _keep(tx: Transaction, project: str, labels: list[Label], batch: str, counted: dict[str, int]) -> None:
    t = feedback.c
    ids = [label.prediction for label in labels]
    query = sa.select(t.prediction, t.label, t.at).where(t.project == project, t.prediction.in_(ids))
    known = {row.prediction: row for row in tx.sql.execute(query)}
    stale, rows = [], []
    for label in labels:
        old = known.get(label.prediction)
        if old is not None and (old.label == label.label or old.at > label.at):
            counted["same"] += 1
            continue
        counted["new" if old is None else "changed"] += 1
        if old is not None:
            stale.append(label.prediction)
        rows.append({"project": project, "recorded": tx.now, "batch": batch, **_plain(label)})
    if stale:
        tx.sql.execute(sa.delete(feedback).where(t.project == project, t.prediction.in_(stale)))
    if rows:
        tx.sql.execute(sa.insert(feedback), rows)


def _plain(label: Label) -> dict[str, object]:
    return {"prediction": label.prediction, "label": label.label, "at": label.at}


# --- live quality


class _Live(msgspec.Struct, frozen=True, kw_only=True):
    """Sealed predictions that answered: ids, versions and scores, in the same order."""

    ids: list[str]
    versions: list[str]
    scores: list[float]


def _read_sealed(context: Context, request: LiveAccuracy) -> _Live:
    with context.read() as sql:
        registry.require(sql, request.project, request.endpoint)
        location = catalog.location(sql, request.project, TABLE)
    if not location:
        return _Live(ids=[], versions=[], scores=[])
    granted = context.authorise("predictions:read", f"endpoint:{request.endpoint}")
    wanted = ("id", "version", "score")
    found: Any = tables.predictions(granted, context.ports.tables, request.endpoint, location, columns=wanted)
    return _Live(
        ids=found.column("id").to_pylist(),
        versions=found.column("version").to_pylist(),
        scores=found.column("score").to_pylist(),
    )


@operation(
    LiveAccuracy,
    permission="predictions:read",
    http=f"GET {_PROJECT}/endpoints/{{endpoint}}/quality",
    cli="predictions quality",
    resource="endpoint:{endpoint}",
    prepare=_read_sealed,
)
def live_accuracy(tx: Transaction, request: LiveAccuracy, live: _Live) -> LiveQuality:
    t = feedback.c
    rows = tx.sql.execute(sa.select(t.prediction, t.label).where(t.project == request.project))
    labels = {row.prediction: row.label for row in rows}
    threshold = registry.require(tx.sql, request.project, request.endpoint).threshold
    total = _accuracy("", live, labels, threshold)
    versions = tuple(_accuracy(version, live, labels, threshold) for version in sorted(set(live.versions)))
    return LiveQuality(
        project=request.project,
        endpoint=request.endpoint,
        predictions=total.predictions,
        labelled=total.labelled,
        positives=total.positives,
        metrics=total.metrics,
        versions=versions,
    )


def _accuracy(version: str, live: _Live, labels: dict[str, float], threshold: float) -> Accuracy:
    """version: '' for all."""
    chosen = [n for n, v in enumerate(live.versions) if version in ("", v)]
    known = [(labels[live.ids[n]], live.scores[n]) for n in chosen if live.ids[n] in labels]
    outcomes, scores = [label for label, _ in known], [score for _, score in known]
    measured: dict[str, float] = {}
    if set(outcomes) == {0.0, 1.0} and all(0 <= score <= 1 for score in scores):
        found = Scored(np.array(outcomes, dtype=np.int8), np.array(scores), threshold=threshold).measure()
        measured = {name: float(value) for name, value in found.items()}
    return Accuracy(
        version=version,
        predictions=len(chosen),
        labelled=len(known),
        positives=sum(outcome == 1 for outcome in outcomes),
        metrics=measured,
    )


# --- one prediction


@operation(ShowPrediction, permission="predictions:read", http=f"GET {_PREDICTION}", cli="predictions show")
def show_prediction(tx: Transaction, request: ShowPrediction) -> PredictionPage:
    wanted = proof.bare_id(request.prediction)
    granted = tx.authorise("predictions:read", f"project:{request.project}")
    found = proof.find(granted, tx.ports.objects, holding(tx.sql, request.project, wanted), wanted)
    payload = found.payload if found else proof.waiting(granted, tx.ports, request.project, wanted)
    if payload is None:
        raise NotFound(
            f"Project {request.project!r} has no prediction {wanted!r}.",
            next_step="Its id is in the answer and its header x-macadam-prediction.",
        )
    t = feedback.c
    query = sa.select(t.label, t.at).where(t.project == request.project, t.prediction == wanted)
    label = tx.sql.execute(query).first()
    told = record.decode(payload)
    return PredictionPage(
        id=wanted,
        record=msgspec.to_builtins(told),
        personal=reading.personal_values(tx, told, found.segment.id if found else ""),
        segment=found.segment.id if found else "",
        label=label.label if label else None,
        label_at=label.at if label else None,
    )


def _integrate(context: Context, _request: Prove | FetchReceipt) -> None:
    """So that leaves of a moment ago have their checkpoint, and that its witnesses."""
    sequencer.integrate_all(context.ports)
    witnesses.try_cosign(context.ports)


@operation(
    Prove,
    permission="predictions:prove",
    http=f"POST {_PREDICTION}/prove",
    cli="predictions prove",
    prepare=_integrate,
    reads=True,
)
def prove(tx: Transaction, request: Prove, _integrated: None) -> Proof:
    wanted = proof.bare_id(request.prediction)
    granted = tx.authorise("predictions:prove", f"project:{request.project}")
    made, leaves = proof.prove(granted, tx.ports, tx.sql, request.project, wanted)
    return Proof(
        prediction=wanted,
        bundle=made.decode(),
        bytes=len(made),
        leaves=leaves,
        key=str(ledger.verifier_keys(tx.ports)),
        announcements=key_service.announcements(tx.ports, tx.sql),
    )


@operation(
    FetchReceipt,
    permission="predictions:receipt",
    http=f"GET {_PREDICTION}/receipt",
    cli="predictions receipt",
    prepare=_integrate,
)
def fetch_receipt(tx: Transaction, request: FetchReceipt, _integrated: None) -> Receipt:
    """For the principal that asked, whatever else they may do: who audits proves instead (`macadam prove`)."""
    wanted = proof.bare_id(request.prediction)
    granted = tx.authorise("predictions:receipt", f"project:{request.project}")
    made = proof.receipt(granted, tx.ports, tx.sql, request.project, wanted, actor=tx.actor.id)
    return Receipt(prediction=wanted, receipt=made.decode(), bytes=len(made), key=str(ledger.verifier_keys(tx.ports)))
