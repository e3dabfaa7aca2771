"""Builds receipts (`macadam-receipt/1`): what the caller of one prediction needs to hold Macadam to its answer.

A receipt shows that the record of an answer is in the signed ledger, and nothing of what is behind the model: that is for
`bundle`. Pure: the caller brings record, leaf and paths. The independent reader is `macadam_verify`.
"""

from collections.abc import Sequence

from macadam.errors import IntegrityError
from macadam.ledger import leaf as leaves_
from macadam.ledger import note, tree
from macadam.ledger.bundle import ChainLeaf, SegmentPath, encode

FORMAT = "macadam-receipt/1"


def build(
    *,
    prediction: str,
    record: bytes,
    segment: SegmentPath,
    leaf: ChainLeaf,
    checkpoint: str,
    path: Sequence[bytes],
) -> bytes:
    """The receipt's bytes: canonical JSON and a final newline. Write them as they are; no other spelling verifies.

    record: the exact bytes; leaf: that of the segment's seal; checkpoint: the signed note; path: of the leaf in it.
    Raises IntegrityError if a part does not lead to the checkpoint's root.
    """
    signed = note.Checkpoint.parse(note.Note.parse(checkpoint).text)
    tree.verify_inclusion(tree.leaf_hash(leaf.data), leaf.index, signed.size, path, signed.root)
    body = leaves_.decode(leaf.data).body
    root = tree.root_from_path(tree.leaf_hash(record), segment.index, segment.count, segment.path)
    if body.get("root") != f"sha256:{root.hex()}" or body.get("count") != segment.count:
        raise IntegrityError(
            f"The record of {prediction} is not number {segment.index} of the {segment.count} in its sealed segment.",
            next_step="The journal segment differs from what was sealed: run macadam ledger verify.",
        )
    return encode(
        {
            "format": FORMAT,
            "claim": f"prediction:{prediction}",
            "record": record.decode(),
            "segment": {"index": segment.index, "count": segment.count, "path": [h.hex() for h in segment.path]},
            "leaf": {"index": leaf.index, "leaf": leaf.data.decode(), "path": [h.hex() for h in path]},
            "checkpoint": checkpoint,
        }
    )
