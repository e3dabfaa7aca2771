"""How other rooms queue and find leaves, and the operations that check the ledger as a whole.

Numbering leaves and signing is the sequencer's work; rebuilding and comparing is verification's; looking leaves up is
for `reading`, proving them for `proofs`.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import sqlalchemy as sa

from macadam.errors import IntegrityError, NotFound
from macadam.ledger import keys, publishing, sequencer, verification, witnesses
from macadam.ledger.keyring import FIRST, KeyRing, LedgerKey
from macadam.ledger.leaf import Leaf, decode, encode
from macadam.ledger.note import SignerKey
from macadam.ledger.schema import checkpoints, leaves, uses
from macadam.ledger.sequencer import Sequencer
from macadam.ledger.tree import TileHashes, inclusion_proof, leaf_hash
from macadam.ledger.types import MOST_LEAVES, ShowCheckpoint, Signed, VerifyLedger
from macadam.ledger.verification import Found
from macadam.operations import Context, Transaction, operation
from macadam.ports import Ports

__all__ = ["Sequencer", "bootstrap", "find", "queue"]

EVERYWHERE = "*"
"""All projects and the platform itself, where a project is named."""
_LONGEST_INDEX = len(str(MOST_LEAVES))  # digits


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A stored leaf and its place. index: -1 while it waits for its checkpoint. text: the canonical bytes."""

    index: int
    leaf: Leaf
    text: bytes


def bootstrap(ports: Ports) -> None:
    """Makes the ledger's key in a fresh home, and publishes its verifier key. Two processes may do so at once."""
    keys.bootstrap(ports)
    publishing.catch_up(ports)


def signer(ports: Ports) -> SignerKey:
    """The private key that the ledger's word is given with: of those in force the oldest, which most readers know."""
    with ports.sql.read() as sql:
        known = keys.held(sql)
    return keys.signers(ports, keys.signing(known)[:1], known)[0]


def verifier_keys(ports: Ports) -> KeyRing:
    """The keys that the ledger's checkpoints are checked with."""
    return keys.published(ports)


_LEAF_COLUMNS = ("id", "at", "kind", "outcome", "actor", "project", "subject", "leaf", "hash")
_USES_COLUMNS = ("leaf_id", "ref")


def queue(sql: sa.Connection, *queued: Leaf) -> None:
    """Queues leaves in the caller's transaction: they are there exactly if the state that they describe is."""
    _add(sql, leaves, _LEAF_COLUMNS, [_row(leaf) for leaf in queued])
    refs = [(leaf.id, ref) for leaf in queued for ref in sorted(set(leaf.uses))]
    if refs:
        _add(sql, uses, _USES_COLUMNS, refs)


def _add(sql: sa.Connection, table: sa.Table, columns: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    """Inserts rows of text and bytes as the driver takes them: SQLAlchemy's own way costs 10 µs more for each.

    Tuples, since the garbage collector leaves those of text alone: dicts cost a batch a fifth of its time.
    """
    statement, order = _insertion(sql.dialect, table, columns)
    given: Any = rows if order else [dict(zip(columns, row, strict=True)) for row in rows]
    # One row as one statement: a driver may need several journeys to its server for a list.
    sql.exec_driver_sql(statement, given if len(given) > 1 else given[0])


@lru_cache(maxsize=16)
def _insertion(dialect: sa.Dialect, table: sa.Table, columns: tuple[str, ...]) -> tuple[str, bool]:
    """The statement in the driver's spelling, and whether it takes its parameters in the order of `columns`.

    Otherwise it takes them by name.
    """
    named: dict[str, Any] = {column: sa.bindparam(column) for column in columns}
    compiled = sa.insert(table).values(named).inline().compile(dialect=dialect)  # no RETURNING: nobody reads it
    order = tuple(getattr(compiled, "positiontup", None) or ())
    if order and order != columns:
        raise TypeError(f"{table.name}: the statement takes {order}, expected {columns}")
    return str(compiled), bool(order)


def _row(leaf: Leaf) -> tuple[object, ...]:
    text = encode(leaf)
    return (
        leaf.id,
        leaf.at,
        leaf.kind,
        leaf.outcome,
        leaf.actor,
        leaf.project,
        leaf.subject,
        text,
        leaf_hash(text),
    )


def find(
    sql: sa.Connection,
    *,
    kind: str = "",
    subject: str = "",
    project: str = "",
    actor: str = "",
    using: str = "",
    outcome: str = "",
    limit: int = 0,
) -> list[Entry]:
    """Leaves that match all that is given, newest first. using: leaves whose `uses` name this reference."""
    query = sa.select(leaves.c.idx, leaves.c.leaf).order_by(leaves.c.seq.desc())
    wanted = {"kind": kind, "subject": subject, "project": project, "actor": actor, "outcome": outcome}
    for column, value in wanted.items():
        if value:
            query = query.where(leaves.c[column] == value)
    if using:
        query = query.where(leaves.c.id.in_(sa.select(uses.c.leaf_id).where(uses.c.ref == using)))
    if limit:
        query = query.limit(limit)
    return [entry(row) for row in sql.execute(query)]


def by_id(sql: sa.Connection, ids: Iterable[str]) -> list[Entry]:
    """The leaves with these ids, in ledger order."""
    query = sa.select(leaves.c.idx, leaves.c.leaf).where(leaves.c.id.in_(list(ids))).order_by(leaves.c.seq)
    return [entry(row) for row in sql.execute(query)]


def entry(row: "sa.Row[*tuple[Any, ...]]") -> Entry:
    """A leaf from its row's `idx` and `leaf`."""
    text = bytes(row.leaf)
    return Entry(index=-1 if row.idx is None else row.idx, leaf=decode(text), text=text)


def require(sql: sa.Connection, leaf: str, project: str) -> Entry:
    """The leaf with this id or index, if it is one of the project's ('*': of any). Raises NotFound in the same words."""
    place = leaves.c.id == leaf
    if leaf.isascii() and leaf.isdecimal() and len(leaf) <= _LONGEST_INDEX and int(leaf) <= MOST_LEAVES:
        place = leaves.c.idx == int(leaf)
    row = sql.execute(sa.select(leaves.c.idx, leaves.c.leaf).where(place)).first()
    if row is not None:
        found = entry(row)
        if project in (EVERYWHERE, found.leaf.project):
            return found
    where = "" if project == EVERYWHERE else f" of project {project!r}"
    raise NotFound(
        f"There is no leaf {leaf[:100]!r}{where} in the ledger.",
        next_step="Look for it: macadam ledger log. A leaf has an id, and an index once a checkpoint covers it.",
    )


def newest_checkpoint(sql: sa.Connection) -> tuple[int, str]:
    """Size and signed note of the newest checkpoint, with the cosignatures that are known for it. Raises NotFound in a ledger without leaves."""
    row = sql.execute(sa.select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1)).first()
    if row is None:
        raise NotFound("The ledger has no checkpoint yet.", next_step="Run an operation that changes something.")
    return row.size, publishing.cosigned(sql, row.size, row.note)


class Prover:
    """Inclusion proofs against one checkpoint, read from the tiles."""

    def __init__(self, ports: Ports, size: int) -> None:
        self._size = size
        self._hashes = TileHashes(lambda tile: sequencer.read_tile(ports, tile)).at(size)

    def path(self, index: int) -> list[bytes]:
        """The audit path of a leaf, lowest first. Raises NotFound while the leaf waits for its checkpoint."""
        if not 0 <= index < self._size:
            raise NotFound(
                f"Leaf {index} is not covered by the checkpoint of size {self._size}.",
                next_step="Ask again in a second: the next checkpoint covers it.",
            )
        return inclusion_proof(index, self._size, self._hashes)


def _prepare_verify(context: Context, request: VerifyLedger) -> Found:
    unfit: list[str] = []
    try:
        sequencer.integrate_all(context.ports)
        keys.settle(context.ports)
    except IntegrityError as error:
        unfit.append(f"queued leaves cannot be integrated: {error.what}")
    if request.witnesses:
        witnesses.try_cosign(context.ports, anew=True)
    with context.read() as sql:
        found = verification.verify(
            context.ports,
            sql,
            verifier_keys(context.ports),
            since=request.since,
            deep=request.deep,
            report=context.progress,
        )
        ring = verifier_keys(context.ports)
        unfit += _foreign_keys(sql, request.key, ring)
        unfit += _plain_again(context.ports, sql)
        unfit += witnesses.breaches(sql, witnesses.configured(context.ports))
        cosigned, missing = witnesses.quorum_problems(context.ports, sql, ring, request.witnesses, request.witness_key)
    return msgspec.structs.replace(found, cosigned=cosigned, problems=(*unfit, *found.problems, *missing))


def _foreign_keys(sql: sa.Connection, kept: str, ring: KeyRing) -> list[str]:
    """A ledger may announce whatever key it likes: a key is its own if a checkpoint had to be signed with it."""
    if not kept:
        return []
    own = [key.verifier for key in ring.keys if _has_signed(sql, key)]
    strange = [key for key in KeyRing.parse(kept).verifiers if key not in own]
    return [f"the key given, {key}, is not one of this ledger's: it is another ledger" for key in strange]


def _has_signed(sql: sa.Connection, key: LedgerKey) -> bool:
    until = MOST_LEAVES if key.until is None else key.until
    query = sa.select(checkpoints.c.size).where(checkpoints.c.size >= key.since, checkpoints.c.size <= until).limit(1)
    return sql.execute(query).first() is not None


def _plain_again(ports: Ports, sql: sa.Connection) -> list[str]:
    """Nothing takes the encryption of a home's keys back; whoever can write their files can, and a setting would only warn."""
    said = [entry for kind in (FIRST, "ledger.encrypt_keys") for entry in find(sql, kind=kind, outcome="done")]
    if ports.secrets.encryption() == "sealed" or not any(entry.leaf.body.get("state") == "sealed" for entry in said):
        return []
    return ["the home's keys were encrypted, as the ledger says, and are not any more: somebody has replaced them"]


@operation(
    VerifyLedger,
    permission="ledger:read",
    http="POST /api/v1/ledger/verify",
    cli="ledger verify",
    resource="platform:home",
    prepare=_prepare_verify,
    reads=True,
)
def verify(_tx: Transaction, _request: VerifyLedger, found: Found) -> Found:
    return found


@operation(
    ShowCheckpoint,
    permission="ledger:read",
    http="GET /api/v1/ledger/checkpoint",
    cli="ledger checkpoint",
    resource="platform:home",
)
def checkpoint(tx: Transaction, _request: ShowCheckpoint) -> Signed:
    return Signed(note=newest_checkpoint(tx.sql)[1], key=str(verifier_keys(tx.ports)))
