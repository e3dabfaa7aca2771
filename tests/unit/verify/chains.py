"""A small ledger with a whole chain behind one prediction, for the tests of bundles and of the verifier."""

import json
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from macadam.ledger import bundle, leaf, note, tree

ORIGIN = "ledger.example/flights"
SIGNER = note.SignerKey(ORIGIN, bytes(range(32)))
WITNESS = note.SignerKey("witness.example", bytes(range(32, 64)))
POLICY_SET = "sha256:" + "5" * 64
ARTIFACT = "sha256:" + "a" * 64


def uuid(number: int) -> str:
    return f"01934567-89ab-7000-8000-{number:012x}"


def fields(number: int, kind: str, subject: str, **more: Any) -> dict[str, Any]:
    return {
        "v": 1,
        "id": uuid(number),
        "at": f"2026-11-21T07:00:{number:02d}.000000Z",
        "kind": kind,
        "outcome": "done",
        "actor": "principal:alice",
        "project": "flights",
        "subject": subject,
        "uses": [],
        "request": "sha256:" + "e" * 64,
        "decision": {"id": uuid(900 + number), "effect": "allow", "policies": ["dev"], "policy_set": POLICY_SET},
        "body": {},
    } | more


RECORD: dict[str, Any] = {
    "v": 1,
    "id": uuid(77),
    "at": "2026-11-21T07:10:00.000000Z",
    "project": "flights",
    "endpoint": "delays",
    "variant": "champion",
    "version": "model:delay-risk@7",
    "model_digest": ARTIFACT,
    "deployment": uuid(10),
    "actor": "service:replay",
    "inputs": {"carrier": "UA"},
    "features": {"delay_rate_7d": 0.25},
    "output": {"probability": 0.125},
    "outcome": "answered",
    "stages_us": {"predict": 120},
    "trace": "",
}


DEPLOYED: dict[str, Any] = {"model_signature": "sha256:" + "d" * 64}
SIGNED: dict[str, Any] = {**DEPLOYED, "provenance": "sha256:" + "e" * 64, "signing_key": "f" * 64}


def chain() -> list[tuple[str, dict[str, Any]]]:
    """(role, leaf) in ledger order. Role '' stays out of the bundle."""
    version = "model:delay-risk@7"
    return [
        ("policy", fields(0, "access.set_policies", f"policy:{POLICY_SET}", project="")),
        ("contract", fields(1, "data.register_contract", "contract:flights@1")),
        ("snapshot", fields(2, "data.ingest", "table:flights@42", uses=["contract:flights@1"])),
        ("training_set", fields(3, "features.build_training_set", "training_set:delays@1", uses=["table:flights@42"])),
        ("environment", fields(4, "models.train", "environment:py311@1")),
        ("run", fields(5, "models.train", "run:r1", uses=["training_set:delays@1", "environment:py311@1"])),
        (
            "version",
            fields(6, "models.register_version", version, uses=["run:r1"], body={"artifact": ARTIFACT, **SIGNED}),
        ),
        ("thresholds", fields(7, "models.declare_thresholds", "thresholds:delay@1")),
        ("evaluation", fields(8, "models.evaluate", "evaluation:e1", uses=[version, "thresholds:delay@1"])),
        ("gate", fields(9, "models.check_gate", version, uses=["evaluation:e1"], body={"verdict": "pass"})),
        ("approval", fields(11, "models.approve", version, actor="principal:bob")),
        ("deployment", fields(10, "serving.deploy", "endpoint:delays", uses=[version], body=dict(DEPLOYED))),
        ("", fields(12, "models.log", "run:other")),
        ("segment", fields(13, "journal.seal_segment", "segment:s1", project="")),
        ("", fields(14, "models.log", "run:later")),
    ]


@dataclass
class Ledger:
    """What a test bends before the bundle is made."""

    leaves: list[tuple[str, dict[str, Any]]] = field(default_factory=chain)
    record: dict[str, Any] = field(default_factory=lambda: deepcopy(RECORD))
    others: int = 4
    claim: str = ""
    signers: tuple[note.SignerKey, ...] = (SIGNER,)

    def of(self, role: str) -> dict[str, Any]:
        return next(found for name, found in self.leaves if name == role)

    def drop(self, role: str) -> None:
        """Keeps the leaf in the ledger and leaves it out of the bundle."""
        self.leaves = [("" if name == role else name, found) for name, found in self.leaves]

    def swap(self, one: str, other: str) -> None:
        roles = [name for name, _ in self.leaves]
        a, b = roles.index(one), roles.index(other)
        self.leaves[a], self.leaves[b] = self.leaves[b], self.leaves[a]

    def parts(self) -> dict[str, Any]:
        record = json.dumps(self.record, separators=(",", ":")).encode()
        records = [tree.leaf_hash(record), *(tree.leaf_hash(bytes([n])) for n in range(self.others))]
        body = self.of("segment")["body"]
        body.setdefault("root", "sha256:" + tree.root_of(records).hex())
        body.setdefault("count", len(records))
        datas = [leaf.canonical(found) for _, found in self.leaves]
        hashes = tree.hashes_of([tree.leaf_hash(data) for data in datas])
        size = len(datas)
        checkpoint = note.Checkpoint(origin=ORIGIN, size=size, root=tree.root_at(size, hashes))
        segment_path = tuple(tree.inclusion_proof(0, len(records), tree.hashes_of(records)))
        return {
            "record": record,
            "segment": bundle.SegmentPath(index=0, count=len(records), path=segment_path),
            "leaves": [
                bundle.ChainLeaf(role=role, index=index, data=data)  # type: ignore[arg-type]
                for index, ((role, _), data) in enumerate(zip(self.leaves, datas, strict=True))
                if role
            ],
            "checkpoint": str(note.sign(str(checkpoint), *self.signers)),
            "path": lambda index: tree.inclusion_proof(index, size, hashes),
        }

    def bundle(self) -> bytes:
        return bundle.build(**self.parts())
