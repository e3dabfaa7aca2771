"""Draws sealed predictions at random and follows each back: deployment, version, run, data, environment; with proofs.

Predictions of one deployment share their chain, so it is walked and proved once.
"""

import random
from typing import Any

import sqlalchemy as sa

from macadam import catalog
from macadam.errors import IntegrityError, NotFound
from macadam.governance.evidence import Sample, Traced
from macadam.ledger import service as ledger
from macadam.ledger.note import open_checkpoint
from macadam.ledger.service import Entry, Prover
from macadam.ledger.tree import leaf_hash, verify_inclusion
from macadam.lineage import chain
from macadam.operations import Context

TABLE = "predictions"
DRAWN = 200
"""With none of 200 broken, fewer than 1.5% of all are, with 95% confidence (rule of three)."""
COLUMNS = ("id", "version", "model_digest", "deployment")
REQUIRED = ("version", "run", "training_set", "snapshot", "contract", "environment")


def draw(context: Context, sql: sa.Connection, project: str) -> Sample:
    """At most DRAWN of the project's sealed predictions."""
    location = catalog.location(sql, project, TABLE)
    if not location:
        return Sample()
    rows = context.ports.tables.scan(location, columns=COLUMNS)
    # Unpredictable, so that nobody can know beforehand which answers will be looked at.
    chosen = random.SystemRandom().sample(range(rows.num_rows), min(DRAWN, rows.num_rows))
    chains = _Chains(context, sql, project)
    drawn = tuple(
        Traced(id=str(row["id"]), faults=chains.faults(row)) for row in rows.take(sorted(chosen)).to_pylist()
    )
    return Sample(population=rows.num_rows, drawn=drawn)


class _Chains:
    """Walks and proves each deployment's chain once, against the newest checkpoint."""

    def __init__(self, context: Context, sql: sa.Connection, project: str) -> None:
        self._sql = sql
        self._project = project
        self._size, note = ledger.newest_checkpoint(sql)
        self._root = open_checkpoint(note, [ledger.verifier_key(context.ports)]).root
        self._prover = Prover(context.ports, self._size)
        self._known: dict[tuple[str, str, str], tuple[str, ...]] = {}

    def faults(self, row: dict[str, Any]) -> tuple[str, ...]:
        key = (str(row["deployment"]), str(row["version"]), str(row["model_digest"]))
        if key not in self._known:
            self._known[key] = tuple(self._walk(*key))
        return self._known[key]

    def _walk(self, deployment_id: str, version: str, digest: str) -> list[str]:
        deployments = [e for e in ledger.by_id(self._sql, [deployment_id]) if e.leaf.outcome == "done"]
        if not deployments:
            return [f"its deployment {deployment_id} is not in the ledger"]
        deployment = deployments[0]
        faults = []
        if version not in deployment.leaf.uses:
            faults.append(f"its deployment is not of {version}")
        if deployment.leaf.body.get("artifact") != digest:
            faults.append(f"its deployment is of other bytes than {digest}")
        try:
            links = chain.behind_version(self._sql, self._project, version, before=self._size)
        except NotFound:
            return [*faults, f"{version} was never registered"]
        missing = [role for role in REQUIRED if not any(link.role == role for link in links)]
        faults += [f"the ledger has no {role.replace('_', ' ')} behind {version}" for role in missing]
        proved = {entry.leaf.id: entry for entry in (deployment, *(link.entry for link in links))}
        return faults + [fault for entry in proved.values() if (fault := self._unproved(entry))]

    def _unproved(self, entry: Entry) -> str:
        try:
            path = self._prover.path(entry.index)
            verify_inclusion(leaf_hash(entry.text), entry.index, self._size, path, self._root)
        except (IntegrityError, NotFound) as error:
            return f"the inclusion of {entry.leaf.subject} in the ledger does not prove: {error.what}"
        return ""
