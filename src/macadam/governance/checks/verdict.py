"""Turns what a check saw into a finding, with one rule for all: no population is not applicable, never a pass;
a fault is a failure; a part that nothing can check yet means that the check as a whole did not run.
"""

from collections.abc import Iterable, Sequence

from macadam.governance.types import Finding
from macadam.ledger.leaf import Leaf

MOST_FAULTS = 5
MOST_EVIDENCE = 200
"""Leaves named in a result. A result is read by people and stored for years; population says how many there were."""


def judge(
    what: str,
    population: int,
    faults: Sequence[str],
    *,
    holds: str,
    evidence: Iterable[Leaf] = (),
    sample: int | None = None,
    unchecked: str = "",
) -> Finding:
    """what: the things looked at, plural. holds: said when nothing is wrong. unchecked: what stays open even then."""
    looked_at = population if sample is None else sample
    ids = tuple(leaf.id for leaf in evidence)[-MOST_EVIDENCE:]
    if not population:
        return Finding(status="not_applicable", detail=f"There are no {what} to look at.")
    if faults:
        more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        detail = _sentence("; ".join(faults[:MOST_FAULTS]) + more)
        return Finding(status="fail", detail=detail, population=population, sample=looked_at, evidence=ids)
    if unchecked:
        detail = f"Only partly checked: {holds}. Not checked: {unchecked}."
        return Finding(status="did_not_run", detail=detail, population=population, sample=looked_at, evidence=ids)
    return Finding(status="pass", detail=_sentence(holds), population=population, sample=looked_at, evidence=ids)


def _sentence(text: str) -> str:
    """With a capital, unless it begins with a reference."""
    first = text.partition(" ")[0]
    return f"{text if ':' in first else text[:1].upper() + text[1:]}."
