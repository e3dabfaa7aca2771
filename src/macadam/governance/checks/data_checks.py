"""Points on data: 07 and 09."""

import contextlib
from collections.abc import Mapping

from macadam.data.registry import QUARANTINE_SUFFIX
from macadam.governance.checks.verdict import judge
from macadam.governance.evidence import CONTRACT_TEXT, Evidence, used
from macadam.governance.types import Finding
from macadam.ledger.leaf import Leaf

LEGAL_BASIS = "legalBasis"
"""The custom property of an ODCS contract that holds it: the standard has no field of its own. Where a table holds
no personal data, the contract says exactly that."""


def _snapshots(evidence: Evidence) -> list[Leaf]:
    """Of tables, and of what was kept out of them."""
    return evidence.of("table:", kind="data.")


def _quarantined(leaf: Leaf) -> bool:
    return leaf.subject.partition("@")[0].endswith(QUARANTINE_SUFFIX)


def described(evidence: Evidence) -> Finding:
    """07. Digest and origin from the snapshot's leaf; purpose and legal basis from the contract it came under."""
    snapshots = _snapshots(evidence)
    faults = [fault for leaf in snapshots for fault in _undescribed(leaf)]
    under = sorted({ref for leaf in snapshots for ref in used(leaf, "contract:")})
    for ref in under:
        faults += _without_purpose(evidence, ref)
    holds = f"all have a digest and an origin; purpose and legal basis stand in {', '.join(under)}"
    return judge("published snapshots", len(snapshots), faults, holds=holds, evidence=snapshots)


def _undescribed(leaf: Leaf) -> list[str]:
    faults = []
    if not str(leaf.body.get("digest", "")).startswith("sha256:"):
        faults.append(f"{leaf.subject} has no digest")
    if not used(leaf, "source:"):
        faults.append(f"{leaf.subject} does not say where it came from")
    if not used(leaf, "contract:"):
        faults.append(f"{leaf.subject} names no contract, where purpose and legal basis would stand")
    return faults


def _without_purpose(evidence: Evidence, ref: str) -> list[str]:
    digests = [str(leaf.body.get(CONTRACT_TEXT, "")) for leaf in evidence.about(ref)]
    document = evidence.contracts.get(digests[-1]) if digests else None
    if document is None:
        return [f"{ref} cannot be read, so its purpose is unknown"]
    faults = []
    description = document.get("description")
    if not (isinstance(description, Mapping) and str(description.get("purpose") or "").strip()):
        faults.append(f"{ref} names no purpose (description.purpose)")
    if not _custom_property(document, LEGAL_BASIS):
        faults.append(f"{ref} names no legal basis (customProperties: {LEGAL_BASIS})")
    return faults


def _custom_property(document: Mapping[str, object], name: str) -> str:
    listed = document.get("customProperties")
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, Mapping) and entry.get("property") == name:
            return str(entry.get("value") or "").strip()
    return ""


def contract_ran(evidence: Evidence) -> Finding:
    """09. Each snapshot came under a contract that was registered before, every row in is accounted for, and those that
    were refused are in a quarantine snapshot that names the one they were kept out of.
    """
    snapshots = [leaf for leaf in _snapshots(evidence) if not _quarantined(leaf)]
    faults = [fault for leaf in snapshots if (fault := _unchecked_rows(evidence, leaf))]
    rows = sum(_rows(leaf, "rows_in") or 0 for leaf in snapshots)
    blocked = sum(_rows(leaf, "quarantined") or 0 for leaf in snapshots)
    holds = f"of {rows} rows that came in, {blocked} broke their contract and went to quarantine, none was published"
    return judge("published snapshots", len(snapshots), faults, holds=holds, evidence=snapshots)


def _unchecked_rows(evidence: Evidence, leaf: Leaf) -> str:
    contracts = [c for ref in used(leaf, "contract:") for c in evidence.about(ref) if evidence.before(c, leaf)]
    if not contracts:
        return f"{leaf.subject} was published under no contract that was registered before it"
    rows, published, quarantined = (_rows(leaf, name) for name in ("rows_in", "published", "quarantined"))
    if rows is None or published is None or quarantined is None:
        return f"{leaf.subject} does not say how many rows came in, were published and were quarantined"
    if rows != published + quarantined:
        return f"{leaf.subject}: {rows} rows came in, but {published} were published and {quarantined} quarantined"
    if quarantined and not any(_quarantined(other) for other in evidence.using(leaf.subject, "table:")):
        return f"{leaf.subject}: {quarantined} rows were refused, but no quarantine has them"
    return ""


def _rows(leaf: Leaf, name: str) -> int | None:
    with contextlib.suppress(ValueError, KeyError):
        return int(str(leaf.body[name]))
    return None
