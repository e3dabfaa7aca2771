"""Builds proof bundles (`macadam-proof/1`): one small file that proves a prediction without Macadam.

Pure: the caller brings the record, the leaves and the paths; this module puts them together and refuses to
hand out what does not add up. The independent reader is `macadam_verify`, which shares no code with this.
"""

import json
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from macadam.errors import IntegrityError, InvalidInput
from macadam.ledger import leaf as leaves_
from macadam.ledger import note, tree

FORMAT = "macadam-proof/1"

Role = Literal[
    "segment",
    "deployment",
    "version",
    "run",
    "training_set",
    "snapshot",
    "contract",
    "environment",
    "evaluation",
    "thresholds",
    "gate",
    "approval",
    "policy",
    "project",
    "other",
]

PathProvider = Callable[[int], Sequence[bytes]]
"""Ledger index -> that leaf's inclusion path in the tree of the bundle's checkpoint, bottom first."""


class ChainLeaf(msgspec.Struct, frozen=True, kw_only=True):
    """A leaf of the chain behind a prediction. index: its place in the ledger. data: its exact canonical bytes."""

    role: Role
    index: int
    data: bytes


class SegmentPath(msgspec.Struct, frozen=True, kw_only=True):
    """Where a record lies in its sealed journal segment: number `index` of `count`, and the path to the segment's root."""

    index: int
    count: int
    path: tuple[bytes, ...]


def build(
    *, record: bytes, segment: SegmentPath, leaves: Sequence[ChainLeaf], checkpoint: str, path: PathProvider
) -> bytes:
    """The bundle's bytes: canonical JSON and a final newline. Write them as they are; no other spelling verifies.

    record: the prediction record's exact bytes. leaves: one of them of role `segment`, each older than the
    checkpoint. checkpoint: the signed note. path: see PathProvider.
    Raises InvalidInput if a part is malformed, IntegrityError if a part does not lead to the checkpoint's root.
    """
    signed = note.Checkpoint.parse(note.Note.parse(checkpoint).text)
    paths = [list(path(chained.index)) for chained in leaves]
    for chained, proof in zip(leaves, paths, strict=True):
        leaves_.decode(chained.data)
        tree.verify_inclusion(tree.leaf_hash(chained.data), chained.index, signed.size, proof, signed.root)
    text, prediction = _record(record)
    bundle: dict[str, object] = {
        "format": FORMAT,
        "claim": f"prediction:{prediction}",
        "record": text,
        "segment": {
            "leaf": _sealed_in(leaves, record, segment),
            "index": segment.index,
            "count": segment.count,
            "path": [h.hex() for h in segment.path],
        },
        "checkpoint": checkpoint,
        "leaves": [
            {"role": chained.role, "index": chained.index, "leaf": chained.data.decode(), "path": [h.hex() for h in p]}
            for chained, p in zip(leaves, paths, strict=True)
        ],
    }
    return encode(bundle)


def encode(bundle: dict[str, object]) -> bytes:
    """The one spelling of a bundle: sorted keys, no spaces, UTF-8, one final newline."""
    return (json.dumps(bundle, sort_keys=True, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def _record(record: bytes) -> tuple[str, str]:
    """The record's text and id."""
    try:
        return record.decode(), str(json.loads(record)["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"This is no prediction record: {error!r}.", next_step="Pass the exact bytes that the journal holds."
        ) from error


def _sealed_in(leaves: Sequence[ChainLeaf], record: bytes, segment: SegmentPath) -> int:
    """The position of the segment's leaf among the leaves. Raises unless the record is in that segment."""
    positions = [position for position, chained in enumerate(leaves) if chained.role == "segment"]
    if len(positions) != 1:
        raise InvalidInput(
            f"A bundle has one leaf of role segment, got {len(positions)}.", next_step="Pass the leaf of the seal."
        )
    body = leaves_.decode(leaves[positions[0]].data).body
    root = tree.root_from_path(tree.leaf_hash(record), segment.index, segment.count, segment.path)
    if body.get("root") != f"sha256:{root.hex()}" or body.get("count") != segment.count:
        raise IntegrityError(
            f"The record is not number {segment.index} of the {segment.count} in the sealed segment.",
            next_step="The journal segment differs from what was sealed: run macadam ledger verify.",
        )
    return positions[0]
