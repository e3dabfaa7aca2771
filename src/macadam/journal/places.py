"""The index of a sealed segment: each record's id, place and Merkle hash, so that one is found and proved without
reading all.

Little-endian: magic, u64 count; per record, sorted by id: 16 bytes of the id, u64 offset of the frame, u32 number of the
record; then the leaf hashes in the order of the segment; then the hashes of its complete subtrees of 256 leaves.
"""

import struct
import uuid
from collections.abc import Callable, Sequence
from typing import Self

import google_crc32c
import msgspec

from macadam.errors import IntegrityError
from macadam.journal.layout import FRAME, MAX_PAYLOAD, START, VERIFY
from macadam.ledger.tree import hashes_of, inclusion_proof, root_of
from macadam.ports import Objects

_MAGIC = b"MCDMPLC1"
_HEAD = struct.Struct("<8sQ")
_ROW = struct.Struct("<16sQI")
_HASH = 32
_LEVEL = 8
"""Height of the subtrees whose hashes are kept: a proof then hashes some hundreds of nodes instead of all."""
_BLOCK = 1 << _LEVEL
"""Rows, or hashes, that are read together: some 8 KB, which costs no more than one of them."""
_MOST_RECORDS = 1 << 32
"""A record's number has 32 bits."""
_GUESS = 4096
"""Bytes that are read of a record at first: most are shorter, and it is one read then."""

Read = Callable[[int, int], bytes]
"""(start, length) → so many bytes, fewer at the end."""


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
    """Reads `build`, a few kilobytes at a time.

    What is read is not checked by itself: a record is right if its hash and `path` lead to the root in the ledger.
    """

    def __init__(self, read: Read, size: int | None = None) -> None:
        """read: (start, length) → bytes; size: of all, where it is known. Raises IntegrityError if there is no index."""
        head = read(0, _HEAD.size)
        magic: bytes
        count: int
        magic, count = _HEAD.unpack(head) if len(head) == _HEAD.size else (b"", 0)
        self.count = count
        self._read = read
        self._leaves = _HEAD.size + count * _ROW.size
        self._nodes = self._leaves + count * _HASH
        whole = self._nodes + (count >> _LEVEL) * _HASH
        if magic != _MAGIC or count > _MOST_RECORDS or (size is not None and size != whole):
            raise IntegrityError("The stored object is no index of a journal segment.", next_step=VERIFY)
        self._rows_kept: tuple[int, bytes] = (-1, b"")
        self._hashes_kept: tuple[int, bytes] = (-1, b"")

    @classmethod
    def of(cls, objects: Objects, digest: str) -> Self:
        """The index in an object, of which only what is needed is read. Raises NotFound, IntegrityError."""
        return cls(lambda start, length: objects.get_range(digest, start, length))

    @classmethod
    def whole(cls, data: bytes) -> Self:
        """An index in memory. Raises IntegrityError."""
        return cls(lambda start, length: data[start : start + length], len(data))

    def find(self, prediction: str) -> Place | None:
        """The place of a record by its id. O(log n), mostly two reads: ids are times, so where one lies can be guessed."""
        try:
            wanted = uuid.UUID(prediction).bytes
        except ValueError:
            return None
        low, high = 0, self.count
        at = self._guess(wanted)
        while low < high:
            row = self._row(at)
            if row.id == wanted:
                return row
            if row.id < wanted:
                low = at + 1
            else:
                high = at
            block = at // _BLOCK * _BLOCK
            # Within a block that was read, halving costs nothing; between blocks, it halves what is left.
            inside = max(low, block) < min(high, block + _BLOCK)
            at = (max(low, block) + min(high, block + _BLOCK)) // 2 if inside else (low + high) // 2
        return None

    def _guess(self, wanted: bytes) -> int:
        """About where an id lies among ids that came at an even pace."""
        if self.count <= _BLOCK:
            return self.count // 2
        first, last, number = (
            int.from_bytes(one[:8]) for one in (self._row(0).id, self._row(self.count - 1).id, wanted)
        )
        if not first < number < last:
            return self.count // 2
        return min(self.count - 1, (number - first) * self.count // (last - first))

    def at(self, number: int) -> Place:
        """The place of the record with this number in the order of ids, from 0. Raises IntegrityError."""
        if not 0 <= number < self.count:
            raise IntegrityError(f"The segment's index has no record number {number}.", next_step=VERIFY)
        return self._row(number)

    def root(self) -> bytes:
        """The Merkle root of all leaf hashes. O(n)."""
        return root_of(self.hash(n) for n in range(self.count))

    def hash(self, index: int) -> bytes:
        """The leaf hash of a record. Raises IntegrityError."""
        if not 0 <= index < self.count:
            raise IntegrityError(f"The segment's index has no leaf number {index}.", next_step=VERIFY)
        block, data = self._hashes_kept
        if block != index // _BLOCK:
            block = index // _BLOCK
            count = min(_BLOCK, self.count - block * _BLOCK)
            data = self._need(self._leaves + block * _BLOCK * _HASH, count * _HASH)
            self._hashes_kept = (block, data)
        start = index % _BLOCK * _HASH
        return data[start : start + _HASH]

    def path(self, index: int) -> tuple[bytes, ...]:
        """The record's inclusion path to the segment's root, bottom first. Raises IntegrityError."""
        if not 0 <= index < self.count:
            raise IntegrityError(f"The segment's index has no leaf number {index}.", next_step=VERIFY)
        kept = self._need(self._nodes, (self.count >> _LEVEL) * _HASH)
        nodes = hashes_of([kept[at : at + _HASH] for at in range(0, len(kept), _HASH)])

        def read(level: int, at: int) -> bytes:
            if level >= _LEVEL:
                return nodes(level - _LEVEL, at)
            return hashes_of([self.hash(n) for n in range(at << level, at + 1 << level)])(level, 0)

        return tuple(inclusion_proof(index, self.count, read))

    def _row(self, n: int) -> Place:
        block, data = self._rows_kept
        if block != n // _BLOCK:
            block = n // _BLOCK
            count = min(_BLOCK, self.count - block * _BLOCK)
            data = self._need(_HEAD.size + block * _BLOCK * _ROW.size, count * _ROW.size)
            self._rows_kept = (block, data)
        return Place(*_ROW.unpack_from(data, n % _BLOCK * _ROW.size))

    def _need(self, start: int, length: int) -> bytes:
        data = self._read(start, length)
        if len(data) != length:
            raise IntegrityError("The index of a journal segment ends too early.", next_step=VERIFY)
        return data


def payload_at(objects: Objects, archive: str, offset: int) -> bytes:
    """The record whose frame begins at `offset` of a stored segment; only it is read. Raises IntegrityError, NotFound."""

    def read(start: int, length: int) -> bytes:
        return objects.get_range(archive, start, length)

    return payload_in(read, offset)


def payload_in(read: Read, offset: int) -> bytes:
    """As `payload_at`, from anything that can be read in parts. Raises IntegrityError."""
    if 0 <= offset < 1 << 63:
        start = read(offset, _GUESS)
        if len(start) >= FRAME.size:
            length, crc, check = FRAME.unpack_from(start)
            if check == google_crc32c.value(start[: START.size]) and length <= MAX_PAYLOAD:
                payload = start[FRAME.size : FRAME.size + length]
                if len(payload) < length:
                    payload += read(offset + len(start), length - len(payload))
                if len(payload) == length and google_crc32c.value(payload) == crc:
                    return payload
    raise IntegrityError(f"No record begins at offset {offset} of the sealed segment.", next_step=VERIFY)
