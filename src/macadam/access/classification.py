"""How the classification of data reaches what is made from it, over what the ledger's leaves say they used.

A contract classifies a table. A training set has the strictest class of the tables that it was built from, a model that
of its training sets, an endpoint that of the version which answers there, and at least 'personal' where its deployment
has personal fields. Nothing but the outcome is stored, as what policies may ask of an asset.
"""

from collections.abc import Iterable, Iterator, Mapping

import sqlalchemy as sa

from macadam.access.schema import assets
from macadam.access.state import describe
from macadam.ledger import service as ledger
from macadam.ledger.leaf import Leaf

ORDER = ("public", "internal", "confidential", "restricted", "personal")
"""From the least strict to the strictest."""
_UNKNOWN = ORDER.index("restricted")
_MADE = {
    "training_set": "features.build_training_set",
    "run": "models.train",
    "model": "models.register_version",
}
"""Which operation's leaf says what a thing of this kind was made from."""
_KEPT = (_MADE["training_set"], _MADE["model"])
_ANSWERS = ("serving.deploy", "serving.rollback")


def highest(words: Iterable[str]) -> str:
    """The strictest of them; '' if nobody said anything. A word that is not in ORDER counts as 'restricted': nobody
    knows how little it protects, but it does not say that the data is about a person.
    """
    said = [word.strip().lower() for word in words if word.strip()]
    return ORDER[max(ORDER.index(word) if word in ORDER else _UNKNOWN for word in said)] if said else ""


def follow(sql: sa.Connection, leaf: Leaf) -> None:
    """Classifies what a leaf says was made, in the leaf's transaction. A name keeps the strictest of its versions."""
    if leaf.outcome != "done":
        return
    if leaf.kind in _KEPT:
        name = _name(leaf.subject)
        known = _known(sql, leaf.project)
        found = highest((known.get(name, ""), _Derived(sql, leaf.project, known).of_leaf(leaf)))
        describe(sql, leaf.project, name, classification=found)
    elif leaf.kind in _ANSWERS:
        derived = _Derived(sql, leaf.project, _known(sql, leaf.project))
        describe(sql, leaf.project, leaf.subject, classification=derived.of_leaf(leaf))


def reclassify(sql: sa.Connection, project: str, tables: Mapping[str, str]) -> None:
    """Takes over what contracts now say of tables, by reference, and what follows for all that was made from them."""
    for name, said in tables.items():
        describe(sql, project, name, classification=said)
    derived = _Derived(sql, project, _known(sql, project))
    found: dict[str, list[str]] = {}
    for kind in _KEPT:
        for entry in ledger.find(sql, kind=kind, project=project, outcome="done"):
            found.setdefault(_name(entry.leaf.subject), []).append(derived.of_leaf(entry.leaf))
    for leaf in _answering(sql, project):
        found[leaf.subject] = [derived.of_leaf(leaf)]
    for name, said_of_versions in found.items():
        describe(sql, project, name, classification=highest(said_of_versions))


def _answering(sql: sa.Connection, project: str) -> Iterator[Leaf]:
    """The leaf that says what answers now, of each endpoint."""
    deployed = ledger.find(sql, kind=_ANSWERS[0], project=project, outcome="done")
    for subject in sorted({entry.leaf.subject for entry in deployed}):
        newest_first = ledger.find(sql, subject=subject, project=project, outcome="done")
        yield next(entry.leaf for entry in newest_first if entry.leaf.kind in _ANSWERS)


class _Derived:
    """tables: the classes of tables, by reference without version."""

    def __init__(self, sql: sa.Connection, project: str, tables: Mapping[str, str]) -> None:
        self._sql, self._project, self._tables = sql, project, tables
        self._found: dict[str, str] = {}

    def of_leaf(self, leaf: Leaf) -> str:
        """Of what the leaf made: the strictest of what it used."""
        personal = leaf.kind in _ANSWERS and self._has_personal_fields(leaf)
        return highest([*(self._of(ref) for ref in leaf.uses), "personal" if personal else ""])

    def _of(self, ref: str) -> str:
        kind = ref.partition(":")[0]
        if kind == "table":
            return self._tables.get(_name(ref), "")
        if kind not in _MADE:
            return ""
        if ref not in self._found:
            made = ledger.find(self._sql, kind=_MADE[kind], subject=ref, project=self._project, outcome="done", limit=1)
            self._found[ref] = self.of_leaf(made[0].leaf) if made else ""
        return self._found[ref]

    def _has_personal_fields(self, leaf: Leaf) -> bool:
        """A rollback's leaf names the deployment that answers again, by the id of its leaf."""
        deployment = leaf.body.get("deployment")
        said = [leaf] if deployment is None else [e.leaf for e in ledger.by_id(self._sql, [str(deployment)])]
        return any(one.body.get("personal") for one in said)


def _known(sql: sa.Connection, project: str) -> dict[str, str]:
    rows = sql.execute(sa.select(assets.c.asset, assets.c.classification).where(assets.c.project == project))
    return {row.asset: row.classification for row in rows}


def _name(ref: str) -> str:
    return ref.partition("@")[0]
