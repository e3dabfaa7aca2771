"""Draws sealed predictions at random and follows each back: segment, deployment, version, run, data, environment.

Proofs are checked on the way: the record in its segment, the segment and every leaf of the chain in the ledger.
What many predictions share (a segment, a deployment) is checked once.
"""

import random
from collections.abc import Iterator

import sqlalchemy as sa

from macadam.errors import IntegrityError, MacadamError, NotFound
from macadam.governance.evidence import Sample, Traced
from macadam.journal import places, record
from macadam.journal.places import Places
from macadam.journal.record import Prediction
from macadam.journal.schema import segments
from macadam.journal.types import Segment
from macadam.ledger import service as ledger
from macadam.ledger.service import Entry, Prover
from macadam.ledger.tree import leaf_hash, verify_inclusion
from macadam.lineage import chain
from macadam.operations import Context

DRAWN = 200
"""With none of 200 broken, fewer than 1.5% of all are, with 95% confidence (rule of three)."""
MOST_SEGMENTS = 20
"""Segments are drawn first (a large one is likelier), then records from them: each is read and hashed whole."""
REQUIRED = ("version", "run", "training_set", "snapshot", "contract", "environment")
FOLLOWED = (
    "model:",
    "run:",
    "training_set:",
    "table:",
    "contract:",
    "environment:",
    "thresholds:",
    "evaluation:",
)
"""References that must themselves be about something in the ledger. Not sources: their files are named by digest."""
# Unpredictable, so that nobody can know beforehand which answers will be looked at.
_dice = random.SystemRandom()


def draw(context: Context, sql: sa.Connection, project: str) -> Sample:
    """At most DRAWN of the project's sealed predictions."""
    query = sa.select(segments).where(segments.c.project == project, segments.c["count"] > 0)
    sealed = [Segment(**row._asdict()) for row in sql.execute(query)]
    if not sealed:
        return Sample()
    ledger_proofs = _LedgerProofs(context, sql)
    chains = _Chains(sql, project, ledger_proofs)
    read = [_Read(context, sql, one, ledger_proofs) for one in _some(sealed)]
    drawn = [traced for segment, count in _shares(read) for traced in _traced(segment, count, chains)]
    return Sample(population=sum(one.count for one in sealed), drawn=tuple(drawn))


def _some(sealed: list[Segment]) -> list[Segment]:
    """Up to MOST_SEGMENTS of them, each time drawn with a probability in proportion to its records."""
    rest = list(sealed)
    chosen: list[Segment] = []
    while rest and len(chosen) < MOST_SEGMENTS:
        place = _dice.choices(range(len(rest)), weights=[one.count for one in rest])[0]
        chosen.append(rest.pop(place))
    return chosen


def _shares(read: "list[_Read]") -> Iterator[tuple["_Read", int]]:
    """How many records to draw from each segment, as if they were drawn from all of them together."""
    counts = [segment.count for segment in read]
    numbers = sorted(_dice.sample(range(sum(counts)), min(DRAWN, sum(counts))))
    begin = 0
    for segment, count in zip(read, counts, strict=True):
        yield segment, sum(begin <= number < begin + count for number in numbers)
        begin += count


def _traced(segment: "_Read", count: int, chains: "_Chains") -> Iterator[Traced]:
    for number in _dice.sample(range(segment.count), count):
        prediction, faults = segment.proved(number)
        if prediction is None:
            yield Traced(id=f"number {number} of {segment.name}", faults=tuple(faults))
        else:
            yield Traced(id=prediction.id, faults=(*faults, *chains.faults(prediction)))


class _LedgerProofs:
    """Inclusion against the newest checkpoint, each leaf once."""

    def __init__(self, context: Context, sql: sa.Connection) -> None:
        self.size, note = ledger.newest_checkpoint(sql)
        self._root = ledger.verifier_keys(context.ports).open(note).root
        self._prover = Prover(context.ports, self.size)
        self._known: dict[str, str] = {}

    def fault(self, entry: Entry) -> str:
        if entry.leaf.id not in self._known:
            self._known[entry.leaf.id] = self._check(entry)
        return self._known[entry.leaf.id]

    def _check(self, entry: Entry) -> str:
        try:
            path = self._prover.path(entry.index)
            verify_inclusion(leaf_hash(entry.text), entry.index, self.size, path, self._root)
        except (IntegrityError, NotFound) as error:
            return f"the inclusion of {entry.leaf.subject} in the ledger does not prove: {error.what}"
        return ""


class _Read:
    """One sealed segment, read whole. What cannot be read is a fault of each of its records."""

    def __init__(self, context: Context, sql: sa.Connection, sealed: Segment, proofs: _LedgerProofs) -> None:
        self.name = f"segment:{sealed.id}"
        self.count = sealed.count
        self._faults: list[str] = []
        self._archive, self._index = b"", Places.whole(places.build((), ()))
        try:
            self._archive = context.ports.objects.get(sealed.archive)
            self._index = Places.whole(context.ports.objects.get(sealed.places))
        except MacadamError as error:
            self._faults.append(f"{self.name} cannot be read: {error.what}")
        self._root = self._index.root()
        self._faults += self._against_ledger(ledger.by_id(sql, [sealed.leaf]), proofs)

    def _against_ledger(self, leaves: list[Entry], proofs: _LedgerProofs) -> Iterator[str]:
        if not leaves or leaves[0].leaf.subject != self.name:
            yield f"{self.name} is not in the ledger"
            return
        body = leaves[0].leaf.body
        if body.get("root") != f"sha256:{self._root.hex()}" or body.get("count") != self._index.count:
            yield f"{self.name} is not what the ledger says"
        if fault := proofs.fault(leaves[0]):
            yield fault

    def _part(self, start: int, length: int) -> bytes:
        return self._archive[start : start + length]

    def proved(self, number: int) -> tuple[Prediction | None, list[str]]:
        """The record with this number in the order of ids, and what is wrong with it."""
        faults = list(self._faults)
        try:
            place = self._index.at(number)
            payload = places.payload_in(self._part, place.offset)
            path = self._index.path(place.index)
            verify_inclusion(leaf_hash(payload), place.index, self._index.count, path, self._root)
            return record.decode(payload), faults
        except MacadamError as error:
            return None, [*faults, f"its record does not prove: {error.what}"]


class _Chains:
    """Walks and proves the chain behind each deployment once."""

    def __init__(self, sql: sa.Connection, project: str, proofs: _LedgerProofs) -> None:
        self._sql = sql
        self._project = project
        self._proofs = proofs
        self._known: dict[tuple[str, str, str], tuple[str, ...]] = {}

    def faults(self, prediction: Prediction) -> tuple[str, ...]:
        if not prediction.version and prediction.outcome.startswith("error:"):
            return ()  # refused before a model was chosen: there is nothing behind it
        key = (prediction.deployment, prediction.version, prediction.model_digest)
        if key not in self._known:
            self._known[key] = tuple(self._walk(*key))
        return self._known[key]

    def _walk(self, deployment_id: str, version: str, digest: str) -> Iterator[str]:
        deployments = [e for e in ledger.by_id(self._sql, [deployment_id]) if e.leaf.outcome == "done"]
        if not deployments:
            yield f"its deployment {deployment_id} is not in the ledger"
            return
        deployed = deployments[0].leaf
        if version not in deployed.uses:
            yield f"its deployment is not of {version}"
        if deployed.body.get("artifact") != digest:
            yield f"its deployment is of other bytes than {digest}"
        try:
            links = chain.behind_version(self._sql, self._project, version, before=self._proofs.size)
        except NotFound:
            yield f"{version} was never registered"
            return
        found = {link.role for link in links}
        subjects = {link.entry.leaf.subject for link in links}
        named = {ref for link in links for ref in link.entry.leaf.uses if ref.startswith(FOLLOWED)}
        yield from (
            f"{ref} is named behind {version}, but the ledger has nothing about it" for ref in sorted(named - subjects)
        )
        yield from (f"the ledger has no {r.replace('_', ' ')} behind {version}" for r in REQUIRED if r not in found)
        proved = {e.leaf.id: e for e in (deployments[0], *(link.entry for link in links))}
        yield from (fault for entry in proved.values() if (fault := self._proofs.fault(entry)))
