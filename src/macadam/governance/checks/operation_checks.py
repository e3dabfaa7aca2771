"""Points on what runs and on the record itself: 34, 35 and 42."""

import contextlib
from collections.abc import Sequence

from macadam.governance.checks.verdict import judge
from macadam.governance.evidence import Evidence
from macadam.governance.types import Finding
from macadam.ledger.leaf import Leaf


def receipts_equal_answers(evidence: Evidence) -> Finding:
    """34. Each sealed segment's records against the gateway's own counter."""
    segments = evidence.of("segment:")
    counted = [(leaf, _count(leaf, "count"), _count(leaf, "answers")) for leaf in segments]
    faults = []
    for leaf, receipts, answers in counted:
        if receipts is None or answers is None:
            faults.append(f"{leaf.subject} lacks its receipts' or its answers' count")
        elif receipts != answers:
            faults.append(f"{leaf.subject} has {receipts} receipts, the gateway counted {answers} answers")
    faults += _missing_segments(evidence, segments)
    total = sum(receipts or 0 for _, receipts, _ in counted)
    holds = f"{total} receipts in {len(segments)} sealed segments equal the answers that the gateway counted"
    return judge("sealed segments", len(segments), faults, holds=holds, evidence=segments)


def _missing_segments(evidence: Evidence, segments: Sequence[Leaf]) -> list[str]:
    """A segment names the one begun before it: what is named must be sealed, or wait for its seal."""
    there = {leaf.subject for leaf in segments} | evidence.unsealed
    named = [(leaf.subject, str(leaf.body.get("follows", ""))) for leaf in segments]
    faults = [
        f"{subject} follows {before}, which is gone" for subject, before in named if before and before not in there
    ]
    firsts = [subject for subject, before in named if not before]
    if len(firsts) > 1:
        faults.append(f"{len(firsts)} segments say that none was before them: {', '.join(firsts)}")
    return faults


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
