"""Operations that prove: a leaf is in the ledger, one ledger is the beginning of another.

Each proof is checked against the signed root before it is handed out, so that a damaged tile is an error here and not
an accusation there.
"""

import sqlalchemy as sa

from macadam.errors import IntegrityError, InvalidInput, NotFound
from macadam.ledger import note as notes
from macadam.ledger import sequencer, tree
from macadam.ledger import service as ledger
from macadam.ledger.schema import checkpoints
from macadam.ledger.service import Entry
from macadam.ledger.types import GrowthProof, LeafProof, ProveGrowth, ProveLeaf
from macadam.operations import Transaction, operation
from macadam.ports import Ports

_MOST_NAMED = 3


@operation(
    ProveLeaf,
    permission="ledger:read",
    http="GET /api/v1/projects/{project}/ledger/leaves/{leaf}/proof",
    cli="ledger prove",
)
def prove(tx: Transaction, request: ProveLeaf) -> LeafProof:
    entry = ledger.require(tx.sql, request.leaf, request.project)
    size, note = signed_at(tx.sql, request.size)
    return of_leaf(tx.ports, entry, size, note)


@operation(
    ProveGrowth,
    permission="ledger:read",
    http="GET /api/v1/projects/{project}/ledger/consistency/{old}",
    cli="ledger consistency",
)
def consistency(tx: Transaction, request: ProveGrowth) -> GrowthProof:
    """Holds hashes only, so it is the same for the readers of any project."""
    newest, note = ledger.newest_checkpoint(tx.sql)
    new = request.to or newest
    if not request.old <= new <= newest:
        raise InvalidInput(
            f"There is no growth from {request.old} to {new} leaves in a ledger of {newest}.",
            next_step="Give the smaller size first, and none beyond the newest checkpoint's.",
        )
    hashes = tree.TileHashes(lambda tile: sequencer.read_tile(tx.ports, tile)).at(newest)
    old_root, new_root = tree.root_at(request.old, hashes), tree.root_at(new, hashes)
    path = tree.consistency_proof(request.old, new, hashes)
    tree.verify_consistency(request.old, old_root, new, new_root, path)
    signed = _note(tx.sql, new)
    _require_signed(note if new == newest else signed, new, new_root)
    return GrowthProof(
        old=request.old,
        old_root=old_root.hex(),
        new=new,
        new_root=new_root.hex(),
        path=tuple(h.hex() for h in path),
        checkpoint=signed,
        key=str(ledger.verifier_keys(tx.ports)),
    )


def signed_at(sql: sa.Connection, size: int) -> tuple[int, str]:
    """Size and note of the checkpoint of this size, 0: the newest. Raises NotFound, naming sizes that were signed."""
    newest = ledger.newest_checkpoint(sql)
    if size in (0, newest[0]):
        return newest
    note = _note(sql, size)
    if not note:
        near = sa.select(checkpoints.c.size).order_by(sa.func.abs(checkpoints.c.size - size)).limit(_MOST_NAMED)
        named = ", ".join(map(str, sorted(sql.execute(near).scalars())))
        raise NotFound(f"No checkpoint was signed at {size} leaves.", next_step=f"Some that were: {named}.")
    return size, note


def of_leaf(ports: Ports, entry: Entry, size: int, note: str) -> LeafProof:
    """The proof of a leaf against a signed checkpoint. Raises NotFound if the checkpoint does not cover it."""
    path = ledger.Prover(ports, size).path(entry.index)
    hashed = tree.leaf_hash(entry.text)
    root = tree.root_from_path(hashed, entry.index, size, path)
    _require_signed(note, size, root)
    return LeafProof(
        leaf=entry.leaf.id,
        index=entry.index,
        hash=hashed.hex(),
        size=size,
        root=root.hex(),
        path=tuple(h.hex() for h in path),
        checkpoint=note,
        key=str(ledger.verifier_keys(ports)),
    )


def _note(sql: sa.Connection, size: int) -> str:
    return sql.execute(sa.select(checkpoints.c.note).where(checkpoints.c.size == size)).scalar_one_or_none() or ""


def _require_signed(note: str, size: int, root: bytes) -> None:
    """Raises IntegrityError if a note of this size is there and says another root."""
    if not note:
        return
    said = notes.Checkpoint.parse(notes.Note.parse(note).text)
    if (said.size, said.root) != (size, root):
        raise IntegrityError(
            f"The ledger's leaves and tiles do not lead to the root that was signed at {size} leaves.",
            next_step="Run macadam ledger verify; keep every checkpoint that you have.",
        )
