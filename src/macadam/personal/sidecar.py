"""Where ciphertext lies: frames beside an open segment, and the object that they become when it is sealed.

A frame names its prediction and its subject in the clear (both random), so that one person's frames are found and
overwritten without any key. Little-endian. Frame: length of the body u32, subject 16 bytes, prediction 16 bytes, CRC32C
of these 36 bytes u32, body. Body: MessagePack [key id, [[path, ciphertext], …]]; only zeros once it is erased; it needs no
checksum, as records hold its commitments. Object: magic; count u32; per frame, sorted by prediction: prediction, subject,
offset u64, length u32; then the bodies.
"""

import os
import struct
import uuid
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

import google_crc32c
import msgspec

from macadam.errors import IntegrityError
from macadam.personal.cipher import SUBJECT_BYTES, Field

_MAGIC = b"MCDMPER1"
_START = struct.Struct("<I16s16s")
_CHECK = struct.Struct("<I")
_HEAD = _START.size + _CHECK.size
_COUNT = struct.Struct("<I")
_ROW = struct.Struct("<16s16sQI")
_crc = google_crc32c.value


class Sealed(msgspec.Struct, frozen=True, array_like=True):
    """One prediction's encrypted values, and the id of the key that they were encrypted with."""

    key_id: bytes
    fields: list[Field]


class Frame(msgspec.Struct, frozen=True):
    """One prediction's ciphertext as it lies. body: b'' if it was erased; offset, length: of the body in its file."""

    subject: bytes
    prediction: bytes
    body: bytes
    offset: int
    length: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Sealed).decode


def frame(subject: bytes, prediction: str, sealed: Sealed) -> bytes:
    """The bytes to append beside a segment."""
    body = _encode(sealed)
    start = _START.pack(len(body), subject, bytes.fromhex(prediction.replace("-", "")))
    return start + _CHECK.pack(_crc(start)) + body


def opened(body: bytes) -> Sealed:
    """Reads a body. Raises IntegrityError."""
    try:
        return _decode(body)
    except msgspec.MsgspecError as error:
        raise IntegrityError(
            f"A prediction's ciphertext cannot be read: {error}.", next_step="Restore the journal from a backup."
        ) from error


def read(path: Path) -> Iterator[Frame]:
    """Every whole frame of a file, in order; one that is torn at the end was never answered. Raises OSError."""
    data = path.read_bytes()
    at = 0
    while at + _HEAD <= len(data):
        start = data[at : at + _START.size]
        length, subject, prediction = _START.unpack(start)
        if _CHECK.unpack_from(data, at + _START.size)[0] != _crc(start) or at + _HEAD + length > len(data):
            return
        body = data[at + _HEAD : at + _HEAD + length]
        yield Frame(subject, prediction, body if any(body) else b"", at + _HEAD, length)
        at += _HEAD + length


def overwrite(path: Path, subjects: frozenset[bytes]) -> int:
    """Overwrites the ciphertext of these subjects with zeros, durably, while the file may still grow.

    Returns how many frames are theirs, erased now or before. A file that is gone holds none. Raises OSError.
    """
    try:
        fd = os.open(path, os.O_WRONLY)
    except FileNotFoundError:
        return 0
    try:
        count = 0
        for found in read(path):
            if found.subject in subjects:
                os.pwrite(fd, bytes(found.length), found.offset)
                count += 1
        os.fsync(fd)
        return count
    finally:
        os.close(fd)


def build(frames: Sequence[Frame]) -> bytes:
    """The object of a sealed segment, without what was erased."""
    kept = sorted((f for f in frames if f.body), key=lambda f: f.prediction)
    rows, offset = [], 0
    for one in kept:
        rows.append(_ROW.pack(one.prediction, one.subject, offset, len(one.body)))
        offset += len(one.body)
    return b"".join((_MAGIC, _COUNT.pack(len(kept)), *rows, *(one.body for one in kept)))


class Bodies:
    """Reads `build`."""

    def __init__(self, data: bytes) -> None:
        """Raises IntegrityError if the bytes are no such object."""
        self._data = data
        start = len(_MAGIC) + _COUNT.size
        self.count = _COUNT.unpack_from(data, len(_MAGIC))[0] if len(data) >= start else -1
        self._rows = start
        self._bodies = start + max(self.count, 0) * _ROW.size
        if not data.startswith(_MAGIC) or self.count < 0 or len(data) < self._bodies:
            raise IntegrityError(
                "A stored object is no ciphertext of a journal segment.", next_step="Restore it from a backup."
            )

    def __iter__(self) -> Iterator[Frame]:
        return (self._frame(n) for n in range(self.count))

    def find(self, prediction: str) -> Frame | None:
        """One prediction's. O(log n)."""
        wanted = uuid.UUID(prediction).bytes
        at = bisect_left(range(self.count), wanted, key=self._prediction)
        return self._frame(at) if at < self.count and self._prediction(at) == wanted else None

    def subjects(self) -> set[bytes]:
        """Everyone in it."""
        starts = range(self._rows + 16, self._bodies, _ROW.size)
        return {self._data[at : at + SUBJECT_BYTES] for at in starts}

    def _prediction(self, number: int) -> bytes:
        at = self._rows + number * _ROW.size
        return self._data[at : at + 16]

    def _frame(self, number: int) -> Frame:
        prediction, subject, offset, length = _ROW.unpack_from(self._data, self._rows + number * _ROW.size)
        at = self._bodies + offset
        return Frame(subject, prediction, self._data[at : at + length], at, length)
