"""The index of a sealed segment: each record's id, place and Merkle hash, so that one is found without reading all.

Fixed-width and sorted by id: 16 bytes of the id, u64 offset of the frame, u32 number of the record (little-endian),
32 bytes of leaf hash. The number is kept because records of one moment may have been written in another order.
"""

import struct
import uuid
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import google_crc32c
import msgspec

from macadam.errors import IntegrityError
from macadam.journal.layout import FOOTER_FLAG, FRAME, VERIFY

_ROW = struct.Struct("<16sQI32s")


class Place(msgspec.Struct, frozen=True):
    """Where a record lies. offset: of its frame, bytes; index: from 0."""

    id: bytes
    offset: int
    index: int
    hash: bytes


def build(places: Iterable[Place]) -> bytes:
    """The index's bytes."""
    return b"".join(_ROW.pack(p.id, p.offset, p.index, p.hash) for p in sorted(places, key=lambda p: p.id))


def find(places: bytes, prediction: str) -> Place | None:
    """The place of a record by its id. O(log n)."""
    try:
        wanted = uuid.UUID(prediction).bytes
    except ValueError:
        return None
    count = len(places) // _ROW.size
    at = bisect_left(range(count), wanted, key=lambda n: places[n * _ROW.size : n * _ROW.size + 16])
    if at == count:
        return None
    row = Place(*_ROW.unpack_from(places, at * _ROW.size))
    return row if row.id == wanted else None


def at(places: bytes, number: int) -> Place:
    """The place of the record with this number in the order of ids, from 0. Raises IntegrityError."""
    if not 0 <= number * _ROW.size <= len(places) - _ROW.size:
        raise IntegrityError(f"The segment's index has no record number {number}.", next_step=VERIFY)
    return Place(*_ROW.unpack_from(places, number * _ROW.size))


def hashes(places: bytes) -> Sequence[bytes]:
    """The leaf hashes of all records, in the order of the segment."""
    rows = sorted((number, digest) for _, _, number, digest in _ROW.iter_unpack(places))
    return [digest for _, digest in rows]


def payload_at(archive: bytes, offset: int) -> bytes:
    """The record whose frame begins at `offset` of a segment's bytes. Raises IntegrityError if there is none."""
    start = archive[offset : offset + FRAME.size]
    if len(start) == FRAME.size:
        length, crc, check = FRAME.unpack(start)
        payload = archive[offset + FRAME.size : offset + FRAME.size + length]
        if check == google_crc32c.value(start[:8]) and not length & FOOTER_FLAG and google_crc32c.value(payload) == crc:
            return payload
    raise IntegrityError(f"No record begins at offset {offset} of the sealed segment.", next_step=VERIFY)
