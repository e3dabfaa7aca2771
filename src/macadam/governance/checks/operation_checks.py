"""Points on what runs and on the record itself: 34, 35 and 42."""

import contextlib

import msgspec

from macadam.governance.checks.verdict import judge
from macadam.governance.evidence import Evidence
from macadam.governance.types import Finding
from macadam.journal import completeness
from macadam.journal.completeness import Completeness
from macadam.ledger.leaf import Leaf

MOST_ROWS = 50
"""Of a table in a result, which is read by people and stored for years."""


def receipts_equal_answers(evidence: Evidence) -> Finding:
    """34. Each sealed segment's records against the gateway's own counter; segments that are gone; told gaps."""
    leaves = evidence.of("segment:")
    found = completeness.compare([completeness.of_leaf(leaf.subject, leaf.body) for leaf in leaves], evidence.unsealed)
    notes = [f"{found.unanswered} records have no answer, since the client or the gateway was gone"] * bool(
        found.unanswered
    )
    notes += [f"{found.torn} segments lost an unfinished, never answered record in a crash"] * bool(found.torn)
    holds = f"{found.records} receipts in {len(leaves)} sealed segments cover the {found.answers} answers that the gateways counted"
    judged = judge("sealed segments", len(leaves), found.faults, holds="; ".join([holds, *notes]), evidence=leaves)
    return msgspec.structs.replace(judged, table=_table(found))


def _table(found: Completeness) -> tuple[dict[str, str], ...]:
    """Segments that lack something first, then the newest."""
    newest = found.rows[::-1]
    ordered = sorted(newest, key=lambda row: not row.fault)
    return tuple(
        {
            "segment": row.segment.removeprefix("segment:"),
            "gateway": row.gateway,
            "answers": str(row.answers),
            "receipts": str(row.records),
            "missing": str(row.missing),
            "unanswered": str(row.unanswered),
            "without record": str(row.unrecorded),
            "torn bytes": str(row.torn),
            "counterexample": row.fault,
        }
        for row in ordered[:MOST_ROWS]
    )


def _count(leaf: Leaf, name: str) -> int | None:
    with contextlib.suppress(ValueError, KeyError):
        return int(str(leaf.body[name]))
    return None


def predictions_trace(evidence: Evidence) -> Finding:
    """35. What `collect` found about predictions drawn at random."""
    drawn = evidence.predictions.drawn
    faults = [f"prediction {traced.id}: {fault}" for traced in drawn for fault in traced.faults]
    said = sum(_count(leaf, "count") or 0 for leaf in evidence.of("segment:"))
    if said != evidence.predictions.population:
        faults.insert(0, f"the ledger says that {said} are sealed, {evidence.predictions.population} can be found")
    holds = f"{len(drawn)} drawn at random trace to deployment, version, run, data and environment, and prove"
    return judge(
        "sealed predictions",
        max(said, evidence.predictions.population),
        faults,
        holds=holds,
        sample=len(drawn),
        evidence=evidence.of("segment:"),
    )


def log_consistent(evidence: Evidence) -> Finding:
    """42. The ledger rebuilt and compared with every checkpoint that was ever signed."""
    state = evidence.ledger
    return judge(
        "checkpoints",
        state.checkpoints,
        state.problems,
        holds=f"{state.checkpoints} checkpoints are consistent with all {state.size} leaves",
        evidence=evidence.leaves[-1:],
        unchecked="witnesses, which cannot be named yet, and the seeded faults of the last 30 days, of which a home keeps no log",
    )
