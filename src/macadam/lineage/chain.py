"""The chain of evidence behind a model version, walked over the ledger's leaves.

A leaf names its subject and what it was made from; following those references from a version gives its run, data,
contracts, environment, evaluation, gate, approval and deployment. Nothing is stored here: the graph *is* the ledger.
"""

from collections.abc import Iterable, Iterator

import msgspec
import sqlalchemy as sa

from macadam.errors import NotFound
from macadam.ledger import service as ledger
from macadam.ledger.service import Entry

# Which role a leaf plays in a proof, by the operation that wrote it and what its subject names ('' = anything). The
# first row that fits counts; what fits none is "other".
ROLES = (
    ("data.register_contract", "contract:", "contract"),
    ("data.ingest", "table:", "snapshot"),
    ("features.build_training_set", "training_set:", "training_set"),
    ("models.train", "run:", "run"),
    ("models.train", "environment:", "environment"),
    ("models.register_version", "model:", "version"),
    ("models.declare_thresholds", "", "thresholds"),
    ("models.evaluate", "", "evaluation"),
    ("models.check_gate", "", "gate"),
    ("models.set_alias", "gate:", "gate"),
    ("models.approve", "", "approval"),
    ("access.create_project", "project:", "project"),
    ("access.", "policy:", "policy"),
    ("serving.deploy", "", "deployment"),
    ("journal.seal", "", "segment"),
)
APPROVED = "access.approve_policies"
MOST_LEAVES = 200
"""A chain longer than this is a mistake in what leaves name; a bundle has to stay small."""


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One leaf of a chain, and the role it plays."""

    role: str
    entry: Entry


def role(entry: Entry) -> str:
    """The part that a leaf plays in a proof."""
    for kind, subject, part in ROLES:
        if entry.leaf.kind.startswith(kind) and entry.leaf.subject.startswith(subject):
            return part
    return "other"


def behind_version(sql: sa.Connection, project: str, version: str, *, before: int) -> list[Link]:
    """Everything that a version rests on, in ledger order.

    version: 'model:NAME@N'. before: only leaves with a smaller index, so that later events cannot speak for an
    earlier prediction. Raises NotFound if the version was never registered in this project.
    """
    registered = _subject(sql, project, version, before)
    if not any(e.leaf.kind == "models.register_version" for e in registered):
        raise NotFound(
            f"The ledger has no registration of {version} in project {project!r}.",
            next_step="Look at `macadam models list`; a version is registered before it can answer.",
        )
    found: dict[str, Entry] = {}
    for entry in [*registered, *_about(sql, project, version, before)]:
        _follow(sql, project, entry, before, found)
    for entry in policies(sql, (str(entry.leaf.decision["policy_set"]) for entry in found.values())):
        found[entry.leaf.id] = entry
    links = [Link(role=role(entry), entry=entry) for entry in found.values()]
    return sorted(links, key=lambda link: link.entry.index)


def _subject(sql: sa.Connection, project: str, ref: str, before: int) -> list[Entry]:
    return _usable(ledger.find(sql, subject=ref, project=project, outcome="done"), before)


def _usable(entries: Iterable[Entry], before: int) -> list[Entry]:
    return [entry for entry in entries if 0 <= entry.index < before]


def _about(sql: sa.Connection, project: str, version: str, before: int) -> Iterator[Entry]:
    """Leaves that judge the version: evaluations, passed gates, approvals."""
    for entry in _usable(ledger.find(sql, using=version, project=project, outcome="done"), before):
        refused = role(entry) == "gate" and entry.leaf.body.get("verdict") != "pass"
        if role(entry) in ("evaluation", "gate", "approval") and not refused:
            yield entry


def _follow(sql: sa.Connection, project: str, start: Entry, before: int, found: dict[str, Entry]) -> None:
    """Adds a leaf and, through what it uses, every leaf that made those things."""
    waiting = [start]
    while waiting and len(found) < MOST_LEAVES:
        entry = waiting.pop()
        if entry.leaf.id in found:
            continue
        found[entry.leaf.id] = entry
        for ref in entry.leaf.uses:
            # The newest leaf about a reference made it what it was when this leaf used it.
            waiting += [e for e in _subject(sql, project, ref, entry.index) if e.index < before][:1]
    project_leaf = _subject(sql, project, f"project:{project}", before)
    found.update({entry.leaf.id: entry for entry in project_leaf[-1:]})


def policies(sql: sa.Connection, sets: Iterable[str]) -> list[Entry]:
    """What put policy sets in force; for a project's set also the platform's that it decides with, and who proposed and
    approved its text. sets: digests, as decisions name them.
    """
    found: dict[str, Entry] = {}
    for digest in sorted(set(sets) - {""}):
        for entry in ledger.find(sql, subject=f"policy:{digest}", outcome="done")[-1:]:
            found[entry.leaf.id] = entry
            if entry.leaf.project:
                found.update({made.leaf.id: made for made in _made_from(sql, entry)})
    return list(found.values())


def _made_from(sql: sa.Connection, in_force: Entry) -> Iterator[Entry]:
    for ref in in_force.leaf.uses:
        about = ledger.find(sql, subject=ref, outcome="done")
        yield from about[-1:]
        yield from (e for e in about if e.leaf.kind == APPROVED and e.leaf.at <= in_force.leaf.at)
