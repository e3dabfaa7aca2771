"""How a journal segment lies on the disk: its frames, header and footer, and the few writes that must be right.

The format, byte by byte, is in docs/reference/journal.md. What the frames mean together is for `segment` (reading)
and `writer`.
"""

import errno
import os
import struct
from pathlib import Path

import google_crc32c
import msgspec

from macadam.errors import IntegrityError, MacadamError, StorageFull, Unavailable
from macadam.journal.gaps import Gap

MAGIC = b"MCDMJRN1"
FRAME = struct.Struct("<III")
"""Length with its flag, CRC32C of the payload, CRC32C of the eight bytes before: all u32, little-endian."""
START = struct.Struct("<II")
CHECK = struct.Struct("<I")
FOOTER_FLAG = 0x8000_0000
MAX_PAYLOAD = 16 * 1024 * 1024
"""Bytes. A longer record is refused when written, so a greater length is damage when read."""
OPEN, CLOSED, ANSWERS = ".open", ".closed", ".answers"
DRAFT = ".new"
"""Of a segment that is being begun."""
NEWEST = "newest"
"""The file in a project's folder that names the segment begun last."""
COUNTER = struct.Struct("<Q")
VERIFY = "Keep the file as it is and compare with the ledger: macadam ledger verify."

sync_data = getattr(os, "fdatasync", os.fsync)
"""Flushes contents and size of a file; its other metadata where the system has no such call."""
_full = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_crc = google_crc32c.value
_json = msgspec.json.Encoder().encode


class SegmentHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Who writes a segment. created: RFC 3339, UTC."""

    gateway: str
    worker: int
    segment: str
    """UUIDv7, also the file's name."""
    project: str
    created: str
    follows: str = ""
    """The segment that was begun before it in the same folder, '' for the first: a segment that vanishes is missed."""
    gaps: tuple[Gap, ...] = ()
    """Answers that left without a record before this segment was begun."""


class SegmentFooter(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished segment says about itself, so that a file cut at the end of a record is noticed."""

    count: int
    digest: str
    """`sha256:…` of every byte before the footer."""
    torn: int = 0
    """Bytes of an unfinished record that recovery dropped."""


def frame(payload: bytes, flag: int = 0) -> bytes:
    """The payload behind its frame. The caller holds its length to MAX_PAYLOAD."""
    start = START.pack(len(payload) | flag, _crc(payload))
    return b"".join((start, CHECK.pack(_crc(start)), payload))


def opening(header: SegmentHeader) -> bytes:
    """The first bytes of a segment."""
    return MAGIC + frame(_json(header))


def closing(footer: SegmentFooter) -> bytes:
    """The last bytes of a finished segment."""
    return frame(_json(footer), FOOTER_FLAG)


def append_whole(fd: int, data: bytes, size: int, path: Path) -> None:
    """Appends `data` to a file of `size` bytes, all of it or nothing, in one write where the disk lets it.

    Raises StorageFull or Unavailable with the file cut back to `size`, and IntegrityError if not even that worked.
    """
    try:
        written = os.write(fd, data)
        while written < len(data):  # a disk that fills up takes a part first, and says why at the next write
            written += os.write(fd, data[written:])
    except OSError as error:
        _cut_back(fd, size, path)
        raise storage_error(error, path) from error


def _cut_back(fd: int, size: int, path: Path) -> None:
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        raise IntegrityError(
            f"A part of a record is left at the end of {path}: {error.strerror}.",
            next_step="Stop this gateway: at its next start recovery drops that part.",
            details={"path": str(path), "offset": size},
        ) from error


def finish(fd: int, path: Path, *, size: int, footer: SegmentFooter) -> Path:
    """Cuts an open segment to `size` bytes, adds its footer, makes it durable and renames it to `.closed`.

    Raises StorageFull or Unavailable: it stays `.open`, whole, for recovery to finish.
    """
    try:
        if os.fstat(fd).st_size > size:
            os.ftruncate(fd, size)
        append_whole(fd, closing(footer), size, path)
        os.fsync(fd)
        return mark_closed(path)
    except OSError as error:
        raise storage_error(error, path) from error


def mark_closed(path: Path) -> Path:
    """Renames a finished segment, durably, and returns its new path."""
    closed = path.with_suffix(CLOSED)
    path.rename(closed)
    sync_directory(path.parent)
    return closed


def sync_directory(folder: Path) -> None:
    """Makes the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def storage_error(error: OSError, path: Path) -> MacadamError:
    """The error to raise for one of the operating system's."""
    if error.errno in _full:
        return StorageFull(
            f"The disk of the journal {path.parent} is full; the record was not written.",
            next_step="Free space there; the gateway goes on by itself.",
            details={"path": str(path)},
        )
    return Unavailable(
        f"The journal {path} cannot be written: {error.strerror or error}.",
        next_step="Check the disk and the permissions of that folder.",
        details={"path": str(path)},
    )


def read_answers(path: Path) -> int:
    """The gateway's own count of answers, from the `.answers` file beside the segment.

    Raises IntegrityError if it is missing or has not 8 bytes.
    """
    place = path.with_suffix(ANSWERS)
    data = place.read_bytes() if place.exists() else b""
    if len(data) != COUNTER.size:
        raise IntegrityError(
            f"The answer counter {place} has {len(data)} bytes, expected {COUNTER.size}.", next_step=VERIFY
        )
    return int(COUNTER.unpack(data)[0])
