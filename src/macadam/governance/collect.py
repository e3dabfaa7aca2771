"""Gathers the evidence that checks look at: one read snapshot of SQL, the objects it names, the ledger rebuilt."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa

from macadam.access import service as access
from macadam.errors import IntegrityError, NotFound
from macadam.governance.evidence import CONTRACT_TEXT, Evidence, LedgerState
from macadam.governance.sampling import draw
from macadam.journal.sealing import unsealed
from macadam.lazy import lazy
from macadam.ledger import service as ledger
from macadam.ledger import verification
from macadam.ledger.leaf import Leaf
from macadam.ledger.service import Entry
from macadam.models import registry
from macadam.operations import Context

if TYPE_CHECKING:
    import yaml
else:
    yaml = lazy("yaml")

MOST_RUNS = 10_000
_IN_FORCE = ("access.bootstrap", "access.activate_policies", "access.roll_back_policies")


def gather(context: Context, sql: sa.Connection, project: str, now: datetime) -> Evidence:
    """Raises NotFound if there is no such project."""
    leaves = tuple(entry.leaf for entry in reversed(ledger.find(sql, project=project)))
    policies = [entry for kind in _IN_FORCE for entry in ledger.find(sql, kind=kind, outcome="done")]
    return Evidence(
        now=now,
        project=access.project(sql, project),
        access=access.snapshot(sql),
        leaves=leaves,
        policy_leaves=_in_force(policies, project),
        contracts=_contracts(context, leaves),
        runs={run.ref: run for run in registry.runs(sql, project, "", MOST_RUNS)},
        predictions=draw(context, sql, project),
        unsealed=unsealed(context.ports.settings.home, project),
        ledger=_ledger(context, sql),
    )


def _in_force(found: Iterable[Entry], project: str) -> tuple[Leaf, ...]:
    """The leaves that put a set in force, the platform's or this project's, oldest first."""
    ours = [
        entry for entry in found if entry.leaf.project in ("", project) and entry.leaf.subject.startswith("policy:")
    ]
    return tuple(entry.leaf for entry in sorted(ours, key=lambda entry: entry.leaf.id))


def _contracts(context: Context, leaves: Iterable[Leaf]) -> dict[str, Mapping[str, object]]:
    """The documents that contract leaves name and that can be read: what is missing, the check reports."""
    named = {str(leaf.body.get(CONTRACT_TEXT, "")) for leaf in leaves if leaf.subject.startswith("contract:")}
    found: dict[str, Mapping[str, object]] = {}
    for digest in sorted(named - {""}):
        try:
            document = yaml.safe_load(context.ports.objects.get(digest))
        except (NotFound, IntegrityError, yaml.YAMLError):
            continue  # the check fails every contract whose document is not in the result
        if isinstance(document, dict):
            found[digest] = document
    return found


def _ledger(context: Context, sql: sa.Connection) -> LedgerState:
    state = verification.verify(
        context.ports, sql, ledger.verifier_keys(context.ports), deep=False, report=context.progress
    )
    return LedgerState(size=state.size, checkpoints=state.checkpoints, problems=state.problems)
