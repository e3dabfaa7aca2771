"""The index of a sealed segment: each record's id, place and Merkle hash, so that one is found and proved without
reading all.

Little-endian: magic, u64 count; per record, sorted by id: 16 bytes of the id, u64 offset of the frame, u32 number of the
record; then the leaf hashes in the order of the segment; then the hashes of its complete subtrees of 256 leaves.
"""

import struct
import uuid
from bisect import bisect_left
from collections.abc import Sequence

import google_crc32c
import msgspec

from macadam.errors import IntegrityError
from macadam.journal.layout import FOOTER_FLAG, FRAME, VERIFY
from macadam.ledger.tree import hashes_of, inclusion_proof, root_of

_MAGIC = b"MCDMPLC1"
_HEAD = struct.Struct("<8sQ")
_ROW = struct.Struct("<16sQI")
_HASH = 32
_LEVEL = 8
"""Height of the subtrees whose hashes are kept: a proof then hashes some hundreds of nodes instead of all."""


class Place(msgspec.Struct, frozen=True):
    """Where a record lies. offset: of its frame, bytes; index: from 0."""

    id: bytes
    offset: int
    index: int


def build(places: Sequence[Place], leaf_hashes: Sequence[bytes]) -> bytes:
    """The index's bytes. leaf_hashes: of all records, in order."""
    rows = [_ROW.pack(p.id, p.offset, p.index) for p in sorted(places, key=lambda p: p.id)]
    read = hashes_of(leaf_hashes)
    nodes = [read(_LEVEL, n) for n in range(len(leaf_hashes) >> _LEVEL)]
    return b"".join((_HEAD.pack(_MAGIC, len(places)), *rows, *leaf_hashes, *nodes))


class Places:
    """Reads `build`."""

    def __init__(self, data: bytes) -> None:
        """Raises IntegrityError if the bytes are no index."""
        magic, count = _HEAD.unpack_from(data) if len(data) >= _HEAD.size else (b"", 0)
        self.count = count
        self._data = data
        self._leaves = _HEAD.size + count * _ROW.size
        self._nodes = self._leaves + count * _HASH
        if magic != _MAGIC or len(data) != self._nodes + (count >> _LEVEL) * _HASH:
            raise IntegrityError("The stored object is no index of a journal segment.", next_step=VERIFY)

    def find(self, prediction: str) -> Place | None:
        """The place of a record by its id. O(log n)."""
        try:
            wanted = uuid.UUID(prediction).bytes
        except ValueError:
            return None
        at = bisect_left(range(self.count), wanted, key=lambda n: self._row(n).id)
        if at == self.count or self._row(at).id != wanted:
            return None
        return self._row(at)

    def at(self, number: int) -> Place:
        """The place of the record with this number in the order of ids, from 0. Raises IntegrityError."""
        if not 0 <= number < self.count:
            raise IntegrityError(f"The segment's index has no record number {number}.", next_step=VERIFY)
        return self._row(number)

    def root(self) -> bytes:
        """The Merkle root of all leaf hashes. O(n)."""
        return root_of(self.hash(n) for n in range(self.count))

    def hash(self, index: int) -> bytes:
        """The leaf hash of a record."""
        return self._hash(self._leaves, index)

    def path(self, index: int) -> tuple[bytes, ...]:
        """The record's inclusion path to the segment's root, bottom first."""
        nodes = hashes_of([self._hash(self._nodes, n) for n in range(self.count >> _LEVEL)])

        def read(level: int, at: int) -> bytes:
            if level >= _LEVEL:
                return nodes(level - _LEVEL, at)
            return hashes_of([self.hash(n) for n in range(at << level, at + 1 << level)])(level, 0)

        return tuple(inclusion_proof(index, self.count, read))

    def _row(self, n: int) -> Place:
        return Place(*_ROW.unpack_from(self._data, _HEAD.size + n * _ROW.size))

    def _hash(self, start: int, n: int) -> bytes:
        return self._data[start + n * _HASH : start + (n + 1) * _HASH]


def payload_at(archive: bytes, offset: int) -> bytes:
    """The record whose frame begins at `offset` of a segment's bytes. Raises IntegrityError if there is none."""
    start = archive[offset : offset + FRAME.size]
    if len(start) == FRAME.size:
        length, crc, check = FRAME.unpack(start)
        payload = archive[offset + FRAME.size : offset + FRAME.size + length]
        if check == google_crc32c.value(start[:8]) and not length & FOOTER_FLAG and google_crc32c.value(payload) == crc:
            return payload
    raise IntegrityError(f"No record begins at offset {offset} of the sealed segment.", next_step=VERIFY)
