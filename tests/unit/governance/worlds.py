"""A small project in which every check finds what it wants, to be spoiled one fact at a time."""

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from macadam.access.circumstances import KnownProject
from macadam.access.engine import AccessSnapshot, KnownPrincipal
from macadam.access.policies import built_in
from macadam.access.types import Project
from macadam.governance.evidence import Evidence, LedgerState, Sample, Traced
from macadam.ledger.leaf import Leaf
from macadam.models.types import Code, Hardware, Run
from macadam.values import Money, digest_of, instant, uuid7

START = datetime(2026, 1, 1, tzinfo=UTC)
POLICIES = built_in().digest
ARTIFACT = digest_of(b"onnx")
CONTRACT = digest_of(b"contract")
ALICE, BOB, CAROL = "principal:alice", "principal:bob", "principal:carol"

RUN = Run(
    ref="run:1", id="1", project="flights", model="delay", state="finished", entry="train.py:train",
    training_sets={"train": "training_set:early@1"}, snapshots=("table:flights@1",), rows={"train": 10}, params={},
    seed=0, code=Code(archive=digest_of(b"tar"), files=3, commit="c0ffee"), environment=None,
    hardware=Hardware(cpu="cpu", cores=2, memory_bytes=1), metrics={}, history="", artifact=ARTIFACT,
    artifact_bytes=4, signature="", equality=None, seconds=1.0, cpu_seconds=1.0, peak_bytes=1, energy_joules=None,
    energy_note="this machine has no counters", cost=Money(micros=1), author=ALICE, at=START,
)  # fmt: skip


def leaf(place: int, kind: str, subject: str, *uses: str, actor: str = ALICE, **body: object) -> Leaf:
    return Leaf(
        id=uuid7(),
        at=instant(START + timedelta(minutes=place)),
        kind=kind,
        outcome="done",
        actor=actor,
        project="flights",
        subject=subject,
        uses=list(uses),
        request=digest_of(b"{}"),
        decision={"id": uuid7(), "effect": "allow", "policies": ["developers-build"], "policy_set": POLICIES},
        body=body,
    )


def leaves() -> tuple[Leaf, ...]:
    digest = digest_of(b"any")
    run_uses = ("training_set:early@1", "table:flights@1", "environment:lock@1")
    made: list[tuple[str, str, tuple[str, ...], str, dict[str, object]]] = [
        ("access.create_project", "project:flights", (ALICE,), ALICE, {"owner": ALICE}),
        ("data.register_contract", "contract:flights@1.0.0", (), ALICE, {"digest": digest, "text_object": CONTRACT}),
        ("data.ingest", "table:flights@1", ("contract:flights@1.0.0", "source:flights"), ALICE,
         {"digest": digest, "rows_in": 100, "published": 90, "quarantined": 10}),
        ("data.ingest", "table:flights__quarantine@1", ("contract:flights@1.0.0", "source:flights", "table:flights@1"),
         ALICE, {"digest": digest, "rows": 10}),
        ("features.build_training_set", "training_set:early@1", ("table:flights@1",), ALICE, {"digest": digest}),
        ("features.build_training_set", "training_set:june@1", ("table:flights@1",), ALICE, {"digest": digest}),
        ("models.train", "environment:lock@1", (), ALICE, {"digest": digest}),
        ("models.train", "run:1", run_uses, ALICE,
         {"state": "finished", "code": {"commit": "c0ffee", "archive": digest, "files": 3}, "params": {}, "seed": 0,
          "seconds": "1.0", "cpu_seconds": "1.0", "peak_bytes": 1, "artifact": ARTIFACT}),
        ("models.register_version", "model:delay@1", ("run:1",), ALICE, {"artifact": ARTIFACT}),
        ("models.declare_thresholds", "thresholds:delay@1", (), BOB, {"digest": digest}),
        ("models.evaluate", "evaluation:1", ("model:delay@1", "thresholds:delay@1", "training_set:june@1"), BOB,
         {"rows": 100, "overlap": 0, "metrics": {"roc_auc": {"value": "0.8", "low": "0.78", "high": "0.82"}}}),
        ("models.approve", "approval:1", ("model:delay@1",), CAROL, {"artifact": ARTIFACT}),
        ("serving.deploy", "endpoint:delay", ("model:delay@1",), ALICE, {"artifact": ARTIFACT}),
        ("journal.seal_segment", "segment:1", (), ALICE, {"root": digest, "count": 5, "answers": 5}),
    ]  # fmt: skip
    return tuple(
        leaf(i, kind, subject, *uses, actor=actor, **body) for i, (kind, subject, uses, actor, body) in enumerate(made)
    )


def access() -> AccessSnapshot:
    def person(*roles: str) -> KnownPrincipal:
        return KnownPrincipal(kind="person", roles={"flights": roles})

    return AccessSnapshot(
        generation="g",
        policy_set=POLICIES,
        policies=built_in(),
        tokens={},
        principals={
            ALICE: person("developer", "operator"),
            BOB: person("developer"),
            CAROL: person("approver"),
            "service:replay": KnownPrincipal(kind="service", roles={"*": ("admin",)}),
        },
        projects={"flights": KnownProject()},
    )


def sound() -> Evidence:
    project = Project(
        name="flights", owner=ALICE, description="Will this flight be late?", risk="limited", location="",
        created=START, created_by=ALICE,
    )  # fmt: skip
    return Evidence(
        now=START + timedelta(days=30),
        project=project,
        access=access(),
        leaves=leaves(),
        policy_leaves=(leaf(0, "access.bootstrap", f"policy:{POLICIES}", actor="system:bootstrap"),),
        contracts={
            CONTRACT: {
                "description": {"purpose": "Foresee delays"},
                "customProperties": [{"property": "legalBasis", "value": "no personal data"}],
            }
        },
        runs={"run:1": RUN},
        predictions=Sample(population=5, drawn=(Traced(id="p1", faults=()), Traced(id="p2", faults=()))),
        ledger=LedgerState(size=14, checkpoints=3),
    )


def with_(evidence: Evidence, **changes: Any) -> Evidence:
    return dataclasses.replace(evidence, **changes)


def altered(evidence: Evidence, subject: str, **changes: Any) -> Evidence:
    """The leaf about `subject` says something else."""
    return with_(
        evidence,
        leaves=tuple(msgspec.structs.replace(x, **changes) if x.subject == subject else x for x in evidence.leaves),
    )


def saying(evidence: Evidence, subject: str, **facts: object) -> Evidence:
    """The body of the leaf about `subject` says something else; None takes a fact away."""
    found = next(x for x in evidence.leaves if x.subject == subject)
    body = {k: v for k, v in {**found.body, **facts}.items() if v is not None}
    return altered(evidence, subject, body=body)


def without(evidence: Evidence, subject: str) -> Evidence:
    return with_(evidence, leaves=tuple(x for x in evidence.leaves if x.subject != subject))


def last(evidence: Evidence, subject: str) -> Evidence:
    """The leaf about `subject` was recorded after all others."""
    moved = [x for x in evidence.leaves if x.subject == subject]
    return with_(evidence, leaves=(*without(evidence, subject).leaves, *moved))


def principal(evidence: Evidence, identity: str, known: KnownPrincipal | None) -> Evidence:
    people = {k: v for k, v in {**evidence.access.principals, identity: known}.items() if v is not None}
    return with_(evidence, access=msgspec.structs.replace(evidence.access, principals=people))
